"""Requests to an API server that is silent, that closes connections, or that lies behind a proxy."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from api import httpkube
from api.endings import Ending
from api.errors import ConfigError, KubeError
from api.httpkube import HTTPKubeClient
from api.kube import NODES

OBJECT = {"metadata": {"name": "here"}}
_BODY = json.dumps(OBJECT).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


class Server:
    """Answers the requests that come, in their order, as it was told; what is not told gets no answer."""

    def __init__(self, answers: list[bytes | None]) -> None:
        """Send one answer a request; None: close the connection instead."""
        self.requests: list[str] = []
        self.heard = threading.Event()
        self.tokens: list[str] = []
        """What the requests were authorised by."""
        self._answers = answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._stopped = False
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as lines:
            while line := lines.readline():
                length = 0
                while (header := lines.readline().strip()) != b"":
                    name, _, value = header.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                    if name.lower() == b"authorization":
                        self.tokens.append(value.decode().strip())
                lines.read(length)
                self.requests.append(line.decode().rpartition(" ")[0])
                self.heard.set()
                answer = self._answers.pop(0) if self._answers else b""
                if answer is None:
                    return
                connection.sendall(answer)


Start = Callable[..., Server]


@pytest.fixture
def start() -> Iterator[Start]:
    servers: list[Server] = []

    def start(*answers: bytes | None) -> Server:
        servers.append(Server(list(answers)))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., HTTPKubeClient]:
    """A function that returns a client of a server."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def client(server: str, **cluster: str) -> HTTPKubeClient:
        config = {
            "clusters": [{"name": "c", "cluster": {"server": server, **cluster}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        (tmp_path / "kubeconfig").write_text(json.dumps(config))
        return HTTPKubeClient(str(tmp_path / "kubeconfig"))

    return client


Client = Callable[..., HTTPKubeClient]


@pytest.mark.parametrize(("minor", "expected"), [('"34"', 34), ('"34+"', 34)])
def test_the_server_tells_its_minor_version(start: Start, client: Client, minor: str, expected: int) -> None:
    body = b'{"major": "1", "minor": %s}' % minor.encode()
    server = start(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    assert client(server.address).server_minor() == expected
    assert server.requests == ["GET /version"]


def test_a_server_that_tells_no_minor_version_is_named_with_what_it_said(start: Start, client: Client) -> None:
    body = b'{"minor": "x"}'
    server = start(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    with pytest.raises(KubeError, match=r"^GET /version: found minor 'x', expected a number$"):
        client(server.address).server_minor()


def test_a_silent_server_is_waited_for_once(start: Start, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpkube, "_TIMEOUT_S", 0.2)
    server = start()
    with pytest.raises(KubeError, match=r"^GET /api/v1/nodes: no answer from the API server: .*timed out"):
        client(server.address).list(NODES)
    server.heard.wait()  # it may read the request only now
    server.stop()
    assert server.requests == ["GET /api/v1/nodes"]


def test_a_connection_that_the_server_closed_meanwhile_costs_nothing_but_a_second_try(
    start: Start, client: Client
) -> None:
    server = start(ANSWER, None, ANSWER)
    kube = client(server.address)
    assert kube.list(NODES) == OBJECT
    assert kube.replace(NODES, OBJECT) == OBJECT
    assert server.requests == ["GET /api/v1/nodes", "PUT /api/v1/nodes/here", "PUT /api/v1/nodes/here"]


def test_what_could_be_created_twice_is_not_sent_twice(start: Start, client: Client) -> None:
    server = start(None, ANSWER)
    with pytest.raises(KubeError, match=r"^POST /api/v1/nodes: no answer from the API server: "):
        client(server.address).create(NODES, OBJECT)
    assert server.requests == ["POST /api/v1/nodes"]


def test_requests_go_by_the_proxy_of_the_kubeconfig(start: Start, client: Client) -> None:
    proxy = start(ANSWER, ANSWER)
    kube = client("http://api.invalid:6443", **{"proxy-url": proxy.address})
    assert kube.get(NODES, "here") == OBJECT
    assert kube.list(NODES) == OBJECT
    assert proxy.requests == [
        "GET http://api.invalid:6443/api/v1/nodes/here",
        "GET http://api.invalid:6443/api/v1/nodes",
    ]


def test_hosts_that_the_environment_exempts_are_asked_without_its_proxy(
    start: Start, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, proxy = start(ANSWER), start(ANSWER)
    monkeypatch.setenv("http_proxy", proxy.address)
    assert client("http://api.invalid").list(NODES) == OBJECT
    monkeypatch.setenv("no_proxy", "127.0.0.0/8")
    assert client(server.address).list(NODES) == OBJECT
    assert proxy.requests == ["GET http://api.invalid/api/v1/nodes"]
    assert server.requests == ["GET /api/v1/nodes"]


def test_a_proxy_that_we_cannot_use_is_refused(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        client("https://api.invalid", **{"proxy-url": "socks5://127.0.0.1:1080"})
    assert str(refused.value) == (
        f"Kubernetes configuration {tmp_path / 'kubeconfig'}: proxy-url: found 'socks5://127.0.0.1:1080', expected one "
        "that begins with http:// or https://"
    )


def test_a_kubeconfig_whose_plug_in_for_credentials_is_not_there_says_so(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such-plugin"}
    config = {
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"exec": plugin}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError) as error:
        HTTPKubeClient(str(path))
    assert str(error.value) == (
        f"Kubernetes configuration {path}: found no credentials: [Errno 2] No such file or directory: "
        "'no-such-plugin'; expected a token or a certificate"
    )


def test_an_object_that_somebody_nested_deep_hides_no_other(start: Start, client: Client) -> None:
    deep = f'{{"metadata": {{"name": "deep"}}, "spec": {"[" * 5000}{"]" * 5000}}}'
    events = [f'{{"type": "ADDED", "object": {each}}}' for each in (deep, json.dumps(OBJECT))]
    bodies = [f'{{"items": [{deep}, {json.dumps(OBJECT)}]}}', "\n".join([*events, ""])]
    server = start(*(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(b), b.encode()) for b in bodies))
    kube = client(server.address)
    assert [obj["metadata"]["name"] for obj in kube.list(NODES)["items"]] == ["deep", "here"]
    assert [event.object["metadata"]["name"] for event in kube.watch(NODES, "1")] == ["deep", "here"]


@pytest.mark.parametrize("when", ["before", "while it waits"])
def test_a_watch_that_hears_nothing_ends_as_soon_as_its_work_does(start: Start, client: Client, when: str) -> None:
    event = b'{"type": "ADDED", "object": {"metadata": {"name": "here"}}}\n'
    server = start(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(event), event))
    ending, seen = Ending(), threading.Event()

    def watch() -> None:
        with contextlib.suppress(KubeError):
            for _ in client(server.address).watch(NODES, "1", timeout_s=300, ending=ending):
                seen.set()

    if when == "before":
        ending.set()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    if when != "before":
        assert seen.wait(60)
        ending.set()
    thread.join(60)
    assert not thread.is_alive()


_REFUSED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "pooled"])
def test_a_token_that_expired_is_read_anew_once_the_server_refused_it(
    start: Start, tmp_path: Path, *, kept: bool
) -> None:
    server = start(ANSWER, _REFUSED, _REFUSED, ANSWER)
    token, kubeconfig = tmp_path / "token", tmp_path / "kubeconfig"
    token.write_text("first")
    config = {
        "clusters": [{"name": "c", "cluster": {"server": server.address}}],
        "users": [{"name": "u", "user": {"tokenFile": str(token)}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    kubeconfig.write_text(json.dumps(config))
    kube = HTTPKubeClient(str(kubeconfig))

    def ask() -> object:
        return kube.get(NODES, "here") if kept else kube.list(NODES)

    assert ask() == OBJECT
    for _ in range(2):  # an hour without an API server: nobody could bring a new one yet
        with pytest.raises(KubeError) as caught:
            ask()
        assert caught.value.status == 401
    token.write_text("second")

    assert ask() == OBJECT
    assert server.tokens == ["Bearer first"] * 3 + ["Bearer second"]


def test_credentials_that_cannot_be_read_are_an_error_of_the_request_and_not_of_the_program(
    start: Start, client: Client, tmp_path: Path
) -> None:
    kube = client(start(_REFUSED, ANSWER).address)
    with pytest.raises(KubeError, match="401"):
        kube.get(NODES, "here")
    content = (tmp_path / "kubeconfig").read_text()
    (tmp_path / "kubeconfig").write_text("")

    with pytest.raises(KubeError, match=r"^credentials for the API server cannot be read: Kubernetes configuration "):
        kube.get(NODES, "here")

    (tmp_path / "kubeconfig").write_text(content)
    assert kube.get(NODES, "here") == OBJECT
