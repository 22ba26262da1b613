"""A cluster of simulated nodes: kwok's, with inventories and heartbeats as agents would state them. Used by `fleet`.

API server, scheduler, controller-manager and our controller are the real ones.
"""

import math
import os
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from api import names, nodeinventory
from api.httpkube import HTTPKubeClient
from api.kube import NODE_INVENTORIES, NODES, Resource, Selection
from api.nodeinventory import DeviceFacts, InventoryStatus
from deploy.local.cluster import Cluster
from kubeletplugin.agentsettings import AgentSettings
from tests.bench.processes import cpu_s

NODE_COUNT = 200
GPUS_PER_NODE = 8
NAMESPACE = "fleet"
WAITING_NAMESPACE = "fleet-waiting"
TIMEOUT_S = 900.0
_TEMPLATE = "part"
_CLIENTS = 8
_ROOT = Path(__file__).parents[2]
_STAGES = Path(__file__).parent / "fleet-stages.yaml"
_CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", namespaced=False)
_NAMESPACES = Resource("", "v1", "namespaces", namespaced=False)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Fleet:
    """A cluster without real nodes, with the controller at work."""

    cluster: Cluster
    client: HTTPKubeClient
    port: int = field(default_factory=_free_port)
    """Where the controller shows its figures."""

    def nodes(self) -> list[str]:
        """Return the names of the simulated nodes."""
        return [f"sim-{number:03d}" for number in range(NODE_COUNT)]

    def controller(self) -> Path:
        """Return the folder of the controller's process in /proc."""
        return self.processes()["controller"]

    def processes(self) -> dict[str, Path]:
        """Return the folders of all processes of the cluster in /proc, by their names."""
        return {found.name: Path("/proc") / str(found.pid) for found in self.cluster.status() if found.pid}

    def cpu_s(self) -> dict[str, float]:
        """Return what each process has cost so far."""
        return {name: cpu_s(process) for name, process in self.processes().items()}

    def figure(self, name: str) -> float:
        """Return a figure of the controller, over all its labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def install(fleet: Fleet, kwok: Path) -> None:
    cluster, client = fleet.cluster, fleet.client
    client.create(_CRDS, nodeinventory.crd())
    cluster.kubectl("wait", "--for=condition=Established", f"crd/{nodeinventory.crd()['metadata']['name']}")
    version = client.resource_api_version()
    templates = Resource(names.RESOURCE_GROUP, version, "resourceclaimtemplates", True)
    for namespace, memory in (NAMESPACE, "8Gi"), (WAITING_NAMESPACE, "81Gi"):
        client.create(_NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        client.create(templates, _template(version, namespace, memory))
        cluster.kubectl("-n", namespace, "wait", "--for=create", "serviceaccount/default", "--timeout=60s")
    kubeconfig = f"--kubeconfig={cluster.kubeconfig}"
    environment = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(_ROOT)}
    flags = [kubeconfig, "--namespace=default", f"--listen=127.0.0.1:{fleet.port}"]
    cluster.start_process("controller", [sys.executable, "-m", "dra_driver", "controller", *flags], environment)
    flags = ["--manage-all-nodes", "--node-lease-duration-seconds=40", f"--config={_STAGES}"]
    cluster.start_process("kwok", [str(kwok), kubeconfig, *flags], environment)


def changes(client: HTTPKubeClient, resource: Resource, selection: Selection, version: str) -> Iterator[dict[str, Any]]:
    """Yield what is created and changed from a resourceVersion on; AssertionError when nothing more comes."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while (left_s := deadline_s - time.monotonic()) > 0:
        # An API server ends the watch of a client that is slow, as one is that shares two cores with all of this.
        for event in client.watch(resource, version, selection, math.ceil(left_s)):
            version = event.object["metadata"]["resourceVersion"]
            if event.type in {"ADDED", "MODIFIED"}:
                yield event.object
    raise AssertionError(f"what was waited for among the {resource.plural} did not come in {TIMEOUT_S} s")


@contextmanager
def beating(fleet: Fleet) -> Iterator[None]:
    """State every node's heartbeat as often as its agent would."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(AgentSettings.heartbeat_s):
            status = {"heartbeatTime": datetime.now(UTC).isoformat()}
            for node in fleet.nodes():
                fleet.client.patch(NODE_INVENTORIES, named(node), {"status": status}, "status")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def make_node(client: HTTPKubeClient, name: str) -> None:
    node = client.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    room = {"cpu": "64", "memory": "512Gi", "pods": "110"}
    ready = {"type": "Ready", "status": "True", "reason": "Simulated", "lastHeartbeatTime": _now()}
    status = {"capacity": room, "allocatable": room, "conditions": [ready]}
    client.patch(NODES, named(name), {"status": status}, "status")
    devices = [_gpu(name, index) for index in range(GPUS_PER_NODE)]
    stated = InventoryStatus(
        node_uid=node["metadata"]["uid"],
        driver_name=names.DRIVER_NAME,
        heartbeat_time=datetime.now(UTC),
        devices=devices,
    )
    inventory = nodeinventory.to_object(name, stated)
    client.create(NODE_INVENTORIES, {key: inventory[key] for key in inventory if key != "status"})
    client.patch(NODE_INVENTORIES, named(name), {"status": inventory["status"]}, "status")


def _gpu(node: str, index: int) -> DeviceFacts:
    uuid = f"GPU-{int(node.rpartition('-')[2]):08x}-0000-4000-8000-{index:012x}"
    return DeviceFacts(
        name=names.device_name(uuid),
        uuid=uuid,
        vendor="nvidia",
        product_name="NVIDIA H100 80GB HBM3",
        memory_bytes=80 << 30,
        index=index,
        driver_version="580.65.06",
    )


def _template(version: str, namespace: str, memory: str) -> dict[str, Any]:
    exactly = {
        "deviceClassName": names.DEVICE_CLASS_ANY,
        "capacity": {"requests": {names.CAPACITY_MEMORY: memory, names.CAPACITY_CORES: "10"}},
    }
    return {
        "apiVersion": f"{names.RESOURCE_GROUP}/{version}",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": _TEMPLATE, "namespace": namespace},
        "spec": {"spec": {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}}},
    }


def plain_pod(name: str) -> dict[str, Any]:
    container = {"name": "main", "image": "none", "resources": {"requests": {"cpu": "1"}}}
    return _pod(name, {"containers": [container]})


def fraction_pod(name: str, namespace: str = NAMESPACE) -> dict[str, Any]:
    container = {"name": "main", "image": "none", "resources": {"claims": [{"name": "gpu"}]}}
    claims = [{"name": "gpu", "resourceClaimTemplateName": _TEMPLATE}]
    return _pod(name, {"containers": [container], "resourceClaims": claims}, namespace)


def _pod(name: str, spec: dict[str, Any], namespace: str = NAMESPACE) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"restartPolicy": "Never", **spec}}


def named(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def for_each(items: Sequence[str], do: Callable[[str], object]) -> None:
    with ThreadPoolExecutor(_CLIENTS) as pool:
        list(pool.map(do, items))
