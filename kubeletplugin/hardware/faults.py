"""Faults that a driver tells of, and which of them make a device unfit; kept in a file that outlives the agent.

Called by the NVIDIA backend. A fault that the hardware had does not go away because the agent restarts: it ends with a
reboot of the node, with the driver loaded anew, when the driver says that nothing needs to be done, or by an operator's
hand (`dra-driver fault clear`). Source: Xid errors in NVIDIA's GPU deployment and management documentation.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from api.errors import StateError
from kubeletplugin.hardware.faultfiles import Clearing, Fault, FaultFile, FaultRecord

_log = logging.getLogger(__name__)

APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 69, 109, 137})
"""What a program does wrong: an illegal access, a kernel that never ends. The device is as good as before."""
NOTICE_XIDS = frozenset({63, 92, 94, 154})
"""The device has dealt with it (rows remapped, an error contained): worth a line, not a taint."""
SETTLED_S = 60.0
"""How long after a fault the driver's word counts that nothing needs to be done."""


def since_boot_s() -> float:
    """Return the seconds since the boot, with those that the machine slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Faults:
    """The faults of a node's devices since its boot. Safe to use from several threads."""

    def __init__(
        self,
        ignored_xids: Iterable[int] = (),
        file: Path | None = None,
        clock: Callable[[], float] = since_boot_s,
    ) -> None:
        """Start with what an earlier agent of this boot has seen.

        Args:
            ignored_xids: do not count as faults on this node.
            file: where faults are kept; None: nowhere.
            clock: seconds since the boot.
        """
        self._ignored = frozenset(ignored_xids) | APPLICATION_XIDS
        self._file = FaultFile(file) if file is not None else None
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._broken: dict[str, Fault] = {}
        self._cleared: tuple[Clearing, ...] = ()
        self._extra: Mapping[str, Any] = {}
        """Fields of another release."""
        self._signature: tuple[int, int] | None = None
        """Of the file as it was read or written last."""
        self._unstored = False
        """Whether there are faults here that the disk did not take."""
        self.refresh()

    def refresh(self) -> None:
        """Take over what others have written: another agent, or an operator who cleared a fault."""
        with self._lock:
            self._take_over()

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
        before: list[bool] = []

        def note() -> None:
            before.append(uuid in self._broken)
            self._broken[uuid] = Fault(xid, self._clock())

        self._change(note)
        return not before[0]

    def count(self, uuid: str, kind: str) -> None:
        """Count a fault of another kind, such as `ecc-uncorrected`."""
        self._counts[uuid, kind] += 1

    def counts(self) -> Mapping[tuple[str, str], int]:
        """Return how often each kind was told since the agent started, by UUID and kind."""
        return dict(self._counts)

    def problem(self, uuid: str) -> str:
        """Return why a device is unfit, empty if it is not."""
        fault = self._broken.get(uuid)
        return f"Xid {fault.xid} was reported" if fault else ""

    def settle(self, uuid: str) -> None:
        """Take note that the driver wants nothing done about a device: after a while its fault is over."""
        fault = self._broken.get(uuid)
        if fault is not None and self._clock() >= fault.at_s + SETTLED_S:
            self._change(lambda: self._forget([uuid]))

    def forget_all(self) -> None:
        """Take note that the driver was loaded anew, which resets all devices."""
        self._change(lambda: self._forget(list(self._broken)))

    def _forget(self, uuids: list[str]) -> None:
        for uuid in uuids:
            fault = self._broken.pop(uuid, None)
            if fault is not None:
                _log.info("fault of the device is over", extra={"device": uuid, "xid": fault.xid})

    def _change(self, change: Callable[[], None]) -> None:
        """Change the faults, here and in the file. Where the disk does not take it, they count as long as we live."""
        with self._lock:
            if self._file is None:
                change()
                return
            changed = False
            try:
                with self._file.changing():
                    self._take_over()
                    before = dict(self._broken)
                    change()
                    changed = True
                    if self._broken != before or self._unstored:
                        self._file.write(FaultRecord(self._broken, self._cleared, self._extra))
                        self._signature = self._file.signature()
                    self._unstored = False
            except (OSError, StateError) as error:
                self._unstored = True
                _log.warning("known faults cannot be stored", extra={"file": str(self._file.path), "error": str(error)})
                if not changed:
                    change()

    def _take_over(self) -> None:
        signature = self._file.signature() if self._file is not None else None
        if self._file is None or signature is None or signature == self._signature:
            return
        self._signature = signature
        try:
            record = self._file.read()
        except StateError as error:
            _log.warning("known faults cannot be read", extra={"file": str(self._file.path), "error": str(error)})
            return
        for one in record.cleared[len(self._cleared) :]:
            facts = {"device": one.uuid, "xid": one.xid, "by": one.by, "reason": one.reason, "at": one.at}
            _log.warning("fault of the device cleared by hand", extra=facts)
        self._cleared, self._extra = record.cleared, record.extra
        now_s = self._clock()
        stored = {
            # A release before this one wrote the time of the day.
            uuid: replace(fault, at_s=min(fault.at_s, now_s))
            for uuid, fault in record.faults.items()
            if fault.xid not in self._ignored
        }
        self._broken = {**self._broken, **stored} if self._unstored else stored
