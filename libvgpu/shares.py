"""Limits and books of a share: creating, reading and changing them. The one module that others import for it.

The node agent and `dra-driver run` create shares and change limits; whoever reports reads the books.
include/vgpu/layout.h has the layout, what each field means, and how liveness and crash safety work.
"""

import contextlib
import mmap
import os
from collections.abc import Callable
from pathlib import Path

from api import names
from api.errors import StateError
from api.vgpuconfig import Policy
from libvgpu import booksfile, files, limitsfile
from libvgpu.booksfile import Books, BooksReader, ProcessUsage, cut_back, is_in_use, read_books
from libvgpu.layout import layout
from libvgpu.leases import open_shared, without_lease
from libvgpu.limitsfile import Limits, LimitsReader, read_limits

__all__ = [
    "Books",
    "BooksReader",
    "Limits",
    "LimitsReader",
    "Policy",
    "ProcessUsage",
    "change_limits",
    "create_new_share",
    "create_share",
    "cut_back",
    "is_in_use",
    "read_books",
    "read_limits",
    "update_limits",
]


def create_new_share(directory: Path, limits: Limits) -> bool:
    """Create a share that is not there in a folder that is; return whether it was so, and leave all else alone.

    Not durable: for who compares with a durable record what a crash of the machine may have left.

    Raises:
        StateError: a limit is out of its range.
    """
    raw = limitsfile.encode(directory, limits)
    # Paths as strings: each claim comes by here, and methods of Path cost more than the calls.
    name = str(directory)
    if os.path.lexists(name):
        return False
    try:
        os.mkdir(name, 0o755)  # noqa: PTH102 - as above
    except OSError:
        return False  # it is there; or else create_share says why it cannot be
    # No lock: nobody looks for files in a folder that has just been made, and one that is there already is an error.
    books = booksfile.header(), layout().constants.VGPU_BOOKS_FILE_BYTES
    files.create(f"{name}/{names.BOOKS_FILE}", books, 0o666, durable=False, fresh=True)
    files.create(f"{name}/{names.LIMITS_FILE}", (raw, len(raw)), 0o644, durable=False, fresh=True)
    return True


def create_share(directory: Path, limits: Limits, *, durable: bool = True) -> None:
    """Create the limits and books of a share; with the same arguments, any number of times.

    Existing limits are updated in place (running processes see them), but not those of another layout: containers that
    run have a library that reads that one, and keep the file. Existing books are kept while they are sound or in use.

    Raises:
        StateError: a limit is out of its range.
    """
    raw = limitsfile.encode(directory, limits)
    _create_files(directory, raw, durable=durable, fresh=_make(directory))
    for folder in (directory, directory.parent) if durable else ():
        files.fsync_directory(folder)


def _create_files(directory: Path, raw: bytes, *, durable: bool, fresh: bool) -> None:
    limits_file, books_file = directory / names.LIMITS_FILE, directory / names.BOOKS_FILE
    with files.locked(directory):
        if fresh or not booksfile.is_usable(books_file):
            content = booksfile.header(), layout().constants.VGPU_BOOKS_FILE_BYTES
            files.create(books_file, content, 0o666, durable=durable, fresh=fresh)
        there = not fresh and files.size_of(limits_file) == len(raw)
        if there and not limitsfile.is_of_another_layout(limits_file):
            _store(limits_file, raw, durable=durable)
        else:  # whoever has mapped a file of another layout keeps it as it was
            files.create(limits_file, (raw, len(raw)), 0o644, durable=durable, fresh=fresh)


def update_limits(directory: Path, limits: Limits) -> None:
    """Change the limits of a share in place: processes that run see them with their next call of the driver.

    Raises:
        StateError: a limit is out of its range, or there is no limits file of the right size.
    """
    raw = limitsfile.encode(directory, limits)
    with files.locked(directory):
        _store(directory / names.LIMITS_FILE, raw)


def change_limits(directory: Path, change: Callable[[Limits], Limits], *, patient: bool = False) -> Limits:
    """Change a part of a share's limits in place, and return them; several programs may do so at once.

    Args:
        directory: of the share.
        change: gets the limits as they are and returns them as they shall be.
        patient: wait for a process that holds up the file by a lease: up to 45 s.

    Raises:
        StateError: there are no sound limits, or one is out of its range, or a process holds up the file.
    """
    limits_file = directory / names.LIMITS_FILE
    waiting = without_lease(limits_file) if patient and limits_file.exists() else contextlib.nullcontext()
    with waiting, files.locked(directory):
        present = read_limits(directory)
        wanted = change(present)
        if wanted != present:
            _store(directory / names.LIMITS_FILE, limitsfile.encode(directory, wanted))
        return wanted


def _make(directory: Path) -> bool:
    """Make a folder; return whether it was not there."""
    try:
        directory.mkdir(parents=True, mode=0o755)
    except FileExistsError:
        return False
    return True


def _store(path: Path, raw: bytes, *, durable: bool = False) -> None:
    """Write over a limits file; the share's folder is locked."""
    if files.size_of(path) != len(raw):
        raise StateError(f"{path}: found {files.found_size(path)}, expected a file of {len(raw)} bytes")
    try:
        descriptor = open_shared(path, os.O_RDWR)
    except BlockingIOError as error:
        raise StateError(
            f"{path}: found a lease that a process of the share holds on it, expected none: it ends in a minute"
        ) from error
    try:
        with mmap.mmap(descriptor, len(raw)) as mapping:
            limitsfile.store(mapping, raw)
            if durable:
                mapping.flush()
    finally:
        os.close(descriptor)
