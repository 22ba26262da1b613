"""A fleet of simulated nodes: how fast the real scheduler places fractions, and what the controller costs meanwhile.

Called by `make bench`. Nodes are kwok's, inventories are made here with a heartbeat each, as agents would; API server,
scheduler, controller-manager and our controller are the real ones. Pods with fractions and plain pods with CPU requests
are placed in one run, on the same nodes, by the same scheduler; then pods with fractions once more, while others wait
whose claims no device can serve.
"""

import contextlib
import math
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from api import kube, names, nodeinventory
from api.httpkube import HTTPKubeClient
from api.kube import NODE_INVENTORIES, NODES, PODS, Resource, Selection
from api.nodeinventory import DeviceFacts, InventoryStatus
from deploy.local import building
from deploy.local.cluster import Cluster
from deploy.local.errors import LocalClusterError
from kubeletplugin.agent import AgentSettings
from tests.bench.processes import cpu_s, resident_mb

NODE_COUNT = 200
GPUS_PER_NODE = 8
POD_COUNT = 3000
WAITING_COUNT = 1000
_CHANGES = 40
_IDLE_S = 30.0
_NAMESPACE = "fleet"
_WAITING_NAMESPACE = "fleet-waiting"
_TEMPLATE = "part"
_CLIENTS = 8
_TIMEOUT_S = 900.0
_PARTS = ("kube-apiserver", "etcd", "kube-controller-manager", "kube-scheduler", "controller")
_ROOT = Path(__file__).parents[2]
_STAGES = Path(__file__).parent / "fleet-stages.yaml"
_CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", namespaced=False)
_NAMESPACES = Resource("", "v1", "namespaces", namespaced=False)


@dataclass(frozen=True)
class Fleet:
    """A cluster without real nodes, with the controller at work."""

    cluster: Cluster
    client: HTTPKubeClient

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


def main() -> None:
    """Measure on a cluster of our own, and remove it."""
    kwok = building.kwok()
    with Cluster(f"fleet-{os.getpid()}") as cluster:
        cluster.up(nodes=0, dies_with_caller=True)
        fleet = Fleet(cluster, HTTPKubeClient(str(cluster.kubeconfig)))
        _install(fleet, kwok / "kwok")
        with _beating(fleet):
            _measure_offer(fleet)
            plain = _measure_pods(fleet, "plain", _plain_pod)
            fractions = _measure_pods(fleet, "fraction", _fraction_pod)
            _measure_waiting(fleet)
            beside_waiting = _measure_pods(fleet, "more", _fraction_pod)
        print(f"  with fractions against plain pods           {fractions / plain:.2f}")
        print(f"  the same while {WAITING_COUNT:,} pods wait, against none     {beside_waiting / fractions:.2f}")
        print(f"  controller, resident memory                 {resident_mb(fleet.controller()):.0f} MB")


def _install(fleet: Fleet, kwok: Path) -> None:
    cluster, client = fleet.cluster, fleet.client
    client.create(_CRDS, nodeinventory.crd())
    cluster.kubectl("wait", "--for=condition=Established", f"crd/{nodeinventory.crd()['metadata']['name']}")
    version = client.resource_api_version()
    templates = Resource(names.RESOURCE_GROUP, version, "resourceclaimtemplates", True)
    for namespace, memory in (_NAMESPACE, "8Gi"), (_WAITING_NAMESPACE, "81Gi"):
        client.create(_NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        client.create(templates, _template(version, namespace, memory))
        cluster.kubectl("-n", namespace, "wait", "--for=create", "serviceaccount/default", "--timeout=60s")
    kubeconfig = f"--kubeconfig={cluster.kubeconfig}"
    environment = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(_ROOT)}
    cluster.start_process(
        "controller",
        [sys.executable, "-m", "dra_driver", "controller", kubeconfig, "--namespace=default", "--listen=127.0.0.1:0"],
        environment,
    )
    flags = ["--manage-all-nodes", "--node-lease-duration-seconds=40", f"--config={_STAGES}"]
    cluster.start_process("kwok", [str(kwok), kubeconfig, *flags], environment)


def _measure_offer(fleet: Fleet) -> None:
    """Make all nodes, and print how long it takes until all is offered, and from one changed fact to its slice."""
    slices = kube.slices(fleet.client.resource_api_version())
    began_s = time.monotonic()
    listed = fleet.client.list(slices)
    _for_each(fleet.nodes(), lambda node: _make_node(fleet.client, node))
    made_s = time.monotonic()
    offered = {obj["spec"]["nodeName"] for obj in listed["items"]}
    for obj in _changes(fleet.client, slices, Selection(), listed["metadata"]["resourceVersion"]):
        offered.add(obj["spec"]["nodeName"])
        if offered.issuperset(fleet.nodes()):
            break
    offered_s = time.monotonic()
    print(f"  {NODE_COUNT} nodes x {GPUS_PER_NODE} GPUs made in {made_s - began_s:.1f} s,", end=" ")
    print(f"all offered {max(offered_s - made_s, 0):.1f} s later")
    delays = [_change_to_slice(fleet, slices, node) for node in fleet.nodes()[:_CHANGES]]
    p99 = statistics.quantiles(delays, n=100)[98]
    print(f"  a changed fact is in the slice after        p50 {statistics.median(delays):.0f} ms, p99 {p99:.0f} ms")


def _change_to_slice(fleet: Fleet, slices: Resource, node: str) -> float:
    """Change the driver version of a node's GPUs; return the milliseconds until the slice says so."""
    selection = Selection(fields=f"spec.nodeName={node}")
    version = fleet.client.list(slices, selection)["metadata"]["resourceVersion"]
    inventory = fleet.client.get(NODE_INVENTORIES, node)
    devices = [{**device, "driverVersion": "600.1.2"} for device in inventory["status"]["devices"]]
    began_s = time.monotonic()
    fleet.client.patch(NODE_INVENTORIES, _named(node), {"status": {"devices": devices}}, "status")
    next(_changes(fleet.client, slices, selection, version))
    return (time.monotonic() - began_s) * 1000


def _measure_pods(fleet: Fleet, kind: str, pod: Callable[[str], dict[str, Any]]) -> float:
    """Create pods and remove them again; print and return how many were placed a second, creation included."""
    client = fleet.client
    pods = [f"{kind}-{number}" for number in range(POD_COUNT)]
    selection = Selection(namespace=_NAMESPACE)
    version = client.list(PODS, selection)["metadata"]["resourceVersion"]
    began_s, before = time.monotonic(), fleet.cpu_s()
    creating = threading.Thread(target=_for_each, args=(pods, lambda name: client.create(PODS, pod(name))))
    creating.start()
    waiting = set(pods)
    for obj in _changes(client, PODS, selection, version):
        if obj["spec"].get("nodeName"):
            waiting.discard(obj["metadata"]["name"])
            if not waiting:
                break
    passed_s = time.monotonic() - began_s
    creating.join()
    print(f"  {kind + ' pods placed':<42}  {POD_COUNT / passed_s:.0f} a second ({POD_COUNT} pods)")
    _remove_pods(fleet)
    after = fleet.cpu_s()
    costs = [f"{name} {1000 * (after[name] - before[name]) / POD_COUNT:.1f}" for name in _PARTS]
    print(f"  {'CPU for each, to its end, ms':<42}  {', '.join(costs)}")
    return POD_COUNT / passed_s


def _measure_waiting(fleet: Fleet) -> None:
    """Create pods whose claims ask for more than a GPU has, and leave them; print what they cost once they wait."""
    client = fleet.client
    pods = [f"waiting-{number}" for number in range(WAITING_COUNT)]
    selection = Selection(namespace=_WAITING_NAMESPACE)
    version = client.list(PODS, selection)["metadata"]["resourceVersion"]
    began_s, before = time.monotonic(), fleet.cpu_s()["controller"]
    _for_each(pods, lambda name: client.create(PODS, _fraction_pod(name, _WAITING_NAMESPACE)))
    left = set(pods)
    for obj in _changes(client, PODS, selection, version):
        if any(condition.get("reason") == "Unschedulable" for condition in obj["status"].get("conditions") or []):
            left.discard(obj["metadata"]["name"])
            if not left:
                break
    tried_s, tried = time.monotonic(), fleet.cpu_s()["controller"]
    print(f"  {f'{WAITING_COUNT:,} pods found to wait':<42}  in {tried_s - began_s:.0f} s,", end=" ")
    print(f"controller's CPU {tried - before:.1f} s,", end=" ", flush=True)
    time.sleep(_IDLE_S)
    idle = (fleet.cpu_s()["controller"] - tried) / (time.monotonic() - tried_s)
    print(f"then {100 * idle:.0f} % of a core")


def _remove_pods(fleet: Fleet) -> None:
    deadline_s = time.monotonic() + _TIMEOUT_S
    while fleet.client.list(PODS, Selection(namespace=_NAMESPACE))["items"]:
        assert time.monotonic() < deadline_s, f"the pods are not gone after {_TIMEOUT_S} s"
        # All in one request: one by one they take minutes. A busy API server ends it in the middle.
        with contextlib.suppress(LocalClusterError):
            fleet.cluster.kubectl("delete", "--raw", f"/api/v1/namespaces/{_NAMESPACE}/pods?gracePeriodSeconds=0")


def _changes(
    client: HTTPKubeClient, resource: Resource, selection: Selection, version: str
) -> Iterator[dict[str, Any]]:
    """Yield what is created and changed from a resourceVersion on; AssertionError when nothing more comes."""
    deadline_s = time.monotonic() + _TIMEOUT_S
    while (left_s := deadline_s - time.monotonic()) > 0:
        # An API server ends the watch of a client that is slow, as one is that shares two cores with all of this.
        for event in client.watch(resource, version, selection, math.ceil(left_s)):
            version = event.object["metadata"]["resourceVersion"]
            if event.type in {"ADDED", "MODIFIED"}:
                yield event.object
    raise AssertionError(f"what was waited for among the {resource.plural} did not come in {_TIMEOUT_S} s")


@contextmanager
def _beating(fleet: Fleet) -> Iterator[None]:
    """State every node's heartbeat as often as its agent would."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(AgentSettings.heartbeat_s):
            status = {"heartbeatTime": datetime.now(UTC).isoformat()}
            for node in fleet.nodes():
                fleet.client.patch(NODE_INVENTORIES, _named(node), {"status": status}, "status")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _make_node(client: HTTPKubeClient, name: str) -> None:
    node = client.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    room = {"cpu": "64", "memory": "512Gi", "pods": "110"}
    ready = {"type": "Ready", "status": "True", "reason": "Simulated", "lastHeartbeatTime": _now()}
    status = {"capacity": room, "allocatable": room, "conditions": [ready]}
    client.patch(NODES, _named(name), {"status": status}, "status")
    devices = [_gpu(name, index) for index in range(GPUS_PER_NODE)]
    stated = InventoryStatus(
        node_uid=node["metadata"]["uid"],
        driver_name=names.DRIVER_NAME,
        heartbeat_time=datetime.now(UTC),
        devices=devices,
    )
    inventory = nodeinventory.to_object(name, stated)
    client.create(NODE_INVENTORIES, {key: inventory[key] for key in inventory if key != "status"})
    client.patch(NODE_INVENTORIES, _named(name), {"status": inventory["status"]}, "status")


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


def _plain_pod(name: str) -> dict[str, Any]:
    container = {"name": "main", "image": "none", "resources": {"requests": {"cpu": "1"}}}
    return _pod(name, {"containers": [container]})


def _fraction_pod(name: str, namespace: str = _NAMESPACE) -> dict[str, Any]:
    container = {"name": "main", "image": "none", "resources": {"claims": [{"name": "gpu"}]}}
    claims = [{"name": "gpu", "resourceClaimTemplateName": _TEMPLATE}]
    return _pod(name, {"containers": [container], "resourceClaims": claims}, namespace)


def _pod(name: str, spec: dict[str, Any], namespace: str = _NAMESPACE) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"restartPolicy": "Never", **spec}}


def _named(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _for_each(items: Sequence[str], do: Callable[[str], object]) -> None:
    with ThreadPoolExecutor(_CLIENTS) as pool:
        list(pool.map(do, items))


if __name__ == "__main__":
    main()
