"""GETs over connections that are kept: used again, replaced when the server closed them, errors told."""

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from api import kube
from api.deadlines import within
from api.errors import ConfigError, KubeError, NotFoundError
from api.httpkube import HTTPKubeClient
from api.keptconnections import KeptConnections


class Handler(BaseHTTPRequestHandler):
    """Serves one node; remembers which connection (client port) asked."""

    protocol_version = "HTTP/1.1"
    asked_from: list[int]

    def do_GET(self) -> None:
        self.asked_from.append(self.client_address[1])
        found = self.path in {"/api/v1/nodes/here", "/api/v1/nodes/page", "/api/v1/nodes"}
        status: dict[str, Any] = {"message": "nodes not found"}
        if self.path == "/api/v1/nodes/gone":
            status |= {"details": {"name": "gone", "kind": "nodes"}}
        body = json.dumps({"metadata": {"name": "here"}} if found else status).encode()
        if self.path in {"/api/v1/nodes/page", "/api/v1/nodes"}:
            body = b"<html>sign in</html>"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if self.headers.get("Accept") == "close":
            self.close_connection = True

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


class Listening(ThreadingHTTPServer):
    """Lets many connect at once: who comes in vain tries again after a second."""

    daemon_threads = True
    request_queue_size = 128


class Server:
    """An HTTP server on a port of its own, and a client of it."""

    def __init__(self, folder: Path) -> None:
        self.asked_from: list[int] = []
        handler = type("BoundHandler", (Handler,), {"asked_from": self.asked_from})
        self._http = Listening(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        config = {
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self._http.server_port}"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        (folder / "kubeconfig").write_text(json.dumps(config))
        self.client = HTTPKubeClient(str(folder / "kubeconfig"))
        assert self.client._connections is not None  # what this file is about
        self.connections = self.client._connections

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.stop()


def test_one_connection_serves_many_requests(server: Server) -> None:
    for _ in range(5):
        assert server.client.get(kube.NODES, "here") == {"metadata": {"name": "here"}}

    assert len(set(server.asked_from)) == 1


def test_what_is_not_there_is_told_with_the_servers_words(server: Server) -> None:
    with pytest.raises(NotFoundError) as caught:
        server.client.get(kube.NODES, "gone")

    assert str(caught.value) == "GET /api/v1/nodes/gone: nodes not found"
    assert caught.value.missing == ("nodes", "gone")


def test_a_path_that_is_not_served_is_no_object_that_is_missing(server: Server) -> None:
    with pytest.raises(NotFoundError) as caught:
        server.client.get(kube.claims("v1"), "train", "default")

    assert caught.value.missing is None


def test_an_answer_that_is_no_json_is_told_as_such(server: Server) -> None:
    expected = r"found '<html>sign in</html>', expected JSON from the API server$"

    with pytest.raises(KubeError, match=f"^GET /api/v1/nodes/page: {expected}"):
        server.client.get(kube.NODES, "page")
    with pytest.raises(KubeError, match=f"^GET /api/v1/nodes: {expected}"):
        server.client.list(kube.NODES)


def test_a_connection_that_the_server_closed_is_replaced(server: Server) -> None:
    server.connections.get("/api/v1/nodes/here", {"Accept": "close"})

    server.client.get(kube.NODES, "here")

    assert len(set(server.asked_from)) == 2


def test_requests_at_once_have_a_connection_each(server: Server) -> None:
    barrier = threading.Barrier(4)

    def ask() -> None:
        barrier.wait()
        server.client.get(kube.NODES, "here")

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(server.asked_from) == 4


def test_a_quiet_watch_asks_the_network_whether_the_server_is_still_there(server: Server) -> None:
    with pytest.raises(NotFoundError):
        server.client.list(kube.PODS)

    pool = server.client._pool.connection_from_url(server.client._configuration.host)
    used: Any = pool._get_conn()

    assert used.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    idle_s, between_s, probes = (
        used.sock.getsockopt(socket.IPPROTO_TCP, option)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    )
    assert idle_s + between_s * probes <= 60
    used.close()


def test_a_server_that_says_nothing_is_waited_for_once_and_not_on_each_idle_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        configuration = client.Configuration()
        configuration.host = f"http://127.0.0.1:{listener.getsockname()[1]}"
        connections = KeptConnections(configuration, timeout_s=0.2)
        port = listener.getsockname()[1]
        idle = [http.client.HTTPConnection("127.0.0.1", port, timeout=0.2) for _ in range(5)]
        for connection in idle:
            connection.connect()
        connections._idle.extend(idle)

        with pytest.raises(KubeError, match=r"^GET /: no answer from the API server: TimeoutError"):
            connections.get("/", {})

        assert len(connections._idle) == 4
        connections.close()


def test_many_objects_are_got_at_once_in_order_with_an_error_for_those_that_are_not_there(server: Server) -> None:
    names = ["gone" if number % 10 == 3 else "here" for number in range(40)]

    found = server.client.get_all([kube.Wanted(kube.NODES, name) for name in names])

    assert [isinstance(one, NotFoundError) for one in found] == [name == "gone" for name in names]
    assert all(one == {"metadata": {"name": "here"}} for one in found if not isinstance(one, KubeError))
    assert len(set(server.asked_from)) == 16  # each connection is used again


def test_objects_are_got_at_once_over_new_connections_when_the_server_closed_the_idle_ones(server: Server) -> None:
    for connection in [server.connections._take(1)[0] for _ in range(3)]:
        connection.connect()
        assert connection.sock is not None
        connection.sock.shutdown(socket.SHUT_RDWR)
        server.connections._idle.append(connection)

    found = server.client.get_all([kube.Wanted(kube.NODES, "here")] * 5)

    assert found == [{"metadata": {"name": "here"}}] * 5


def test_a_server_that_says_nothing_is_waited_for_once_by_all_who_ask_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        configuration = client.Configuration()
        configuration.host = f"http://127.0.0.1:{listener.getsockname()[1]}"
        connections = KeptConnections(configuration, timeout_s=0.2)

        found = connections.get_all([f"/{number}" for number in range(40)], {})

        assert [str(one) for one in found] == ["GET /0: no answer from the API server: TimeoutError('timed out')"] * 40
        assert not connections._idle


def test_a_server_that_sends_a_little_now_and_then_does_not_outlast_the_deadline_of_the_call() -> None:
    ended = threading.Event()

    def trickle(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not ended.wait(0.01):
                connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        configuration = client.Configuration()
        configuration.host = f"http://127.0.0.1:{listener.getsockname()[1]}"
        connections = KeptConnections(configuration, timeout_s=1000)
        server = threading.Thread(target=trickle, args=(listener,))
        server.start()

        with pytest.raises(KubeError, match=r"^GET /: no answer from the API server: TimeoutError"), within(0.1):
            connections.get("/", {})

        ended.set()
        server.join()
        connections.close()


def test_a_server_that_is_away_is_told_at_once(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.stop()

    with pytest.raises(KubeError, match=r"GET /api/v1/nodes/here: no answer from the API server: ConnectionRefused"):
        server.client.get(kube.NODES, "here")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_an_api_server_that_is_busy_is_told_by_its_status_and_when_to_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def refuse(handler: Handler) -> None:
        handler.send_response(429)
        handler.send_header("Retry-After", "7")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    monkeypatch.setattr(Handler, f"do_{method}", refuse, raising=False)
    server = Server(tmp_path)
    try:
        with pytest.raises(KubeError) as caught:
            server.client._request(method, "/api/v1/nodes")
        assert (caught.value.status, caught.value.wait_s) == (429, 7.0)
        if method == "GET":  # the same over the connections that are kept
            with pytest.raises(KubeError) as caught:
                server.client.get(kube.NODES, "here")
            assert (caught.value.status, caught.value.wait_s) == (429, 7.0)
            (refused,) = server.client.get_all([kube.Wanted(kube.NODES)])
            assert isinstance(refused, KubeError)
            assert (refused.status, refused.wait_s) == (429, 7.0)
    finally:
        server.stop()


@pytest.mark.parametrize(
    "content",
    [
        b"[1]",
        b"words",
        b"a: [",
        b"\xff\xfe\x00",
        b'{"server": "https://127.0.0.1:99999"}',
        b'{"server": "https://127.0.0.1", "certificate-authority-data": "bm9uZQ=="}',
    ],
)
def test_a_kubeconfig_that_is_none_is_refused_by_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "kubeconfig"
    if content.startswith(b"{"):
        config = {
            "clusters": [{"name": "c", "cluster": json.loads(content)}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        content = json.dumps(config).encode()
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=f"^Kubernetes configuration {path}: "):
        HTTPKubeClient(str(path))
