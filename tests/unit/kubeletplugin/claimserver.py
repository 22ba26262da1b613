"""An API server for agents in processes of their own: serves the claims that a test puts into it, over HTTP."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from api import kube
from tests.unit.kubeletplugin.builders import CLAIMS, NODE


class ClaimServer:
    """Serves from its making until close()."""

    def __init__(self, folder: Path) -> None:
        """Take where the kubeconfig goes."""
        self._answers: dict[str, Any] = {
            kube.NODES.path(name=NODE): {"metadata": {"uid": "node-uid"}},
            "/apis/resource.k8s.io": {"versions": [{"version": "v1"}]},
        }
        handler = type("BoundHandler", (_Handler,), {"answers": self._answers})
        self._http = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), name="claims")
        self._thread.start()
        config = {
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self._http.server_port}"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(json.dumps(config))

    def add(self, claim: dict[str, Any]) -> None:
        """Serve a claim from now on."""
        self._answers[_path(claim)] = claim

    def remove(self, claim: dict[str, Any]) -> None:
        """Serve a claim no longer."""
        del self._answers[_path(claim)]

    def close(self) -> None:
        """End."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def _path(claim: dict[str, Any]) -> str:
    return CLAIMS.path(claim["metadata"]["namespace"], claim["metadata"]["name"])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # who comes in vain tries again after a second

    def handle_error(self, *_arguments: object) -> None:
        """Agents that are killed leave broken connections."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    answers: dict[str, Any]

    def do_GET(self) -> None:
        found = self.answers.get(self.path)
        self._answer(200 if found else 404, found or {"message": "not found"})

    def do_PATCH(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, {"metadata": {}, "status": {}})

    def do_POST(self) -> None:
        self.do_PATCH()

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, answer: Any) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
