"""Serves the plugin's sockets: DRA and health on one, registration on the other.

Called by the agent. The registration socket comes last and goes first: the kubelet never finds a plugin that does not
answer.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

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
        self._registration = RegistrationService(driver_name, str(paths.service))
        self._servers: list[grpc.Server] = []
        self._pools: list[ThreadPoolExecutor] = []

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
        service = self._server(_CALL_THREADS, "calls")
        add_dra_services(service, self._services)
        add_health_services(service, self._health)
        registration = self._server(2, "registration")
        add_registration_service(registration, self._registration)
        for server, path in ((service, self._paths.service), (registration, self._paths.registration)):
            try:
                server.add_insecure_port(f"unix:{path}")
            except RuntimeError as error:
                raise StateError(f"socket {path}: cannot be bound: {error}") from error
            server.start()
            self._servers.insert(0, server)
            path.chmod(0o600)
        _log.info("serving", extra={"socket": str(self._paths.service)})

    def stop(self) -> None:
        """Stop both servers, registration first, and give the lock back."""
        for server in self._servers:
            server.stop(_GRACE_S).wait()
        self._servers.clear()
        for service in self._services:
            service.close()
        for pool in self._pools:
            pool.shutdown()
        self._paths.unlink()
        self._lock.release()

    def registration_problem(self) -> str:
        """Return why the kubelet does not call us, empty if it does."""
        return self._registration.problem()

    def lost(self) -> str:
        """Return the path of a socket that somebody removed, so that nobody can call us; empty: both are there."""
        return self._paths.missing() if self._servers else ""

    def _server(self, threads: int, name: str) -> grpc.Server:
        pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._pools.append(pool)
        return grpc.server(pool, options=[("grpc.so_reuseport", 0)])
