"""Serves the plugin's sockets: DRA and health on one, registration on the other.

Called by the agent. The registration socket comes last and goes first: the kubelet never finds a plugin that does not
answer. Sockets that somebody removes (a kubelet that is installed anew, a cleaner) are bound again: nobody could find
the plugin otherwise until its next start.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc

from api.errors import StateError
from kubeletplugin.kubelet.registration import RegistrationService, add_registration_service
from kubeletplugin.kubelet.services import DRAService, HealthSettings, add_dra_services, add_health_services
from kubeletplugin.kubelet.sockets import SocketPaths

_log = logging.getLogger(__name__)

_CALL_THREADS = 16
"""More than the calls that wait for disk or API server at once help; health streams keep one each."""
_GRACE_S = 10.0
"""For calls that run when the agent stops."""
_LOOK_S = 5.0
"""Between two looks whether the sockets are still there."""

_Identity = tuple[int, int, int]
"""Device, inode and time of making: of another file another one, also where inodes are used again at once."""


@dataclass(frozen=True)
class _Bound:
    """A server on a socket."""

    server: grpc.Server
    pool: ThreadPoolExecutor
    identity: _Identity | None
    """Of the file that it made."""

    def stop(self) -> None:
        self.server.stop(_GRACE_S).wait()
        self.pool.shutdown()


class PluginServer:
    """Both sockets, from start() until stop()."""

    def __init__(
        self, paths: SocketPaths, driver_name: str, services: Sequence[DRAService], health: HealthSettings
    ) -> None:
        """Take what is served; nothing is bound yet."""
        self._paths = paths
        self._driver_name = driver_name
        self._services = services
        self._health = health
        self._lock = paths.lock()
        self._registration = self._new_registration()
        self._changing = threading.Lock()
        """Held by who binds sockets or gives them up."""
        self._bound: dict[Path, _Bound] = {}
        self._stopped = False
        self._problem = ""
        """Why a socket that is gone cannot be bound again."""

    def lock(self) -> None:
        """Make sure that no other instance has the sockets.

        Raises:
            StateError: one has.
        """
        self._paths.create_folders()
        self._lock.acquire()
        self._paths.remove_stale()

    def start(self) -> None:
        """Bind both sockets; the lock must be held.

        Raises:
            StateError: a socket cannot be bound.
        """
        with self._changing:
            for path in self._all():
                self._bind(path)
        _log.info("serving", extra={"socket": str(self._paths.service)})

    def watch_until(self, stopping: threading.Event) -> None:
        """Bind sockets again that somebody takes away, until the event is set."""
        while not stopping.wait(_LOOK_S):
            self.mend()

    def mend(self) -> None:
        """Bind sockets again that are no longer in their places. Calls that run on the old ones are answered."""
        with self._changing:
            if self._stopped:
                return
            problems = [problem for path in self._all() if (problem := self._mend(path))]
            if problems and not self._problem:
                _log.error("socket cannot be bound again", extra={"problem": problems[0]})
            self._problem = "".join(problems[:1])

    def _mend(self, path: Path) -> str:
        """See to it that a socket is in its place; return why it cannot be."""
        bound = self._bound.get(path)
        if bound is not None:
            if bound.identity == _identity(path):
                return ""
            _log.warning("socket is gone: bound again", extra={"socket": str(path)})
            self._bound.pop(path).stop()
        try:
            self._paths.create_folders()
            self._bind(path)
        except StateError as error:
            return f"socket {path} is gone: {error}"
        return ""

    def stop(self) -> None:
        """Stop both servers, registration first, and give the lock back."""
        with self._changing:
            self._stopped = True
            for path in reversed(self._all()):
                if path in self._bound:
                    self._bound.pop(path).stop()
        for service in self._services:
            service.close()
        self._paths.unlink()
        self._lock.release()

    def registration_problem(self) -> str:
        """Return why the kubelet does not call us, empty if it does."""
        return self._problem or self._registration.problem()

    def problem(self) -> str:
        """Return why no kubelet can call us before the next start, empty if it can."""
        return self._problem

    def _all(self) -> tuple[Path, Path]:
        return self._paths.service, self._paths.registration

    def _bind(self, path: Path) -> None:
        if path == self._paths.registration:
            self._registration = self._new_registration()  # that file is new to the kubelet: it asks again
            bound = self._serve(
                path, 2, "registration", lambda server: add_registration_service(server, self._registration)
            )
        else:
            bound = self._serve(path, _CALL_THREADS, "calls", self._add_services)
        self._bound[path] = bound

    def _serve(self, path: Path, threads: int, name: str, add: Callable[[grpc.Server], None]) -> _Bound:
        pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        add(server)
        try:
            server.add_insecure_port(f"unix:{path}")
            server.start()
            path.chmod(0o600)
        except (RuntimeError, OSError) as error:
            _Bound(server, pool, None).stop()
            raise StateError(f"socket {path}: cannot be bound: {error}") from error
        return _Bound(server, pool, _identity(path))

    def _add_services(self, server: grpc.Server) -> None:
        add_dra_services(server, self._services)
        add_health_services(server, self._health)

    def _new_registration(self) -> RegistrationService:
        return RegistrationService(self._driver_name, str(self._paths.service))


def _identity(path: Path) -> _Identity | None:
    """Return what tells a file from all others; None: there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns
