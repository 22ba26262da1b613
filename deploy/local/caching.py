"""Where builds and images are kept between runs, and how concurrent runs keep out of each other's way.

Used by the modules that build (building, images) and by those that share something of the machine (links, cluster).
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

PROJECT = "dra-driver-vgpu"


def cache_dir() -> Path:
    """Return `$VGPU_CACHE_DIR`, else the project's folder in the user's cache; it need not exist yet."""
    if chosen := os.environ.get("VGPU_CACHE_DIR"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / PROJECT


def digest(parts: Iterable[bytes]) -> str:
    """Return 12 hex digits that name this content."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "big"))
        total.update(part)
    return total.hexdigest()[:12]


@contextlib.contextmanager
def locked(path: Path, *, remove: bool = False, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold an exclusive lock on a file, waiting for whoever holds it; it ends with the process at the latest.

    With `remove` the file is gone afterwards: for locks of things that are themselves gone then. `on_wait` is called
    before a wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as opened:
        lock = opened.enter_context(path.open("a"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        while not _is_at(lock, path):
            # Whoever held it has removed the file: what counts is the lock on the one that is there now.
            lock = opened.enter_context(path.open("a"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        if remove:
            path.unlink()


def _is_at(lock: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Return the folder or file `target`, made by `build` if it is not there yet.

    `build` gets a path of its own to write to; only when it has returned does that become `target`, so that an
    aborted build leaves nothing half done under the final name. Concurrent callers wait and find it built.
    """
    if target.exists():
        return target
    with locked(target.with_name(f".{target.name}.lock"), remove=True):
        if not target.exists():
            scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            try:
                build(scratch / target.name)
                (scratch / target.name).rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return target
