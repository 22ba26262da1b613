"""The sockets of the plugin: where they are, and that nobody else has them.

Called by the agent. The kubelet finds plugins by what appears in its `plugins_registry` folder.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from api.errors import ConfigError, StateError
from kubeletplugin.files import FileLock

_log = logging.getLogger(__name__)
_LOCK_SUFFIX = ".lock"
_MAX_BYTES = 107
"""sockaddr_un.sun_path without its NUL."""
_UID_CHARACTERS = 8
"""Of the pod's UID in a path: all 36 would leave no room for folders such as those of MicroK8s. Two pods of a node with
the same ones would find each other's lock."""


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
        own = f"-{pod_uid[:_UID_CHARACTERS]}" if pod_uid else ""
        paths = cls(
            registration=kubelet_dir / "plugins_registry" / f"{driver_name}{own}-reg.sock",
            service=kubelet_dir / "plugins" / driver_name / f"dra{own}.sock",
        )
        for path in (paths.registration, paths.service):
            length = len(str(path).encode())
            if length > _MAX_BYTES:
                raise ConfigError(
                    f"socket {path}: found {length} characters, expected at most {_MAX_BYTES}: choose a shorter "
                    "--driver-name or --kubelet-dir"
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
        return FileLock(self.service.with_name(self.service.name + _LOCK_SUFFIX))

    def remove_stale(self) -> None:
        """Remove the sockets of instances that were killed: the kubelet would call them, and their pods are gone.

        Whoever lives holds its lock, from before it makes its sockets until after it has removed them.
        """
        for other in self._others():
            lock = other.lock()
            try:
                lock.acquire()
            except StateError:
                continue
            try:
                other.unlink()
            finally:
                lock.release()
            _log.warning("sockets of an instance that was killed removed", extra={"socket": str(other.service)})

    def unlink(self) -> None:
        """Remove both sockets, the registration first: the kubelet finds no plugin that does not answer."""
        for path in (self.registration, self.service):
            path.unlink(missing_ok=True)

    def _others(self) -> Iterator["SocketPaths"]:
        """Yield the sockets of all instances of this driver but this one, by their locks."""
        driver_name = self.service.parent.name
        for path in sorted(self.service.parent.glob(f"dra*.sock{_LOCK_SUFFIX}")):
            own = path.name.removeprefix("dra").removesuffix(f".sock{_LOCK_SUFFIX}")
            other = SocketPaths(
                registration=self.registration.with_name(f"{driver_name}{own}-reg.sock"),
                service=path.with_name(f"dra{own}.sock"),
            )
            if other != self:
                yield other
