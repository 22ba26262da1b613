"""The books file of a share: who uses how much of it, and whether the file is sound.

Called by libvgpu.shares. The file belongs to the tenant, so nothing here trusts or maps it.
"""

import contextlib
import errno
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api import names
from api.errors import StateError
from libvgpu import xfs
from libvgpu.files import expect, read
from libvgpu.layout import layout
from libvgpu.leases import open_shared
from libvgpu.locks import is_held

_ffi = layout().ffi
_SLOTS_AT = _ffi.offsetof("struct vgpu_books", "slots")
_SLOT_BYTES = _ffi.sizeof("struct vgpu_slot")
_CHECKED_BYTES = _ffi.offsetof("struct vgpu_books", "slots_high")
"""Magic, version and sizes."""
_BLOCK_BYTES = 512
"""Of stat(2), whatever the file system has."""
_SLACK_BYTES = 1 << 20
"""File systems round up, keep copies, and count what they need to find a file's blocks."""
_PARTS = 16
"""Of a long list of attributes, 64 KiB of names each, removed at a time; another one comes a second later."""
_PID_AT = _ffi.offsetof("struct vgpu_slot", "pid")
_RESERVED_AT = _ffi.offsetof("struct vgpu_slot", "reserved_bytes")


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
    command: str = ""
    host_bytes: int = 0
    """What lies on the host instead of the device, where the share may oversubscribe."""


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
    host_bytes: int = 0
    """Memory of the living processes that lies on the host instead of the device."""


class BooksReader:
    """Reads the books of one share, again and again: only the part in use, and decodes only what has changed.

    Reads without mapping: a tenant may truncate its books at any time. For one thread at a time.
    """

    def __init__(self, directory: Path) -> None:
        """Take the folder of the share."""
        self._path = f"{directory}/{names.BOOKS_FILE}"
        self._former: tuple[bytes, tuple[bool, ...], Books] | None = None
        self._length = _SLOTS_AT
        self.swells = False
        """Whether the file took more of the disk at the last look than it has bytes, or had attributes."""

    def read(self) -> Books:
        """Return what the share uses; the same object as before while nothing has changed.

        Raises:
            StateError: the file is missing or not a books file; names the file, what was found, what was expected.
        """
        constants = layout().constants
        try:
            descriptor = open_shared(self._path, os.O_RDONLY)
            try:
                raw = self._read_used(descriptor)
                books = _view(raw)
                # A slot without a living owner holds what a dead process left: it goes back when somebody needs it.
                used = _slots_in_use(raw)
                owned = tuple(is_held(descriptor, constants.VGPU_SLOT_LOCKS + i) for i in used)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StateError(f"{self._path}: found {error.strerror}, expected a readable books file") from error
        if self._former is None or self._former[:2] != (raw, owned):
            self._former = raw, owned, _decode(books, used, owned)
        return self._former[2]

    def look_at_size(self) -> None:
        """Bring `swells` up to date, at little cost however the books are; leave it where they cannot be opened."""
        try:
            descriptor = open_shared(self._path, os.O_RDONLY)
        except OSError:
            return
        try:
            self._size(descriptor)
        finally:
            os.close(descriptor)

    def _size(self, descriptor: int) -> int:
        status = os.fstat(descriptor)
        self.swells = _behind(status) > 0 or _attributes(descriptor) != []
        return status.st_size

    def _read_used(self, descriptor: int) -> bytes:
        """Return the books up to the last slot that was ever used."""
        raw = os.pread(descriptor, self._length, 0)
        _check_size(Path(self._path), self._size(descriptor))
        if len(raw) < _SLOTS_AT:  # whole again since it was read
            raise StateError(f"{self._path}: found {len(raw)} bytes, expected at least {_SLOTS_AT}")
        if self._former is None or raw[:_CHECKED_BYTES] != self._former[0][:_CHECKED_BYTES]:
            _check_header(Path(self._path), raw)
        books = _view(raw)
        length = _SLOTS_AT + _SLOT_BYTES * min(books.slots_high, layout().constants.VGPU_SLOTS)
        if length != self._length:
            self._length = length
            raw = os.pread(descriptor, length, 0)
            if len(raw) < length:  # cut off since we asked how long it is
                raise StateError(f"{self._path}: found {len(raw)} bytes, expected at least {length}")
        return raw


def read_books(directory: Path) -> Books:
    """Return what a share uses, once; see BooksReader."""
    return BooksReader(directory).read()


def _view(raw: bytes) -> Any:
    """Return a `struct vgpu_books *` over the start of books; the caller looks at no slot behind it."""
    return _ffi.cast("struct vgpu_books *", _ffi.from_buffer(raw))


def _slots_in_use(raw: bytes) -> list[int]:
    """Return the slots with a process or with bytes. By whole columns: the node agent reads all books each second."""
    slots = memoryview(raw)[_SLOTS_AT : len(raw) - len(raw) % _SLOT_BYTES]
    pids = slots.cast("I")[_PID_AT // 4 :: _SLOT_BYTES // 4].tolist()
    reserved = slots.cast("Q")[_RESERVED_AT // 8 :: _SLOT_BYTES // 8].tolist()
    return [i for i, (pid, bytes_) in enumerate(zip(pids, reserved, strict=True)) if pid or bytes_]


def _decode(books: Any, used: list[int], owned: tuple[bool, ...]) -> Books:
    slots = [books.slots[i] for i in used]
    living = tuple(_usage(slot) for slot, alive in zip(slots, owned, strict=True) if alive and slot.pid)
    return Books(
        used_bytes=sum(process.memory_bytes for process in living),
        peak_bytes=books.peak_bytes,
        processes=living,
        gpu_time_ns=books.ended_gpu_time_ns + sum(slot.gpu_time_ns for slot in slots),
        throttled_ns=books.ended_throttled_ns + sum(slot.throttled_ns for slot in slots),
        launches=books.ended_launches + sum(slot.launches for slot in slots),
        out_of_memory=books.ended_out_of_memory + sum(slot.out_of_memory for slot in slots),
        host_bytes=sum(process.host_bytes for process in living),
    )


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
        command=layout().text(slot.command) or "",
        host_bytes=slot.host_bytes,
    )


def _check_size(path: Path, found: int) -> None:
    expected = layout().constants.VGPU_BOOKS_FILE_BYTES
    if found != expected:
        raise StateError(f"{path}: found {found} bytes, expected a file of {expected} bytes")


def _check_header(path: Path, raw: bytes) -> None:
    constants, books = layout().constants, _view(raw)
    expect(path, "magic", books.magic, constants.VGPU_BOOKS_MAGIC)
    expect(path, "version", books.version, constants.VGPU_VERSION)
    expect(path, "slot_count", books.slot_count, constants.VGPU_SLOTS)
    expect(path, "slot_size", books.slot_size, _SLOT_BYTES)


def cut_back(directory: Path) -> int:
    """Take from the books of a share what somebody has put behind or beside them; return how many bytes that gave back.

    Containers may write their books, which lie on the node's disk and count for no pod's ephemeral storage. Room behind
    the end can be taken without any length (fallocate(2), FALLOC_FL_KEEP_SIZE), and beside it by extended attributes,
    of which some file systems take any number.
    """
    expected: int = layout().constants.VGPU_BOOKS_FILE_BYTES
    try:
        descriptor = open_shared(directory / names.BOOKS_FILE, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return 0
    try:
        behind = _behind(os.fstat(descriptor))
        _remove_attributes(descriptor, directory)
        if behind:
            os.ftruncate(descriptor, expected)
            if _behind(os.fstat(descriptor)):  # a file system that does nothing where the length is right
                os.ftruncate(descriptor, expected + 1)
                os.ftruncate(descriptor, expected)
        return max(behind - _behind(os.fstat(descriptor)), 0)
    finally:
        os.close(descriptor)


def _remove_attributes(descriptor: int, directory: Path) -> None:
    for _ in range(_PARTS):
        found: Sequence[str | bytes] | None = _attributes(descriptor)
        if found is None:
            found = xfs.user_attributes(descriptor, directory)
        if not found:
            return
        for name in found:
            with contextlib.suppress(OSError):  # it is gone meanwhile
                os.removexattr(descriptor, name)


def _attributes(descriptor: int) -> list[str] | None:
    """Return the extended attributes that anybody may set who may write; None: there are too many to be listed."""
    try:
        return [name for name in os.listxattr(descriptor) if name.startswith("user.")]
    except OSError as error:
        return None if error.errno == errno.E2BIG else []


def _behind(status: os.stat_result) -> int:
    """Return how many bytes of the disk or of the file are behind the end that books have; 0 if that is no matter."""
    expected: int = layout().constants.VGPU_BOOKS_FILE_BYTES
    taken = status.st_blocks * _BLOCK_BYTES - expected
    return max(status.st_size - expected, taken if taken > _SLACK_BYTES else 0, 0)


def is_in_use(directory: Path) -> bool:
    """Return whether a living process has a slot in the books of a share."""
    try:
        return _is_held(directory / names.BOOKS_FILE)
    except FileNotFoundError:
        return False


def is_usable(path: Path) -> bool:
    """Return whether a books file may stay: it is sound, or a living process has it (and would lose count)."""
    constants = layout().constants
    try:
        if _is_held(path):
            return True
        _check_header(path, read(path, constants.VGPU_BOOKS_FILE_BYTES))
    except (OSError, StateError):
        return False
    return True


def _is_held(path: Path) -> bool:
    """Return whether a living process has a slot in books, or a lease on them."""
    constants = layout().constants
    try:
        descriptor = open_shared(path, os.O_RDONLY)
    except BlockingIOError:
        return True
    try:
        return is_held(descriptor, constants.VGPU_SLOT_LOCKS, constants.VGPU_SLOTS)
    finally:
        os.close(descriptor)


@functools.cache
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
