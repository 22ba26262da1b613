"""The file with the faults of a node's devices: shared by the agents of a node and by `dra-driver fault`.

A fault belongs to a boot of the machine, and so does the file: one of another boot counts as none. Times are seconds
since the boot, which no clock that somebody sets can move. What an operator cleared by hand stays in it, for people.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from api.errors import ConfigError, StateError
from kubeletplugin.files import read_if_there, remove, write_atomically
from libvgpu.files import locked

FAULTS_FILE = "faults.json"
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
_MOST_CLEARINGS = 100
_CLEARING_FIELDS = ("uuid", "xid", "by", "reason", "at")


@dataclass(frozen=True)
class Fault:
    """What makes a device unfit."""

    xid: int
    at_s: float
    """Seconds since the boot."""
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Fields of another release."""


@dataclass(frozen=True)
class Clearing:
    """A fault that somebody judged harmless."""

    uuid: str
    xid: int
    by: str
    reason: str
    at: str
    """RFC 3339, by the wall clock: for people to read."""
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Fields of another release."""


@dataclass(frozen=True)
class FaultRecord:
    """All that is known since the boot."""

    faults: Mapping[str, Fault] = field(default_factory=dict)
    """By the device's UUID."""
    cleared: tuple[Clearing, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Fields of another release."""


class FaultFile:
    """One file; who changes it holds `changing()`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Keep others from changing the file; StateError if its folder cannot be opened."""
        with locked(self.path.parent):
            yield

    def signature(self) -> tuple[int, int] | None:
        """Return what differs after each change; None: there is no file."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    def read(self) -> FaultRecord:
        """Return what is known of this boot.

        Raises:
            StateError: the file is damaged; names it.
        """
        try:
            stored: dict[str, Any] = json.loads(read_if_there(self.path) or b"{}")
            if stored.get("bootID") != boot_id():
                return FaultRecord()
            del stored["bootID"]
            faults = {str(uuid): _fault(dict(one)) for uuid, one in stored.pop("faults").items()}
            cleared = tuple(_clearing(dict(one)) for one in stored.pop("cleared", ()))
            return FaultRecord(faults, cleared, stored)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateError(f"{self.path}: found {error!r}, expected the faults of this node") from error

    def write(self, record: FaultRecord) -> None:
        """Replace the content; without faults and clearings there is no file. OSError: the disk does not take it."""
        if not record.faults and not record.cleared:
            remove(self.path)
            return
        content = {
            **record.extra,
            "bootID": boot_id(),
            "faults": {
                uuid: {**fault.extra, "xid": fault.xid, "at": fault.at_s} for uuid, fault in record.faults.items()
            },
            "cleared": [
                {**one.extra, **{name: getattr(one, name) for name in _CLEARING_FIELDS}}
                for one in record.cleared[-_MOST_CLEARINGS:]
            ],
        }
        write_atomically(self.path, json.dumps(content).encode(), 0o600)


def _fault(fields: dict[str, Any]) -> Fault:
    return Fault(int(fields.pop("xid")), float(fields.pop("at")), fields)


def _clearing(fields: dict[str, Any]) -> Clearing:
    known = {name: fields.pop(name) for name in _CLEARING_FIELDS}
    return Clearing(**known, extra=fields)


def clear_fault(file: FaultFile, device: str, by: str, reason: str) -> Clearing:
    """Take a device's fault for harmless; the agent finds that at its next look, and says so in its log.

    Args:
        file: of the node.
        device: UUID, or the start of one if no other device with a fault starts so.
        by: who says so.
        reason: why.

    Raises:
        ConfigError: no device, or several, with such a UUID have a fault.
        StateError: the file is damaged.
    """
    with file.changing():
        record = file.read()
        found = [uuid for uuid in record.faults if uuid.lower().startswith(device.lower())]
        if len(found) != 1:
            there = ", ".join(sorted(record.faults)) or "none"
            raise ConfigError(f"device {device!r}: found {len(found)} with a fault, expected one of: {there}")
        (uuid,) = found
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        clearing = Clearing(uuid, record.faults[uuid].xid, by, reason, now)
        left = {other: fault for other, fault in record.faults.items() if other != uuid}
        file.write(replace(record, faults=left, cleared=(*record.cleared, clearing)))
    return clearing


def boot_id() -> str:
    """Return what names this boot of the machine."""
    return BOOT_ID_FILE.read_text().strip()
