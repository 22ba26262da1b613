"""Reading and writing whole files of a share: sizes checked, written durably and all or nothing.

Called by libvgpu.shares and its two halves, limitsfile and booksfile.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from api.errors import StateError
from libvgpu.leases import open_shared

_PART_BYTES = 1 << 16


def expect(path: Path, field: str, found: int, expected: int) -> None:
    """Raise a StateError that names file and field unless both numbers are the same."""
    if found != expected:
        raise StateError(f"{path}: {field}: found {found:#x}, expected {expected:#x}")


def read(path: Path, expected_bytes: int) -> bytes:
    """Return the content of a file that must have exactly this length; StateError otherwise."""
    try:
        descriptor = open_shared(path, os.O_RDONLY)
        try:
            raw = os.pread(descriptor, expected_bytes + 1, 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StateError(f"{path}: found {error.strerror}, expected a readable file") from error
    if len(raw) != expected_bytes:
        raise StateError(f"{path}: found {found_size(path)}, expected a file of {expected_bytes} bytes")
    return raw


def size_of(path: Path) -> int | None:
    """Return the length of a file in bytes; None if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def found_size(path: Path) -> str:
    """Return the length of a file in words, for messages."""
    size = size_of(path)
    return "no file" if size is None else f"{size} bytes"


def create(path: Path | str, content: tuple[bytes, int], mode: int, *, durable: bool, fresh: bool = False) -> None:
    """Write a file, whole or not at all; the folder is locked, so what a crash left of another try is overwritten.

    Args:
        path: of the file.
        content: how it starts, and its length in bytes; the rest is zeros.
        mode: whatever the umask says.
        fresh: nobody looks at the folder yet: a file that is not whole does no harm, and is found out.
        durable: on disk when this returns; else after a crash of the machine it may be missing, or hold zeros.
    """
    # Names as strings: each claim is a handful of files, and paths as objects cost more than the calls.
    target = str(path)
    folder, _, name = target.rpartition("/")
    temporary = f"{folder}/.{name}.tmp"
    if fresh:
        _fill(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), content, mode, durable)
        return
    try:
        _fill(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode), content, mode, durable)
        os.rename(temporary, target)  # noqa: PTH104 - as above
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _fill(descriptor: int, content: tuple[bytes, int], mode: int, durable: bool) -> None:
    head, length = content
    try:
        if length != len(head):
            # No holes: who writes to one through a mapping while the disk is full dies of it (SIGBUS).
            os.posix_fallocate(descriptor, 0, length)
        write_all(descriptor, head)
        os.fchmod(descriptor, mode)  # not subject to the umask: the container's user may be anybody
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_all(descriptor: int) -> bytes:
    """Return the rest of an open file."""
    parts = []
    while part := os.read(descriptor, _PART_BYTES):
        parts.append(part)
    return b"".join(parts)


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of a content: the system may take less at a time."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def fsync_directory(path: Path | str) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other writers of the files in a folder away, in this process and in others.

    Of the folder and not of a file: a tenant has the files in its container and could hold a lock of theirs for ever.

    Raises:
        StateError: the folder cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StateError(f"{path}: found {error.strerror}, expected a folder") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
