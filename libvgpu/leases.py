"""Opens files that a tenant has in its container too, whatever lease it holds on them (fcntl(2), F_SETLEASE).

Called by all that reads books and reads or writes limits. Whoever opens a file with such a lease waits until the holder
gives way: up to 45 s (/proc/sys/fs/lease-break-time), and then for the next lease. The node agent does not wait. A file
that is held up cannot be opened at first; meanwhile a thread waits for it, which nobody can put off any longer, and
keeps it: the kernel grants no lease on a file that another process has open for writing.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger(__name__)
_guard = threading.Lock()
_broken: dict[int, str] = {}
"""Paths of files that were held up once, by the descriptors that keep them open."""
_breaking: set[str] = set()


def open_shared(path: Path | str, flags: int) -> int:
    """Return a descriptor of a file, without waiting; BlockingIOError as long as somebody holds a lease on it."""
    name = str(path)
    try:
        return os.open(name, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except BlockingIOError:
        with _guard:
            if name not in _breaking:
                _breaking.add(name)
                threading.Thread(target=_break, args=(name,), name="lease", daemon=True).start()
        raise


@contextlib.contextmanager
def without_lease(path: Path) -> Iterator[None]:
    """Wait until nobody holds a lease on a file, and let nobody take one in this block."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield
    finally:
        os.close(descriptor)


def _break(name: str) -> None:
    _log.warning("a process holds up a file of its share by a lease", extra={"file": name})
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        descriptor = -1  # gone, with its share
    with _guard:
        _breaking.discard(name)
        gone = [held for held in _broken if not os.fstat(held).st_nlink]
        for held in gone:
            os.close(held)
            del _broken[held]
        if descriptor >= 0:
            _broken[descriptor] = name
