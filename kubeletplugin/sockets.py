"""The sockets of the plugin: where they are, and that nobody else has them.

Called by the agent. The kubelet finds plugins by what appears in its `plugins_registry` folder.
"""

from dataclasses import dataclass
from pathlib import Path

from api.errors import ConfigError, StateError
from kubeletplugin.files import FileLock

_MAX_BYTES = 107
"""sockaddr_un.sun_path without its NUL."""


@dataclass(frozen=True)
class SocketPaths:
    """The two sockets. They have the same path in the agent's container and on the host."""

    registration: Path
    service: Path

    @classmethod
    def of(cls, kubelet_dir: Path, driver_name: str, pod_uid: str | None) -> "SocketPaths":
        """Return the paths under the kubelet's folder; with a pod UID two instances can run side by side.

        Raises:
            ConfigError: a path is too long for a socket.
        """
        own = f"-{pod_uid}" if pod_uid else ""
        paths = cls(
            registration=kubelet_dir / "plugins_registry" / f"{driver_name}{own}-reg.sock",
            service=kubelet_dir / "plugins" / driver_name / f"dra{own}.sock",
        )
        for path in (paths.registration, paths.service):
            length = len(str(path).encode())
            if length > _MAX_BYTES:
                raise ConfigError(
                    f"socket {path}: found {length} characters, expected at most {_MAX_BYTES}: choose a shorter "
                    "--kubelet-dir"
                )
        return paths

    def create_folders(self) -> None:
        """Create the folders of the sockets, readable for root alone."""
        for path in (self.registration, self.service):
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            except OSError as error:
                raise StateError(f"folder {path.parent}: cannot be created: {error.strerror}") from error

    def lock(self) -> FileLock:
        """Return the lock that must be held to bind them: binding a live socket steals it without a word."""
        return FileLock(self.service.with_name(f"{self.service.name}.lock"))
