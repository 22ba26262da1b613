"""Points at which a test can stop or hinder a process: each change that it makes to the file system, in turn.

Audit hooks and replaced functions stay for good, so all of this happens in a child of the test's process.
"""

import errno
import itertools
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from libvgpu import limitsfile

_EVENTS = {
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.truncate",
    "os.chmod",
    "os.link",
    "os.setxattr",
    "os.removexattr",
}
_CALLS = ("write", "pwrite", "fsync", "posix_fallocate")
_NEEDS_SPACE = {"create", "os.mkdir", "os.rename", "os.link", "write", "fsync", "posix_fallocate"}
"""What fails on a full disk. Writing over what is there (pwrite, a mapping) and removing need none."""
_MOST_CHANGES = 120

Hook = Callable[[str], None]


def before_each_change(hook: Hook) -> None:
    """Call a hook before each change that this process makes from now on, with the name of the change."""

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        opens = event == "open" and isinstance(arguments[2], int)
        if (opens and arguments[2] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)) or event in _EVENTS:  # type: ignore[operator]
            hook(event)

    def wrapped(name: str) -> Callable[..., Any]:
        function = getattr(os, name)

        def call(*arguments: Any) -> Any:
            folder = name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
            hook("fsync of a folder" if folder else name)
            return function(*arguments)

        return call

    for name in _CALLS:
        setattr(os, name, wrapped(name))
    limitsfile._FENCE = _Fence(hook)  # type: ignore[assignment]
    sys.addaudithook(audit)


class _Fence:
    """Stands between two stores to the mapped limits."""

    def __init__(self, hook: Hook) -> None:
        self._hook = hook

    def __enter__(self) -> None:
        self._hook("store")

    def __exit__(self, *_: object) -> None:
        pass


def crashes(action: Callable[[], object], least: int = 10) -> Iterator[int]:
    """Yield after each `kill -9` of the action, one change later each time, until it survives."""
    for number in range(_MOST_CHANGES):
        if not _killed_before_change(number, action):
            assert number >= least  # or the hooks see nothing
            return
        yield number
    raise AssertionError(f"more than {_MOST_CHANGES} changes")


def _killed_before_change(number: int, action: Callable[[], object]) -> bool:
    """Run an action in a child that is killed before its number-th change; False: it had fewer, and ended."""
    numbers = itertools.count()  # threads make changes too, and each has its number

    def die(_change: str) -> None:
        if next(numbers) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        before_each_change(die)
        try:
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


class Disk:
    """A disk that can be full, or fail, in a child's process."""

    def __init__(self, error: int = errno.ENOSPC) -> None:
        """Take what it says: where that is not for want of space, it refuses whatever changes something."""
        self._error = error
        self._left = -1
        self._lasting = False
        self.refused = 0
        before_each_change(self._check)

    @contextmanager
    def full_from(self, number: int, *, lasting: bool) -> Iterator[None]:
        """Refuse the number-th thing that needs space, or (lasting) all from there on."""
        self._left, self._lasting, self.refused = number, lasting, 0
        try:
            yield
        finally:
            self._left = -1

    def _check(self, change: str) -> None:
        full = self._error in {errno.ENOSPC, errno.EDQUOT}
        if self._left < 0 or (change not in _NEEDS_SPACE if full else change == "store"):  # stores are to memory
            return
        if self._left > 0:
            self._left -= 1
            return
        self.refused += 1
        if not self._lasting:
            self._left = -1
        raise OSError(self._error, os.strerror(self._error))


def in_child(action: Callable[[], object]) -> None:
    """Run an action in a child; AssertionError with what it raised, if it did."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - told to the parent
            import traceback

            os.close(reader)
            with os.fdopen(writer, "w") as pipe:
                pipe.write("".join(traceback.format_exception(error)))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        problem = pipe.read()
    os.waitpid(child, 0)
    assert not problem, problem
