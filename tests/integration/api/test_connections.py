"""Connections to a real API server, over TLS."""

import contextlib
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from api.endings import Ending
from api.errors import KubeError
from api.httpkube import HTTPKubeClient
from api.kube import NODES, Selection
from deploy.local.cluster import Cluster

pytestmark = pytest.mark.cluster

Client = Callable[[str], HTTPKubeClient]


@pytest.fixture
def client(api_server: Cluster, tmp_path: Path) -> Client:
    """A function that returns a client which expects the server to have a certificate for a name."""

    def client(tls_server_name: str) -> HTTPKubeClient:
        config = yaml.safe_load(api_server.kubeconfig.read_text())
        config["clusters"][0]["cluster"]["tls-server-name"] = tls_server_name
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return HTTPKubeClient(str(path))

    return client


def test_the_certificate_is_checked_for_the_name_that_the_kubeconfig_gives(client: Client) -> None:
    assert client("kubernetes.default.svc").list(NODES)["kind"] == "NodeList"
    refusal = r"certificate is not valid for 'other\.example'"
    with pytest.raises(KubeError, match=refusal):
        client("other.example").list(NODES)
    with pytest.raises(KubeError, match=refusal):
        client("other.example").get(NODES, "any")


def test_a_watch_ends_as_soon_as_its_work_does(api_server: Cluster) -> None:
    client, ending, begun = HTTPKubeClient(str(api_server.kubeconfig)), Ending(), threading.Event()
    name = f"watched-{uuid.uuid4()}"

    def watch() -> None:
        with contextlib.suppress(KubeError):
            for _ in client.watch(NODES, "0", Selection(fields=f"metadata.name={name}"), 300, ending):
                begun.set()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    client.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    try:
        assert begun.wait(60)
        ending.set()
        thread.join(60)
        assert not thread.is_alive()
    finally:
        client.delete(NODES, {"metadata": {"name": name}})
