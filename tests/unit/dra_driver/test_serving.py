"""The status server: probes that tell why, and metrics."""

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from api.errors import ConfigError
from dra_driver import serving
from dra_driver.serving import StatusServer


def _has_ipv6() -> bool:
    """Tell whether there is an address to listen on: Python may know IPv6 where the machine has none."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return socket.has_dualstack_ipv6()


class _Service:
    def __init__(self) -> None:
        self.problem = ""

    def probe(self) -> str:
        return self.problem


@pytest.fixture
def service() -> _Service:
    return _Service()


@pytest.fixture
def server(service: _Service) -> Iterator[StatusServer]:
    server = StatusServer("127.0.0.1:0", alive=lambda: "", ready=service.probe)
    server.start()
    yield server
    server.stop()


def _get(server: StatusServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_probe_answers_ok_or_the_reason(server: StatusServer, service: _Service) -> None:
    assert _get(server, "/readyz") == (200, "ok\n")
    service.problem = "not registered with the kubelet"
    assert _get(server, "/readyz") == (503, "not registered with the kubelet\n")
    assert _get(server, "/healthz") == (200, "ok\n")


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
def test_without_an_address_both_ip_versions_are_served() -> None:
    # The kubelet probes the pod's address, which in some clusters is an IPv6 one.
    server = StatusServer(":0", alive=lambda: "", ready=lambda: "")
    server.start()
    for address in ("127.0.0.1", "::1"):
        socket.create_connection((address, server.port), timeout=10).close()
    assert _get(server, "/healthz") == (200, "ok\n")
    server.stop()


def test_metrics_are_served(server: StatusServer) -> None:
    status, text = _get(server, "/metrics")
    assert status == 200
    assert "process_resident_memory_bytes" in text


def test_another_page_is_not_there(server: StatusServer) -> None:
    assert _get(server, "/") == (404, "no such page: /metrics, /healthz, /readyz\n")


def test_a_port_in_use_is_an_error_of_the_start(server: StatusServer) -> None:
    with pytest.raises(ConfigError, match=rf"^setting listen: found '127.0.0.1:{server.port}', expected an address"):
        StatusServer(f"127.0.0.1:{server.port}", alive=lambda: "", ready=lambda: "")


def test_those_who_connect_and_say_nothing_are_not_waited_for(
    server: StatusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving._QuietHandler, "timeout", 0.3)
    silent = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(40)]
    try:
        ends = [connection.recv(1) for connection in silent]  # comes back when the server closes it
        assert ends == [b""] * 40
    finally:
        for connection in silent:
            connection.close()
    assert _get(server, "/healthz") == (200, "ok\n")


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
def test_an_ipv6_address_stands_in_brackets() -> None:
    server = StatusServer("[::1]:0", alive=lambda: "", ready=lambda: "")
    server.start()
    socket.create_connection(("::1", server.port), timeout=10).close()
    server.stop()
