"""The HTTP side of the long-running commands: /metrics, /healthz and /readyz on `--listen`."""

import logging
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import REGISTRY, make_wsgi_app

from api.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Probe = Callable[[], str]
"""Returns why something is not so; an empty string: all is well."""

_log = logging.getLogger(__name__)


_PATIENCE_S = 5.0
"""Who is connected and says nothing, or does not read, is not waited for any longer."""
_AT_ONCE = 16
"""Requests that are answered at once; others are closed. Prometheus and the kubelet ask one at a time."""


class _Server(ThreadingMixIn, WSGIServer):
    """Anybody on the pod network can connect, and must not take threads and descriptors from those who need claims."""

    daemon_threads = True
    request_queue_size = 128
    """Who comes in vain tries again after a second, which may be all the time that a probe has."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(*arguments, **options)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's
        _log.debug("a request for the status came to nothing", exc_info=True)


class _IPv6Server(_Server):
    address_family = socket.AF_INET6


class _DualStackServer(_IPv6Server):
    """Serves IPv4 and IPv6 on one socket."""

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _QuietHandler(WSGIRequestHandler):
    timeout = _PATIENCE_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        _log.debug(format % args)


class StatusServer:
    """Serves metrics and probes in a thread of its own, from start() until stop()."""

    def __init__(self, listen: str, alive: Probe, ready: Probe) -> None:
        """Bind at once, so that a port in use is an error of the start.

        Args:
            listen: `address:port`, an IPv6 address in brackets; no address: all. Port 0 takes a free one.
            alive: liveness; a restart should help when it gives a reason.
            ready: readiness.

        Raises:
            ConfigError: the address cannot be bound.
        """
        host, _, port = listen.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        self._probes = {"/healthz": alive, "/readyz": ready}
        self._metrics = make_wsgi_app(REGISTRY)
        kind = _Server
        if ":" in host:
            kind = _IPv6Server
        elif not host and socket.has_dualstack_ipv6():
            kind = _DualStackServer
        try:
            self._server = make_server(host, int(port), self._answer, server_class=kind, handler_class=_QuietHandler)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"setting listen: found {listen!r}, expected an address that can be bound: {error}"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="status-server", daemon=True)

    @property
    def port(self) -> int:
        """The port that is served."""
        return self._server.server_port

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environment: "WSGIEnvironment", respond: "StartResponse") -> Iterable[bytes]:
        path = environment.get("PATH_INFO", "")
        if path == "/metrics":
            page: Iterable[bytes] = self._metrics(environment, respond)
            return page
        probe = self._probes.get(path)
        reason = probe() if probe else "no such page: /metrics, /healthz, /readyz"
        status = "404 Not Found" if probe is None else "503 Service Unavailable" if reason else "200 OK"
        respond(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{reason or 'ok'}\n".encode()]
