"""Durable files of the agent: whole or not at all, on disk before they are relied on.

Called by the ledger, the CDI specs and the library's installation. A temporary file has one name per target, so that
what a crash leaves is overwritten by the next try: whoever writes keeps others away by the claim's lock, or by that of
the folder (libvgpu.files.locked).
"""

import contextlib
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from api.errors import StateError
from libvgpu.files import create, fsync_directory, read_all

__all__ = [
    "TEMPORARY_FILES",
    "FileLock",
    "FolderSync",
    "fsync_directory",
    "fsync_files",
    "read_if_there",
    "remove",
    "remove_tree",
    "share_out",
    "write_atomically",
    "write_durably",
    "write_first",
]
_T = TypeVar("_T")
_TEMPORARY_SUFFIX = ".tmp"
TEMPORARY_FILES = f".{{}}*{_TEMPORARY_SUFFIX}"
"""Pattern of the temporary files for targets whose names begin as given."""


def write_durably(path: Path | str, content: bytes, mode: int = 0o644) -> None:
    """Replace a file's content; after a crash at any moment, of the machine too, it has the old or the new content.

    The caller sees to it that nobody else writes the same path at the same time.
    """
    create(path, (content, len(content)), mode, durable=True)
    fsync_directory(str(path).rpartition("/")[0])


def write_atomically(path: Path | str, content: bytes, mode: int = 0o644) -> None:
    """Replace a file's content; readers see the old or the new content. For what is made anew from a durable record.

    After a crash of the machine the file may be missing or damaged.
    """
    create(path, (content, len(content)), mode, durable=False)


def write_first(path: Path | str, content: bytes, mode: int = 0o644) -> None:
    """Make a file that is not there. For what is compared with a durable record before it is relied on.

    After a crash, of this process too, the file may be a part of itself.

    Raises:
        FileExistsError: it is there.
    """
    create(path, (content, len(content)), mode, durable=False, fresh=True)


def remove(path: Path | str) -> bool:
    """Remove a file, and what a crash left of a try to write it; return whether there was anything."""
    target = str(path)
    found = _unlink(_temporary(target))
    return _unlink(target) or found


def fsync_files(paths: Sequence[str]) -> None:
    """Make the content of files durable that were written atomically; their names are durable with their folder's.

    The disk gets all of them to write before the first is waited for, and several waits at a time: it joins them, and
    many files take little longer than one.
    """
    errors: list[OSError] = []

    def sync(some: Sequence[str]) -> None:
        try:
            for path in some:
                _with_open(path, os.fsync)
        except OSError as error:
            errors.append(error)

    for path in paths[1:]:
        _with_open(path, _begin_to_write)
    share_out(paths, sync)
    if errors:
        raise errors[0]


def share_out(things: Sequence[_T], act: Callable[[Sequence[_T]], None], least: int = 1) -> None:
    """Have all of some things done by a few threads, of which this is one: who waits for a disk waits for it together.

    Args:
        things: are shared out among the threads.
        act: does some of them; raises nothing.
        least: that are worth a thread.
    """
    parts = min(_WAITS, -(-len(things) // least)) or 1
    threads = [threading.Thread(target=act, args=[things[number::parts]], name="disk") for number in range(1, parts)]
    for thread in threads:
        thread.start()
    act(things[::parts])
    for thread in threads:
        thread.join()


_WAITS = 4


def _begin_to_write(descriptor: int) -> None:
    # The one call of the standard library that does so: of who wants to drop pages, those that are dirty go to disk.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _with_open(path: str, action: Callable[[int], object]) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        action(descriptor)
    finally:
        os.close(descriptor)


class FolderSync:
    """Makes the names in one folder durable, for many threads at once: who comes while one is at it shares the next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._begun = self._done = 0

    def __call__(self) -> None:
        """Return once every name that was in the folder at the call is durable; OSError if it is not known to be."""
        wanted = self._begun + 1  # one that has begun already may not have seen our name
        with self._lock:
            if self._done >= wanted:
                return
            self._begun += 1
            fsync_directory(self._folder)
            self._done = self._begun


def remove_tree(folder: Path) -> bool:
    """Remove a folder of plain files and the files in it, or what else is in its place; return whether there was any.

    Symbolic links are removed, never followed: a tenant can write to a part of what lies here.
    """
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            return _unlink(str(folder))
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return False
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            remove_tree(Path(entry.path))
        else:
            _unlink(entry.path)
    folder.rmdir()
    return True


def read_if_there(path: Path | str) -> bytes | None:
    """Return a file's content, None if there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return read_all(descriptor)
    finally:
        os.close(descriptor)


class FileLock:
    """An exclusive lock that lives as long as the process that holds it, however that ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, without waiting.

        Raises:
            StateError: another process holds it; its process id is named. Or the file cannot be made.
        """
        while True:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise StateError(f"{self._path}: found {error.strerror}, expected a file to lock") from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                os.close(descriptor)
                raise StateError(f"{self._path}: held by process {holder}, expected no other instance") from error
            if self._is_current(descriptor):
                break
            os.close(descriptor)  # its last holder removed the file meanwhile: a lock on that protects nothing
        os.truncate(descriptor, 0)
        with contextlib.suppress(OSError):  # for people; a full disk does not take it, and the lock holds all the same
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back and remove its file."""
        if self._descriptor is None:
            return
        self._path.unlink(missing_ok=True)  # while it is held: nobody else can have taken this very file
        os.close(self._descriptor)
        self._descriptor = None

    def _is_current(self, descriptor: int) -> bool:
        try:
            return self._path.stat().st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            return False


def _temporary(target: str) -> str:
    folder, _, name = target.rpartition("/")
    return f"{folder}/.{name}{_TEMPORARY_SUFFIX}"


def _unlink(path: str) -> bool:
    try:
        os.unlink(path)  # noqa: PTH108 - each claim is a handful of files, and paths as objects cost more than the call
    except FileNotFoundError:
        return False
    return True
