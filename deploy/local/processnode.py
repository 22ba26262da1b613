"""A node without containers: `python -m deploy.local.processnode`. Started by the demo where containers cannot run.

It stands in for kubelet and container runtime: states a Node and keeps its Lease, registers DRA plugins by their
sockets, and runs the pods that the scheduler binds to it as processes (processpods.py). Images
are not used: a container's command is looked up on the PATH that this was started with.
"""

import argparse
import logging
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue

from api import kube
from api.errors import ConflictError, KubeError
from api.httpkube import HTTPKubeClient
from api.kube import JSON, Selection
from deploy.local import podobjects
from deploy.local.draplugins import Plugins
from deploy.local.processpods import NodeTools, PodRunner

LEASE_NAMESPACE = "kube-node-lease"
LEASE_DURATION_S = 40
_RENEWAL_S = 10.0
_LOOK_S = 0.2
_RETRY_S = 1.0
_WATCH_S = 60
_POD_END_S = 5.0
_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a node until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.processnode", description="A node without containers")
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--node-name", required=True)
    parser.add_argument("--state-dir", type=Path, required=True, help="holds cdi/ and pods/")
    parser.add_argument("--kubelet-dir", type=Path, required=True, help="as the node agent has it: for the sockets")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    state = options.state_dir.absolute()
    plugins = Plugins(options.kubelet_dir)
    client = HTTPKubeClient(options.kubeconfig)
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    node = ProcessNode(NodeTools(options.node_name, state, state / "cdi", client, plugins, environment))
    # No Event: a handler that sets it while this thread is about to wait for it waits for this thread.
    signals: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: signals.put(number))
    node.run(signals)
    return 0


class ProcessNode:
    """One node: its object, its plugins, its pods."""

    def __init__(self, tools: NodeTools) -> None:
        self._tools = tools
        self._name = tools.name
        self._kube = tools.kube
        self._pods: dict[str, PodRunner] = {}

    def run(self, signals: SimpleQueue[int]) -> None:
        """State the node and run its pods until a signal comes; then end their processes."""
        stopping = threading.Event()
        for target in (self._keep_node, self._keep_looking_for_plugins, self._keep_watching):
            threading.Thread(target=target, args=(stopping,), name=target.__name__, daemon=True).start()
        signals.get()
        stopping.set()
        for runner in list(self._pods.values()):
            runner.abandon()
        for runner in list(self._pods.values()):
            runner.join(_POD_END_S)

    def _keep_node(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                node = self._ensure_node()
                while not stopping.wait(_RENEWAL_S):
                    self._renew_lease(node)
            except KubeError as error:
                _log.warning("node %s: %s", self._name, error)
                stopping.wait(_RETRY_S)

    def _ensure_node(self) -> JSON:
        try:
            node = self._kube.create(kube.NODES, _node(self._name))
        except ConflictError:
            node = self._kube.get(kube.NODES, self._name)
        self._renew_lease(node)
        return self._kube.patch(kube.NODES, node, {"status": _node_status(self._name)}, "status")

    def _renew_lease(self, node: JSON) -> None:
        spec = {
            "holderIdentity": self._name,
            "leaseDurationSeconds": LEASE_DURATION_S,
            "renewTime": podobjects.now_micro(),
        }
        owner = {"apiVersion": "v1", "kind": "Node", "name": self._name, "uid": node["metadata"]["uid"]}
        metadata = {"name": self._name, "namespace": LEASE_NAMESPACE, "ownerReferences": [owner]}
        try:
            self._kube.create(kube.LEASES, {"metadata": metadata, "spec": spec})
        except ConflictError:
            self._kube.patch(kube.LEASES, {"metadata": metadata}, {"spec": spec})

    def _keep_looking_for_plugins(self, stopping: threading.Event) -> None:
        told: list[str] = []
        while not stopping.wait(_LOOK_S):
            problems = self._tools.plugins.look()
            for problem in problems:
                if problem not in told:
                    _log.warning("%s", problem)
            told = problems

    def _keep_watching(self, stopping: threading.Event) -> None:
        selection = Selection(fields=f"spec.nodeName={self._name}")
        while not stopping.is_set():
            try:
                listed = self._kube.list(kube.PODS, selection)
                self._compare(listed["items"])
                version = listed["metadata"]["resourceVersion"]
                for event in self._kube.watch(kube.PODS, version, selection, _WATCH_S):
                    if stopping.is_set():
                        return
                    if event.type == "DELETED":
                        self._forget(event.object["metadata"]["uid"])
                    elif event.type in {"ADDED", "MODIFIED"}:
                        self._take(event.object)
            except KubeError as error:
                _log.warning("pods: %s", error)
                stopping.wait(_RETRY_S)

    def _compare(self, pods: list[JSON]) -> None:
        there = {pod["metadata"]["uid"] for pod in pods}
        for uid in set(self._pods) - there:
            self._forget(uid)
        for pod in pods:
            self._take(pod)

    def _take(self, pod: JSON) -> None:
        """Start a pod that is new, end one that is being deleted."""
        metadata = pod["metadata"]
        runner = self._pods.get(metadata["uid"])
        if runner is None:
            runner = self._pods[metadata["uid"]] = PodRunner(self._tools, pod)
            runner.start()
        if "deletionTimestamp" in metadata:
            runner.end(metadata.get("deletionGracePeriodSeconds", 0))

    def _forget(self, uid: str) -> None:
        """End a pod whose object is gone."""
        runner = self._pods.pop(uid, None)
        if runner is not None:
            runner.end(0)


def _node(name: str) -> JSON:
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}


def _node_status(name: str) -> JSON:
    memory_kib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 10
    room = {"cpu": str(os.cpu_count() or 1), "memory": f"{memory_kib}Ki", "pods": "110"}
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "ProcessNodeReady",
        "message": "pods run as processes",
        "lastHeartbeatTime": podobjects.now(),
        "lastTransitionTime": podobjects.now(),
    }
    return {
        "capacity": room,
        "allocatable": room,
        "conditions": [ready],
        "addresses": [{"type": "Hostname", "address": name}],
    }


if __name__ == "__main__":
    raise SystemExit(main())
