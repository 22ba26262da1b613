"""Faults that a driver tells of, and which of them make a device unfit: pure decisions, and a file that outlives us.

Called by the NVIDIA backend. A fault that the hardware had does not go away because the agent restarts: it ends with a
reboot of the node, with the driver loaded anew, or when the driver says that nothing needs to be done. Source: Xid
errors in NVIDIA's GPU deployment and management documentation.
"""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from kubeletplugin.files import read_if_there, remove, write_atomically

_log = logging.getLogger(__name__)

APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 69, 109, 137})
"""What a program does wrong: an illegal access, a kernel that never ends. The device is as good as before."""
NOTICE_XIDS = frozenset({63, 92, 94, 154})
"""The device has dealt with it (rows remapped, an error contained): worth a line, not a taint."""
SETTLED_S = 60.0
"""How long after a fault the driver's word counts that nothing needs to be done."""
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


class Faults:
    """The faults of a node's devices since its boot. Safe to use from several threads."""

    def __init__(
        self,
        ignored_xids: Iterable[int] = (),
        file: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Start with what an earlier agent of this boot has seen.

        Args:
            ignored_xids: do not count as faults on this node.
            file: where faults are kept; None: nowhere.
            clock: seconds since the epoch.
        """
        self._ignored = frozenset(ignored_xids) | APPLICATION_XIDS
        self._file = file
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._broken: dict[str, tuple[int, float]] = self._load()
        """Xid and time by UUID."""

    def tell_xid(self, uuid: str, xid: int) -> bool:
        """Take note of an Xid; return whether the device is unfit from now on, and was not before."""
        self._counts[uuid, f"xid-{xid}"] += 1
        facts = {"device": uuid, "xid": xid}
        if xid in self._ignored:
            _log.info("a program made the device report an error", extra=facts)
            return False
        if xid in NOTICE_XIDS:
            _log.warning("the device reports an error that it has dealt with", extra=facts)
            return False
        _log.error("the device reports a fault", extra=facts)
        with self._lock:
            was_fit = uuid not in self._broken
            self._broken[uuid] = (xid, self._clock())
            self._store()
        return was_fit

    def count(self, uuid: str, kind: str) -> None:
        """Count a fault of another kind, such as `ecc-uncorrected`."""
        self._counts[uuid, kind] += 1

    def counts(self) -> Mapping[tuple[str, str], int]:
        """Return how often each kind was told since the agent started, by UUID and kind."""
        return dict(self._counts)

    def problem(self, uuid: str) -> str:
        """Return why a device is unfit, empty if it is not."""
        fault = self._broken.get(uuid)
        return f"Xid {fault[0]} was reported" if fault else ""

    def settle(self, uuid: str) -> None:
        """Take note that the driver wants nothing done about a device: after a while its fault is over."""
        with self._lock:
            fault = self._broken.get(uuid)
            if fault is not None and self._clock() >= fault[1] + SETTLED_S:
                self._forget([uuid])

    def forget_all(self) -> None:
        """Take note that the driver was loaded anew, which resets all devices."""
        with self._lock:
            self._forget(list(self._broken))

    def _forget(self, uuids: list[str]) -> None:
        for uuid in uuids:
            xid, _ = self._broken.pop(uuid)
            _log.info("fault of the device is over", extra={"device": uuid, "xid": xid})
        if uuids:
            self._store()

    def _load(self) -> dict[str, tuple[int, float]]:
        if self._file is None:
            return {}
        try:
            stored: dict[str, Any] = json.loads(read_if_there(self._file) or b"{}")
            if stored.get("bootID") != _boot_id():
                return {}
            return {
                str(uuid): (int(fault["xid"]), float(fault["at"]))
                for uuid, fault in stored["faults"].items()
                if int(fault["xid"]) not in self._ignored
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("known faults cannot be read", extra={"file": str(self._file), "error": str(error)})
            return {}

    def _store(self) -> None:
        if self._file is None:
            return
        faults = {uuid: {"xid": xid, "at": at} for uuid, (xid, at) in self._broken.items()}
        try:
            if faults:
                write_atomically(self._file, json.dumps({"bootID": _boot_id(), "faults": faults}).encode(), 0o600)
            else:
                remove(self._file)
        except OSError as error:
            # Known faults still count for as long as this agent runs.
            _log.warning("known faults cannot be stored", extra={"file": str(self._file), "error": str(error)})


def _boot_id() -> str:
    return BOOT_ID_FILE.read_text().strip()
