"""A fleet of simulated nodes: how fast the real scheduler places fractions, and what the controller costs meanwhile.

Called by `make bench`. Pods with fractions and plain pods with CPU requests are placed in one run, on the same nodes,
by the same scheduler; then pods with fractions once more, while others wait whose claims no device can serve
(`waiting`).
"""

import argparse
import contextlib
import os
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from api import kube
from api.httpkube import HTTPKubeClient
from api.kube import NODE_INVENTORIES, PODS, Resource, Selection
from deploy.local import building
from deploy.local.cluster import Cluster
from deploy.local.errors import LocalClusterError
from tests.bench import waiting
from tests.bench.processes import resident_mb
from tests.bench.simulated import (
    GPUS_PER_NODE,
    NAMESPACE,
    NODE_COUNT,
    TIMEOUT_S,
    Fleet,
    beating,
    changes,
    for_each,
    fraction_pod,
    install,
    make_node,
    named,
    plain_pod,
)

POD_COUNT = 3000
_CHANGES = 40
_PARTS = ("kube-apiserver", "etcd", "kube-controller-manager", "kube-scheduler", "controller")


def main(*, only_waiting: bool = False) -> None:
    """Measure on a cluster of our own, and remove it: everything, or only what pods that wait cost."""
    kwok = building.kwok()
    with Cluster(f"fleet-{os.getpid()}") as cluster:
        cluster.up(nodes=0, dies_with_caller=True)
        fleet = Fleet(cluster, HTTPKubeClient(str(cluster.kubeconfig)))
        install(fleet, kwok / "kwok")
        with beating(fleet):
            _measure_offer(fleet)
            if only_waiting:
                waiting.measure(fleet)
                return
            plain = _measure_pods(fleet, "plain", plain_pod)
            fractions = _measure_pods(fleet, "fraction", fraction_pod)
            waiting.measure(fleet)
            beside_waiting = _measure_pods(fleet, "more", fraction_pod)
        print(f"  with fractions against plain pods           {fractions / plain:.2f}")
        print(f"  the same while {waiting.COUNT:,} pods wait, against none     {beside_waiting / fractions:.2f}")
        print(f"  controller, resident memory                 {resident_mb(fleet.controller()):.0f} MB")


def _measure_offer(fleet: Fleet) -> None:
    """Make all nodes, and print how long it takes until all is offered, and from one changed fact to its slice."""
    slices = kube.slices(fleet.client.resource_api_version())
    began_s = time.monotonic()
    listed = fleet.client.list(slices)
    for_each(fleet.nodes(), lambda node: make_node(fleet.client, node))
    made_s = time.monotonic()
    offered = {obj["spec"]["nodeName"] for obj in listed["items"]}
    for obj in changes(fleet.client, slices, Selection(), listed["metadata"]["resourceVersion"]):
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
    fleet.client.patch(NODE_INVENTORIES, named(node), {"status": {"devices": devices}}, "status")
    next(changes(fleet.client, slices, selection, version))
    return (time.monotonic() - began_s) * 1000


def _measure_pods(fleet: Fleet, kind: str, pod: Callable[[str], dict[str, Any]]) -> float:
    """Create pods and remove them again; print and return how many were placed a second, creation included."""
    client = fleet.client
    pods = [f"{kind}-{number}" for number in range(POD_COUNT)]
    selection = Selection(namespace=NAMESPACE)
    version = client.list(PODS, selection)["metadata"]["resourceVersion"]
    began_s, before = time.monotonic(), fleet.cpu_s()
    creating = threading.Thread(target=for_each, args=(pods, lambda name: client.create(PODS, pod(name))))
    creating.start()
    waiting = set(pods)
    for obj in changes(client, PODS, selection, version):
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


def _remove_pods(fleet: Fleet) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while fleet.client.list(PODS, Selection(namespace=NAMESPACE))["items"]:
        assert time.monotonic() < deadline_s, f"the pods are not gone after {TIMEOUT_S} s"
        # All in one request: one by one they take minutes. A busy API server ends it in the middle.
        with contextlib.suppress(LocalClusterError):
            fleet.cluster.kubectl("delete", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods?gracePeriodSeconds=0")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="Measure a fleet of simulated nodes.")
    arguments.add_argument("--only-waiting", action="store_true", help="measure only what pods that wait cost")
    main(only_waiting=arguments.parse_args().only_waiting)
