"""Where a driver's files lie: under a driver root as the agent sees it, and as the container runtime sees it.

A driver root is a folder laid out like `/`: the host itself, the root of a driver container, or the stub's. Called
by the NVIDIA backend. The agent in a pod has the host's root mounted somewhere; CDI specs must name paths of the
host.
"""

import platform
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from kubeletplugin.hardware.devices import DeviceFile

_MULTIARCH = f"{platform.machine()}-linux-gnu"
LIBRARY_FOLDERS = (
    *(f"usr/lib/{_MULTIARCH}", "usr/lib64", f"lib/{_MULTIARCH}", "lib64", "usr/lib"),
    *(f"usr/lib/{_MULTIARCH}/nvidia", f"usr/lib/{_MULTIARCH}/tegra"),  # Jetson Linux
)
CONTAINER_LIBRARY_FOLDERS = (Path("/usr/lib") / _MULTIARCH, Path("/usr/lib64"))
"""Where the dynamic loaders of Debian and Red Hat look without a cache."""
_MAX_SYMLINKS = 16


@dataclass(frozen=True)
class DriverRoot:
    """A driver root, seen from here and from the host."""

    path: Path
    """As this process sees it."""
    on_host: Path
    """As the container runtime sees it."""

    @property
    def device_folder(self) -> Path:
        """The folder of the device nodes; a driver container without nodes of its own uses the host's."""
        own = self.path / "dev"
        return own if any(own.glob("nvidia*")) or (own / "nvmap").exists() else Path("/dev")

    def find_library(self, name: str) -> Path | None:
        """Return the path of a library such as `libcuda.so.1` under the root, None if it is nowhere."""
        for folder in LIBRARY_FOLDERS:
            path = self.path / folder / name
            if self.resolve(path).is_file():
                return path
        return None

    def libraries(self, patterns: Iterable[str]) -> Iterator[DeviceFile]:
        """Yield a mount for each library that matches a pattern, at each place where a loader looks for it."""
        for pattern in patterns:
            for path in self._matches(pattern):
                for folder in CONTAINER_LIBRARY_FOLDERS:
                    yield DeviceFile(self.host_path(self.resolve(path)), folder / path.name)

    def binaries(self, programs: Iterable[str]) -> Iterator[DeviceFile]:
        """Yield a mount for each program that is in the root."""
        for program in programs:
            path = self.path / "usr/bin" / program
            if self.resolve(path).is_file():
                yield DeviceFile(self.host_path(self.resolve(path)), Path("/usr/bin") / program)

    def device_files(self, nodes: Iterable[str]) -> Iterator[DeviceFile]:
        """Yield those of the nodes that exist, by names or patterns; a regular file stands for a simulated card."""
        folder = self.device_folder
        for node in nodes:
            for path in sorted(folder.glob(node)):
                is_device = stat.S_ISCHR(path.stat().st_mode)
                yield DeviceFile(self.host_path(path), Path("/dev") / path.relative_to(folder), is_device)

    def host_path(self, path: Path) -> Path:
        """Return a path under the root as the container runtime sees it; paths elsewhere are the same for both."""
        return self.on_host / path.relative_to(self.path) if path.is_relative_to(self.path) else path

    def exists_on_host(self, path: Path) -> bool:
        """Return whether a file of the host exists; one that cannot be seen from here is taken to exist."""
        if not path.is_relative_to(self.on_host):
            return True
        return self.resolve(self.path / path.relative_to(self.on_host)).exists()

    def resolve(self, path: Path) -> Path:
        """Follow the symbolic links of a file name inside the root: an absolute target starts at the root again."""
        for _ in range(_MAX_SYMLINKS):
            if not path.is_symlink():
                break
            target = path.readlink()
            path = self.path / target.relative_to("/") if target.is_absolute() else path.parent / target
        return path

    def _matches(self, pattern: str) -> Iterator[Path]:
        for folder in LIBRARY_FOLDERS:
            # Not glob(): it leaves out a link whose absolute target exists inside the root alone.
            if not (self.path / folder).is_dir():
                continue
            named = sorted(path for path in (self.path / folder).iterdir() if fnmatch(path.name, pattern))
            found = [path for path in named if self.resolve(path).is_file()]
            if found:
                yield from found
                return
