"""Connections to the API server that are kept open, for the one request that must be quick: a GET.

Called by HTTPKubeClient.get and get_all. The node agent reads a claim each time the kubelet prepares it; this way it
takes a quarter of the CPU time that it takes over the general client (tests/bench/prepare.py).
"""

import http.client
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from api import kubeconfigs
from api.deadlines import left_s
from api.errors import KubeError
from api.httpreading import Answer, ask, read_answer, send
from api.tlscontexts import FreshContext

_AT_ONCE = 16
"""Requests of one caller that are on their way together."""


class KeptConnections:
    """Keeps as many connections as there are requests at once. Safe to use from several threads."""

    def __init__(self, configuration: Any, timeout_s: float) -> None:
        """Take the server and the credentials of a kubernetes.client.Configuration; nothing is connected yet."""
        server = urlsplit(configuration.host)
        self._host, self._port = server.hostname or "", server.port
        self._name = server.netloc.rpartition("@")[2]
        self._root = server.path.rstrip("/")
        self._timeout_s = timeout_s
        self._context = FreshContext(configuration) if server.scheme == "https" else None
        self._idle: deque[http.client.HTTPConnection] = deque()
        weakref.finalize(self, _close_all, self._idle)

    @staticmethod
    def can_serve(configuration: Any) -> bool:
        """Return whether there is a direct way to the server, under its own name."""
        return kubeconfigs.proxy_of(configuration) is None and not configuration.tls_server_name

    def get(self, path: str, headers: Mapping[str, str]) -> Answer:
        """Return what the server answers.

        Raises:
            KubeError: the server did not answer in time.
        """
        timeout_s = left_s(self._timeout_s)
        end_s = time.monotonic() + timeout_s
        while True:
            connection, is_new = self._take(timeout_s)
            try:
                if connection.sock is None:
                    connection.connect()
                connection.sock.settimeout(timeout_s)
                answer = ask(connection.sock, self._name, self._root + path, headers, end_s)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                # A server that says nothing would say nothing on the next connection either, each time for as long.
                if is_new or isinstance(error, TimeoutError):
                    raise KubeError(f"GET {path}: no answer from the API server: {error!r}") from error
                continue  # the server closed a connection that was idle; those that are left may be as old
            return self._finish(connection, answer)

    def get_all(self, paths: Sequence[str], headers: Mapping[str, str]) -> list[Answer | KubeError]:
        """Return the answer for each path, or why there is none; many requests are on their way at once.

        One thread does it all: with a thread for each request they would take turns, at a price for each turn.
        """
        answers: list[Answer | KubeError] = []
        flights: deque[_Flight] = deque()
        try:
            for path in paths:
                if len(flights) == _AT_ONCE:
                    answers.append(self._land(flights.popleft(), headers))
                flights.append(self._take_off(path, headers))
            while flights:
                answers.append(self._land(flights.popleft(), headers))
        except _SilentError as error:
            # The server would say nothing to the others either, each time for as long.
            for flight in flights:
                flight.connection.close()
            answers += [error] * (len(paths) - len(answers))
        return answers

    def _take_off(self, path: str, headers: Mapping[str, str]) -> "_Flight":
        timeout_s = left_s(self._timeout_s)
        connection, _ = self._take(timeout_s)
        problem = False
        try:
            if connection.sock is None:
                connection.connect()
            connection.sock.settimeout(timeout_s)
            send(connection.sock, self._name, self._root + path, headers)
        except TimeoutError as error:
            connection.close()
            raise _SilentError(f"GET {path}: no answer from the API server: {error!r}") from error
        except (OSError, http.client.HTTPException):
            problem = True
        return _Flight(path, connection, time.monotonic() + timeout_s, problem)

    def _land(self, flight: "_Flight", headers: Mapping[str, str]) -> Answer | KubeError:
        connection = flight.connection
        try:
            if not flight.problem:
                return self._finish(connection, read_answer(connection.sock, flight.end_s))
        except TimeoutError as error:
            connection.close()
            raise _SilentError(f"GET {flight.path}: no answer from the API server: {error!r}") from error
        except (OSError, http.client.HTTPException):
            pass
        connection.close()
        try:
            return self.get(flight.path, headers)  # as the server may have closed a connection that was idle
        except KubeError as error:
            return error

    def close(self) -> None:
        """Close the connections that nobody uses now."""
        _close_all(self._idle)

    def _finish(self, connection: http.client.HTTPConnection, answer: Answer) -> Answer:
        if answer.reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def _take(self, timeout_s: float) -> tuple[http.client.HTTPConnection, bool]:
        try:
            return self._idle.pop(), False
        except IndexError:
            pass
        if self._context is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s), True
        return http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._context.get()), True


@dataclass(frozen=True)
class _Flight:
    """A request that is on its way."""

    path: str
    connection: http.client.HTTPConnection
    end_s: float
    """When its answer must be there, by the monotonic clock."""
    problem: bool
    """It could not be sent."""


class _SilentError(KubeError):
    """The server took a request and said nothing."""


def _close_all(connections: deque[http.client.HTTPConnection]) -> None:
    while connections:
        connections.pop().close()
