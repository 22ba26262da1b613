"""What a share says of its GPU time, read often and cheaply: whether it asks for the GPU, and how much it predicted.

Called by the node agent's steering. The books belong to the tenant, so nothing here trusts or maps them.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api import names
from libvgpu.layout import layout
from libvgpu.leases import open_shared

_ffi = layout().ffi
_HEADER_BYTES = _ffi.offsetof("struct vgpu_books", "reserved0")
_BUCKET_AT = _ffi.offsetof("struct vgpu_books", "bucket_ns")
_BUCKET_BYTES = _ffi.offsetof("struct vgpu_books", "reserved2") - _BUCKET_AT
_SLOTS_AT = _ffi.offsetof("struct vgpu_books", "slots")
_SLOT_BYTES = _ffi.sizeof("struct vgpu_slot")

ProcessKey = tuple[int, int, int]
"""Process id, inode of its pid namespace, start time."""


@dataclass(frozen=True)
class Work:
    """Seconds of GPU time of a process, for what is done of its work."""

    predicted_s: float = 0.0
    charged_s: float = 0.0
    """Taken from the share's bucket for it."""


class ShareMeter:
    """Reads one share's counters of GPU time; what cannot be read counts as no news."""

    def __init__(self, directory: Path) -> None:
        """Take the folder of the share."""
        self._path = f"{directory}/{names.BOOKS_FILE}"

    def stamp(self) -> bytes:
        """Return what changes while the share launches work or waits to; empty if it cannot be read."""
        stamp = self._read(_BUCKET_AT, _BUCKET_BYTES)
        return stamp if len(stamp) == _BUCKET_BYTES else b""

    def work(self, charge_permille: int) -> dict[ProcessKey, Work]:
        """Return what the share's processes did, by process.

        Args:
            charge_permille: what is under way was charged at, of 1000 parts predicted.
        """
        header = self._read(0, _HEADER_BYTES)
        if len(header) < _HEADER_BYTES:
            return {}
        books: Any = _ffi.cast("struct vgpu_books *", _ffi.from_buffer(header))
        count = min(books.slots_high, layout().constants.VGPU_SLOTS)
        raw = self._read(_SLOTS_AT, count * _SLOT_BYTES)
        slots: Any = _ffi.cast("struct vgpu_slot *", _ffi.from_buffer(raw))
        found: dict[ProcessKey, Work] = {}
        for number in range(len(raw) // _SLOT_BYTES):
            slot = slots[number]
            if slot.pid:
                found[slot.pid, slot.pid_namespace, slot.start_time] = _work(slot, charge_permille)
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


def _work(slot: Any, charge_permille: int) -> Work:
    """Of work that runs, the time since it began counts, as far as it is expected to go on so long."""
    predicted: int = slot.predicted_ns
    inflight = min(slot.inflight_ns, predicted)
    running = max(time.monotonic_ns() - slot.busy_since_ns, 0)
    ahead = inflight - min(running, inflight)
    drawn = _ffi.cast("int64_t", slot.drawn_ns)
    return Work((predicted - ahead) / 1e9, (int(drawn) - ahead * charge_permille // 1000) / 1e9)
