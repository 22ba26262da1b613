"""Installs the interception library on the node, under a name that says what is in it.

Called by the agent at start. Running containers have the file mapped: it is never overwritten, a new build just has
another name. The name in the container is the same, so that what a process has mapped can be told from outside.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from api import names
from api.errors import StateError
from kubeletplugin.files import read_if_there, write_durably
from libvgpu.files import locked

_HASH_DIGITS = 12


@dataclass(frozen=True)
class InstalledLibrary:
    """The library on the node, and where containers see it."""

    path: Path
    preload_path: Path
    """A file for /etc/ld.so.preload that names the library."""

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
        name = f"libvgpu-{hashlib.sha256(content).hexdigest()[:_HASH_DIGITS]}.so"
        installed = InstalledLibrary(folder / name, folder / f"{name}.preload")
        with locked(folder):  # a second instance of the agent installs the same files
            _install(installed.path, content, 0o755)
            _install(installed.preload_path, f"{installed.container_path}\n".encode(), 0o644)
    except OSError as error:
        raise StateError(f"library {source}: cannot be installed in {folder}: {error}") from error
    return installed


def _install(path: Path, content: bytes, mode: int) -> None:
    # Compared and not trusted: a crash of the machine may have left a file of the right name with nothing in it.
    if read_if_there(path) != content:
        write_durably(path, content, mode)
