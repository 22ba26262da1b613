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
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, waiting for whoever holds it; it ends with the process at the latest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Return the folder or file `target`, made by `build` if it is not there yet.

    `build` gets a path of its own to write to; only when it has returned does that become `target`, so that an
    aborted build leaves nothing half done under the final name. Concurrent callers wait and find it built.
    """
    if target.exists():
        return target
    with locked(target.with_name(f".{target.name}.lock")):
        if not target.exists():
            scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            try:
                build(scratch / target.name)
                (scratch / target.name).rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return target
