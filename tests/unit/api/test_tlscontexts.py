"""Certificates that are rotated while the driver runs: new connections use what the files hold then."""

import json
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from api import kube
from api.errors import KubeError
from api.httpkube import HTTPKubeClient

NODE = {"metadata": {"name": "here"}}


class Handler(BaseHTTPRequestHandler):
    """Serves one node, one connection for each request."""

    def do_GET(self) -> None:
        body = json.dumps(NODE).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


class QuietServer(ThreadingHTTPServer):
    """Refused handshakes are what this file is about: no news."""

    def handle_error(self, *_arguments: object) -> None:
        """Say nothing."""


class Server:
    """An API server that shows one certificate, and asks for one of a client."""

    def __init__(self, certificates: "Certificates", shows: str, trusts: str, port: int = 0) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.file(shows), certificates.key(shows))
        context.load_verify_locations(certificates.file(trusts))
        context.verify_mode = ssl.CERT_REQUIRED
        self._http = QuietServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._http.server_port
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class Certificates:
    """Self-signed ones, and the files that a kubeconfig names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("server-1", "server-2", "client-1", "client-2"):
            command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
            command += ["-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
            command += ["-keyout", str(self.key(name)), "-out", str(self.file(name))]
            subprocess.run(command, check=True, capture_output=True)

    def file(self, name: str) -> Path:
        return self._folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self._folder / f"{name}.key"

    def use(self, kind: str, name: str) -> None:
        """Put a certificate in its place at once, as the kubelet does."""
        for suffix in ("crt", "key"):
            new = self._folder / f"new.{suffix}"
            new.write_bytes((self._folder / f"{name}.{suffix}").read_bytes())
            new.replace(self._folder / f"{kind}.{suffix}")

    def client(self, port: int) -> HTTPKubeClient:
        cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(self.file("ca"))}
        user = {"client-certificate": str(self.file("me")), "client-key": str(self.key("me"))}
        config = {
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path = self._folder / "kubeconfig"
        path.write_text(json.dumps(config))
        return HTTPKubeClient(str(path))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def certificates(made: Certificates) -> Certificates:
    made.use("ca", "server-1")
    made.use("me", "client-1")
    return made


@pytest.mark.parametrize(
    ("kind", "shows", "trusts", "new"),
    [("ca", "server-2", "client-1", "server-2"), ("me", "server-1", "client-2", "client-2")],
    ids=["the CA of the API server", "the client's certificate"],
)
def test_what_is_rotated_is_used_by_the_next_connection(
    certificates: Certificates, kind: str, shows: str, trusts: str, new: str
) -> None:
    server = Server(certificates, "server-1", "client-1")
    client = certificates.client(server.port)
    try:
        assert client.get(kube.NODES, "here") == NODE
    finally:
        server.stop()
    server = Server(certificates, shows, trusts, server.port)
    try:
        with pytest.raises(KubeError, match=r"no answer from the API server: .*SSL"):
            client.get(kube.NODES, "here")

        certificates.use(kind, new)

        assert client.get(kube.NODES, "here") == NODE
        assert client.list(kube.NODES) == NODE
    finally:
        server.stop()


def test_a_replacement_that_is_half_done_changes_nothing_yet(certificates: Certificates) -> None:
    server = Server(certificates, "server-1", "client-1")
    client = certificates.client(server.port)
    try:
        certificates.file("me").write_text("-----BEGIN CERT")

        assert client.get(kube.NODES, "here") == NODE
    finally:
        server.stop()
