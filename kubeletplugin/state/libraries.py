"""Installs the interception library on the node, under a name that says what is in it.

Called by the agent at start. Running containers have the file mapped: it is never overwritten, a new build just has
another name. The name in the container is the same, so that what a process has mapped can be told from outside. The
agent keeps all builds open, so that no container can hold up the others by a lease on a file.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import logging
import os
import subprocess
import time
import weakref
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from api import names
from api.errors import StateError
from kubeletplugin.files import read_if_there, write_durably
from libvgpu.files import locked
from libvgpu.paths import gate_paths, hook_path

_log = logging.getLogger(__name__)

_HOOK_S = 10.0
_HASH_DIGITS = 12
_BUILT_FOR = b"libvgpu-" + b"0" * _HASH_DIGITS + b".so"
_GRACE_S = 24 * 3600.0
"""Of a build that nothing refers to. By the wall clock: if that is set forward, the lock of the agent that installed a
build keeps it, or the specs that name it."""


@dataclass(frozen=True)
class InstalledLibrary:
    """The library on the node, and where containers see it."""

    path: Path
    preload_path: Path
    """A file for /etc/ld.so.preload that names the library."""
    gates: tuple[Path, ...] = ()
    """What containers find in the place of the driver's libraries; `libvgpu/gate` has what they do."""

    hook: Path | None = None
    """Keeps what an image has in its own /etc/ld.so.preload; None: it cannot be run on this node."""

    def gate_mounts(self) -> Iterator[tuple[Path, str]]:
        """Yield each gate with the name of the library that it stands for."""
        for gate in self.gates:
            yield gate, gate.name.removeprefix(f"{self.path.name}.")

    def keep(self) -> None:
        """Let nobody remove this build, nor hold up others by a lease on any, while this process uses the object."""
        for path, descriptor in _opened(self.path.parent).items():
            weakref.finalize(self, os.close, descriptor)
            if path == self.path:
                with contextlib.suppress(BlockingIOError):  # a tenant has locked the file, which keeps it as well
                    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)

    @property
    def container_path(self) -> Path:
        """Where the library is in a container."""
        return Path(names.CONTAINER_LIBRARY_DIR) / self.path.name


def install_library(source: Path, folder: Path) -> InstalledLibrary:
    """Copy the library to the node, if this very build is not there yet.

    Args:
        source: the built libvgpu.so.
        folder: of all builds that containers may still use.

    Raises:
        StateError: the library cannot be read or written.
    """
    try:
        content = source.read_bytes()
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        gates = {path.name: path.read_bytes() for path in gate_paths(source)}
        hook_content = hook_path(source).read_bytes() if hook_path(source).is_file() else b""
        digest = hashlib.sha256(b"".join((content, *gates.values(), hook_content))).hexdigest()[:_HASH_DIGITS]
        name = f"libvgpu-{digest}.so"
        installed = InstalledLibrary(
            folder / name, folder / f"{name}.preload", tuple(folder / f"{name}.{gate}" for gate in gates)
        )
        hook = folder / f"{name}.merge"
        with locked(folder), contextlib.ExitStack() as held:  # a second instance of the agent installs the same files
            for descriptor in _opened(folder).values():
                held.callback(os.close, descriptor)
            _install(installed.path, content, 0o755)
            _install(installed.preload_path, f"{installed.container_path}\n".encode(), 0o644)
            for path, gate in zip(installed.gates, gates.values(), strict=True):
                # They need this very library: its name has the length of the one that they were built with.
                _install(path, gate.replace(_BUILT_FOR, name.encode()), 0o755)
            if hook_content:
                _install(hook, hook_content, 0o755)
            if _runs(hook):
                installed = dataclasses.replace(installed, hook=hook)
            installed.keep()
    except OSError as error:
        raise StateError(f"library {source}: cannot be installed in {folder}: {error}") from error
    return installed


def _opened(folder: Path) -> dict[Path, int]:
    """Open all files of a folder for reading, whatever leases tenants hold on them (fcntl(2), F_SETLEASE).

    All containers have the same files, and they belong to root, as a tenant may be: with a lease on what names the
    library it would hold up each program that starts in another container, for 45 s at a time. The kernel grants no
    lease that keeps readers out on a file that somebody else has open. Leases of tenants end all at once, by the first
    try to open their files; the second one waits for that.
    """
    paths = [path for path in folder.iterdir() if path.is_file()]
    for path in paths:
        with contextlib.suppress(BlockingIOError):
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    return {path: os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths}


def _runs(hook: Path) -> bool:
    """Return whether the hook can be run here: one that cannot would keep containers from starting."""
    if not hook.is_file():
        return False
    try:
        subprocess.run([hook], check=True, timeout=_HOOK_S)  # without arguments it does nothing
    except (OSError, subprocess.SubprocessError) as error:
        if getattr(error, "errno", None) == errno.ETXTBSY:
            return True  # another thread forked while it was written, and its child has not called exec yet
        _log.warning("an image's own /etc/ld.so.preload is hidden: the hook cannot be run", extra={"error": str(error)})
        return False
    return True


def remove_old_libraries(current: InstalledLibrary, needed: Container[Path]) -> list[Path]:
    """Remove builds that no container can get any more, and return them.

    A container that runs keeps its file, which then has no name. Young builds stay: another instance of the agent may
    be about to name them in the spec of a claim.

    Args:
        current: what this agent gives to containers.
        needed: host files that CDI specs name.
    """
    removed = []
    with locked(current.path.parent):
        for path in sorted(current.path.parent.glob("libvgpu-*.so")):
            age_s = time.time() - path.stat().st_mtime
            if path != current.path and path not in needed and age_s >= _GRACE_S and not _is_in_use(path):
                for beside in path.parent.glob(f"{path.name}.*"):
                    beside.unlink()
                path.unlink()
                removed.append(path)
    return removed


def _is_in_use(path: Path) -> bool:
    """Return whether an agent that lives gives this build to containers; see InstalledLibrary.keep."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _install(path: Path, content: bytes, mode: int) -> None:
    # Compared and not trusted: a crash of the machine may have left a file of the right name with nothing in it.
    if read_if_there(path) != content:
        write_durably(path, content, mode)
