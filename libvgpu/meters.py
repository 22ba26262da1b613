"""What a share says of its GPU time, read often and cheaply: whether it asks for the GPU, and how much it predicted.

Called by the node agent's steering. The books belong to the tenant, so nothing here trusts or maps them.
"""

import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from api import names
from libvgpu.layout import layout
from libvgpu.leases import open_shared

_ffi = layout().ffi
_HEADER_BYTES = _ffi.offsetof("struct vgpu_books", "reserved0")
_BUCKET_AT = _ffi.offsetof("struct vgpu_books", "bucket_ns")
_BUCKET_BYTES = _ffi.offsetof("struct vgpu_books", "reserved2") - _BUCKET_AT
_SLOTS_AT = _ffi.offsetof("struct vgpu_books", "slots")
_SLOT_BYTES = _ffi.sizeof("struct vgpu_slot")
_PID_AT = _ffi.offsetof("struct vgpu_slot", "pid")
_FIELDS = ("pid_namespace", "start_time", "pid", "predicted_ns", "inflight_ns", "busy_since_ns", "drawn_ns")
_FIELDS_AT = _ffi.offsetof("struct vgpu_slot", _FIELDS[0])
_PLACES = [_ffi.offsetof("struct vgpu_slot", field) - _FIELDS_AT for field in _FIELDS]
# Read at once: a look at each field through cffi costs as much as all of them.
_SLOT = struct.Struct("=QQI20xQQQ8xq")
assert _PLACES == [0, 8, 16, 40, 48, 56, 72]
_FREE_AS_ONE = 32
"""So many slots that nobody uses cost what one costs that somebody uses."""

ProcessKey = tuple[int, int, int]
"""Process id, inode of its pid namespace, start time."""


class Work(NamedTuple):
    """Seconds of GPU time of a process, for what is done of its work."""

    predicted_s: float = 0.0
    charged_s: float = 0.0
    """Taken from the share's bucket for it."""


class ShareMeter:
    """Reads one share's counters of GPU time; what cannot be read counts as no news."""

    def __init__(self, directory: Path) -> None:
        """Take the folder of the share."""
        self._path = f"{directory}/{names.BOOKS_FILE}"
        self.cost = 0
        """What the last look at its work cost, in slots: as many as its tenant likes."""

    def stamp(self) -> bytes:
        """Return what changes while the share launches work or waits to; empty if it cannot be read."""
        stamp = self._read(_BUCKET_AT, _BUCKET_BYTES)
        return stamp if len(stamp) == _BUCKET_BYTES else b""

    def work(self, charge_permille: int) -> dict[ProcessKey, Work]:
        """Return what the share's processes did, by process.

        Args:
            charge_permille: what is under way was charged at, of 1000 parts predicted.
        """
        self.cost = 1
        header = self._read(0, _HEADER_BYTES)
        if len(header) < _HEADER_BYTES:
            return {}
        books: Any = _ffi.cast("struct vgpu_books *", _ffi.from_buffer(header))
        count = min(books.slots_high, layout().constants.VGPU_SLOTS)
        raw = self._read(_SLOTS_AT, count * _SLOT_BYTES)
        pids = memoryview(raw)[: len(raw) - len(raw) % _SLOT_BYTES].cast("I")[_PID_AT // 4 :: _SLOT_BYTES // 4].tolist()
        used = [number for number, pid in enumerate(pids) if pid]
        self.cost += len(used) + len(pids) // _FREE_AS_ONE
        now_ns = time.monotonic_ns()
        found: dict[ProcessKey, Work] = {}
        for number in used:
            namespace, started, pid, *slot_ns = _SLOT.unpack_from(raw, number * _SLOT_BYTES + _FIELDS_AT)
            found[pid, namespace, started] = _work(now_ns, charge_permille, slot_ns)
        return found

    def _read(self, offset: int, size: int) -> bytes:
        try:
            descriptor = open_shared(self._path, os.O_RDONLY)
        except OSError:
            return b""
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)


def _work(now_ns: int, charge_permille: int, slot_ns: Sequence[int]) -> Work:
    """Of work that runs, the time since it began counts, as far as it is expected to go on so long."""
    predicted_ns, inflight_ns, busy_since_ns, drawn_ns = slot_ns
    inflight_ns = min(inflight_ns, predicted_ns)
    ahead_ns = inflight_ns - min(max(now_ns - busy_since_ns, 0), inflight_ns)
    return Work((predicted_ns - ahead_ns) / 1e9, (drawn_ns - ahead_ns * charge_permille // 1000) / 1e9)
