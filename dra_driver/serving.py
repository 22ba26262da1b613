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


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _DualStackServer(_Server):
    """Serves IPv4 and IPv6 on one socket."""

    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        _log.debug(format % args)


class StatusServer:
    """Serves metrics and probes in a thread of its own, from start() until stop()."""

    def __init__(self, listen: str, alive: Probe, ready: Probe) -> None:
        """Bind at once, so that a port in use is an error of the start.

        Args:
            listen: `address:port`; no address: all. Port 0 takes a free one.
            alive: liveness; a restart should help when it gives a reason.
            ready: readiness.

        Raises:
            ConfigError: the address cannot be bound.
        """
        host, _, port = listen.rpartition(":")
        self._probes = {"/healthz": alive, "/readyz": ready}
        self._metrics = make_wsgi_app(REGISTRY)
        kind = _DualStackServer if not host and socket.has_dualstack_ipv6() else _Server
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
