"""The books file of a share: who uses how much of it, and whether the file is sound.

Called by libvgpu.shares. The file belongs to the tenant, so nothing here trusts or maps it.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api import names
from api.errors import StateError
from libvgpu.files import expect, found_size, read
from libvgpu.layout import layout
from libvgpu.locks import is_held


@dataclass(frozen=True)
class ProcessUsage:
    """What one living process of a share uses."""

    pid: int
    """In the process's own pid namespace."""
    pid_namespace: int
    start_time: int
    memory_bytes: int
    gpu_time_ns: int
    throttled_ns: int
    launches: int
    out_of_memory: int
    """Requests that were refused for the limit."""


@dataclass(frozen=True)
class Books:
    """What a share uses. A tenant can write its own books: a claim to be compared with the driver's figures."""

    used_bytes: int
    """Device memory of the living processes."""
    peak_bytes: int
    processes: tuple[ProcessUsage, ...]
    gpu_time_ns: int
    """This and the following: totals, with the processes that ended."""
    throttled_ns: int
    launches: int
    out_of_memory: int


def read_books(directory: Path) -> Books:
    """Return what a share uses. Reads without mapping: a tenant may truncate its books at any time.

    Raises:
        StateError: the file is missing or not a books file; names the file, what was found, what was expected.
    """
    path = directory / names.BOOKS_FILE
    constants = layout().constants
    try:
        with path.open("rb", buffering=0) as file:
            raw = os.pread(file.fileno(), constants.VGPU_BOOKS_FILE_BYTES + 1, 0)
            books = _checked_books(path, raw)
            # A slot without a living owner holds what a dead process left: it goes back as soon as somebody needs it.
            used = _slots_in_use(raw)
            slots = [books.slots[i] for i in used]
            owned = [is_held(file.fileno(), constants.VGPU_SLOT_LOCKS + i) for i in used]
    except OSError as error:
        raise StateError(f"{path}: found {error.strerror}, expected a readable books file") from error
    living = tuple(_usage(slot) for slot, alive in zip(slots, owned, strict=True) if alive and slot.pid)
    return Books(
        used_bytes=sum(process.memory_bytes for process in living),
        peak_bytes=books.peak_bytes,
        processes=living,
        gpu_time_ns=books.ended_gpu_time_ns + sum(slot.gpu_time_ns for slot in slots),
        throttled_ns=books.ended_throttled_ns + sum(slot.throttled_ns for slot in slots),
        launches=books.ended_launches + sum(slot.launches for slot in slots),
        out_of_memory=books.ended_out_of_memory + sum(slot.out_of_memory for slot in slots),
    )


def _slots_in_use(raw: bytes) -> list[int]:
    """Return the slots with a process or with bytes. By whole columns: the node agent reads all books each second."""
    ffi = layout().ffi
    slots = memoryview(raw)[ffi.offsetof("struct vgpu_books", "slots") :]
    size = ffi.sizeof("struct vgpu_slot")
    pids = slots.cast("I")[ffi.offsetof("struct vgpu_slot", "pid") // 4 :: size // 4].tolist()
    reserved = slots.cast("Q")[ffi.offsetof("struct vgpu_slot", "reserved_bytes") // 8 :: size // 8].tolist()
    return [i for i, (pid, bytes_) in enumerate(zip(pids, reserved, strict=True)) if pid or bytes_]


def _usage(slot: Any) -> ProcessUsage:
    return ProcessUsage(
        pid=slot.pid,
        pid_namespace=slot.pid_namespace,
        start_time=slot.start_time,
        memory_bytes=slot.reserved_bytes,
        gpu_time_ns=slot.gpu_time_ns,
        throttled_ns=slot.throttled_ns,
        launches=slot.launches,
        out_of_memory=slot.out_of_memory,
    )


def _checked_books(path: Path, raw: bytes) -> Any:
    constants = layout().constants
    if len(raw) != constants.VGPU_BOOKS_FILE_BYTES:
        expected = constants.VGPU_BOOKS_FILE_BYTES
        raise StateError(f"{path}: found {found_size(path)}, expected a file of {expected} bytes")
    books = layout().books(raw)
    expect(path, "magic", books.magic, constants.VGPU_BOOKS_MAGIC)
    expect(path, "version", books.version, constants.VGPU_VERSION)
    expect(path, "slot_count", books.slot_count, constants.VGPU_SLOTS)
    expect(path, "slot_size", books.slot_size, layout().ffi.sizeof("struct vgpu_slot"))
    return books


def is_usable(path: Path) -> bool:
    """Return whether a books file may stay: it is sound, or a living process has it (and would lose count)."""
    constants = layout().constants
    try:
        with path.open("rb", buffering=0) as file:
            if is_held(file.fileno(), constants.VGPU_SLOT_LOCKS, constants.VGPU_SLOTS):
                return True
        _checked_books(path, read(path, constants.VGPU_BOOKS_FILE_BYTES))
    except (OSError, StateError):
        return False
    return True


def header() -> bytes:
    """Return the first page of new books; the rest is zeros."""
    constants = layout().constants
    books = layout().books()
    books.magic = constants.VGPU_BOOKS_MAGIC
    books.version = constants.VGPU_VERSION
    books.size = constants.VGPU_BOOKS_FILE_BYTES
    books.slot_count = constants.VGPU_SLOTS
    books.slot_size = layout().ffi.sizeof("struct vgpu_slot")
    return layout().raw(books)[:4096]
