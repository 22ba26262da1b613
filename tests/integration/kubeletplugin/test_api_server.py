"""The agent against a real API server: what it states is stored as stated, claims are read as they were allocated."""

import contextlib
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from api import kube, nodeinventory
from api.errors import ConflictError, KubeError, NotFoundError
from api.httpkube import HTTPKubeClient
from api.kube import Resource
from deploy.local.cluster import Cluster
from kubeletplugin.agent import NodeAgent
from kubeletplugin.hardware.discovery import FakeDiscovery
from libvgpu.shares import read_limits
from tests.unit.kubeletplugin.builders import CLAIMS, GIB, NODE, claim_object, discovery, gpu, result, settings
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet, PrepareError, Ref

pytestmark = pytest.mark.cluster

CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", namespaced=False)
A = gpu(0)


@pytest.fixture
def client(api_server: Cluster) -> Iterator[HTTPKubeClient]:
    """A client of a cluster with our CRD and our node."""
    client = HTTPKubeClient(str(api_server.kubeconfig))
    with contextlib.suppress(ConflictError):
        client.create(CRDS, nodeinventory.crd())
    _wait(lambda: _is_served(client))
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
    client.create(kube.NODES, node)
    yield client
    for resource in (kube.NODES, kube.NODE_INVENTORIES):
        with contextlib.suppress(NotFoundError):
            client.delete(resource, {"metadata": {"name": NODE}})


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vgpu-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def kubelet(root: Path, client: HTTPKubeClient) -> Iterator[FakeKubelet]:
    """A kubelet with a registered agent of two devices."""
    backend = FakeDiscovery(discovery(A, gpu(1)))
    agent = NodeAgent(client, settings(root), backend, CollectorRegistry())
    agent.start()
    kubelet = FakeKubelet(root / "kubelet")
    kubelet.register()
    yield kubelet
    kubelet.close()
    agent.stop()


@pytest.fixture
def allocate(client: HTTPKubeClient) -> Iterator[Callable[..., Ref]]:
    """Stores claims with an allocation, as the scheduler would."""
    made: list[dict[str, Any]] = []

    def store(*results: dict[str, Any]) -> Ref:
        claim = claim_object(f"agent-{uuid.uuid4()}", results)
        claim["metadata"].pop("uid")
        stored = client.create(CLAIMS, {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", **claim})
        made.append(stored)
        for entry in results:
            entry["shareID"] = str(uuid.uuid4())
        client.replace(CLAIMS, {**stored, "status": claim["status"]}, "status")
        return Ref(stored["metadata"]["uid"], "default", stored["metadata"]["name"])

    yield store
    for claim in made:
        with contextlib.suppress(NotFoundError):
            client.delete(CLAIMS, {"metadata": {key: claim["metadata"][key] for key in ("namespace", "name")}})


def test_the_inventory_is_stored_as_it_was_stated(client: HTTPKubeClient, kubelet: FakeKubelet) -> None:
    def stated() -> nodeinventory.InventoryStatus | None:
        with contextlib.suppress(NotFoundError):
            return nodeinventory.NodeInventory.from_object(client.get(kube.NODE_INVENTORIES, NODE)).status
        return None

    _wait(lambda: stated() is not None)

    status = stated()
    assert status is not None
    assert status.node_uid == client.get(kube.NODES, NODE)["metadata"]["uid"]
    assert [(device.name, device.memory_bytes) for device in status.devices] == [
        (A.name, 10 * GIB),
        (gpu(1).name, 10 * GIB),
    ]


def test_a_claim_of_a_real_api_server_is_prepared_and_undone(
    kubelet: FakeKubelet, allocate: Callable[..., Ref], root: Path
) -> None:
    claim = allocate(result(A, "2Gi", "25"))

    (device,) = kubelet.prepare(claim)[claim.uid]

    assert list(device.cdi_device_ids) == [
        f"vgpu.dra-driver.io/gpu={A.name}",
        f"vgpu.dra-driver.io/claim={claim.uid}-0",
    ]
    limits = read_limits(root / "state/shares" / f"{claim.uid}-0")
    assert (limits.memory_bytes, limits.cores_percent) == (2 * GIB, 25)
    assert kubelet.unprepare(claim) == {claim.uid: ""}
    assert list((root / "state/shares").iterdir()) == []


def test_a_claim_that_is_gone_is_refused(
    client: HTTPKubeClient, kubelet: FakeKubelet, allocate: Callable[..., Ref]
) -> None:
    claim = allocate(result(A))
    client.delete(CLAIMS, {"metadata": {"namespace": claim.namespace, "name": claim.name}})

    with pytest.raises(PrepareError) as caught:
        kubelet.prepare(claim)

    assert str(caught.value) == (
        f"ResourceClaim default/{claim.name}: found none, expected the one with uid {claim.uid}"
    )


def test_calls_at_once_are_all_served(kubelet: FakeKubelet, allocate: Callable[..., Ref]) -> None:
    claims = [allocate(result(A, "100Mi", "1")) for _ in range(20)]
    answers: dict[str, Any] = {}

    def prepare(claim: Ref) -> None:
        answers.update(kubelet.prepare(claim))

    threads = [threading.Thread(target=prepare, args=(claim,)) for claim in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(answers) == {claim.uid for claim in claims}


def _is_served(client: HTTPKubeClient) -> bool:
    try:
        client.list(kube.NODE_INVENTORIES)
    except KubeError:  # not known yet, or known and not ready: 429
        return False
    return True


def _wait(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Wait for something of the API server that cannot be watched."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never became so"
        time.sleep(0.05)
