"""A cluster of our own to work in: CRD, DeviceClasses, a namespace per test; simulated nodes and their inventories."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from api import kube as kube_api
from api import names, nodeinventory
from api.errors import ConflictError, KubeError, NotFoundError
from api.httpkube import HTTPKubeClient
from api.kube import JSON, KubeClient, Resource
from controller.controller import Controller, ControllerSettings
from controller.crds import CRDS
from deploy.local.cluster import Cluster as LocalCluster
from tests.unit.controller.builders import CLASSES, SLICES, device_class, state_inventory, status, wait_until

NAMESPACES = Resource("", "v1", "namespaces", namespaced=False)
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", namespaced=True)

_numbers = itertools.count()


class Cluster:
    """What the tests do in a cluster, and undo at their end."""

    def __init__(self, kube: KubeClient, kubeconfig: str) -> None:
        self.kube = kube
        self.kubeconfig = kubeconfig
        self.namespace = f"controller-{next(_numbers)}"
        self._undo: list[Callable[[], None]] = []

    def create(self, resource: Resource, obj: dict[str, Any]) -> JSON:
        """Create an object in the test's namespace and delete it at the test's end; one that exists is taken over."""
        if resource.namespaced:
            obj["metadata"]["namespace"] = self.namespace
        obj = {"apiVersion": resource.api_version, **obj}
        self._undo.append(lambda: self._delete(resource, obj))
        try:
            return self.kube.create(resource, obj)
        except ConflictError:
            return self.kube.get(resource, obj["metadata"]["name"], obj["metadata"].get("namespace"))

    def add_node(self, name: str, *devices: nodeinventory.DeviceFacts) -> str:
        """Make a node that is ready, with an agent that states devices; return the node's uid."""
        node = self.create(kube_api.NODES, {"kind": "Node", "metadata": {"name": name, "labels": {"pool": name}}})
        room = {"cpu": "8", "memory": "16Gi", "pods": "110"}
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "Test",
            "lastHeartbeatTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        self.kube.patch(
            kube_api.NODES, node, {"status": {"capacity": room, "allocatable": room, "conditions": [ready]}}, "status"
        )
        uid = str(node["metadata"]["uid"])
        state_inventory(self.kube, name, status(*devices, node_uid=uid))
        self._undo.append(lambda: self._delete(kube_api.NODE_INVENTORIES, {"metadata": {"name": name}}))
        return uid

    def slices(self, node: str) -> list[JSON]:
        """The stored slices of a node, by name."""
        found = self.kube.list(SLICES, kube_api.Selection(fields=f"spec.nodeName={node}"))["items"]
        return sorted(found, key=lambda obj: str(obj["metadata"]["name"]))

    def undo(self) -> None:
        """Delete what the test made."""
        for step in reversed(self._undo):
            step()

    def _delete(self, resource: Resource, obj: JSON) -> None:
        with contextlib.suppress(NotFoundError):
            self.kube.delete(resource, {"metadata": {k: obj["metadata"].get(k) for k in ("name", "namespace")}})


@pytest.fixture
def cluster(api_server: LocalCluster) -> Iterator[Cluster]:
    kubeconfig = str(api_server.kubeconfig)
    found = Cluster(HTTPKubeClient(kubeconfig), kubeconfig)
    with contextlib.suppress(ConflictError):
        # It stays for the next test: an API server takes seconds to forget a kind and know it again.
        found.kube.create(CRDS, nodeinventory.crd())
    wait_until(lambda: _is_served(found.kube))
    found.create(NAMESPACES, {"kind": "Namespace", "metadata": {"name": found.namespace}})
    for vendor in ("", "nvidia"):
        name = names.device_class(vendor) if vendor else names.DEVICE_CLASS_ANY
        found.create(CLASSES, device_class(name))
    yield found
    found.undo()


def _is_served(kube: KubeClient) -> bool:
    try:
        kube.list(kube_api.NODE_INVENTORIES)
    except KubeError:
        # Not found, or, for a moment, 429: the API server prepares the new kind's storage.
        return False
    return True


@pytest.fixture
def start_controller(cluster: Cluster) -> Iterator[Callable[..., Controller]]:
    """Start controllers, which end with the test."""
    started: list[Controller] = []

    def start(identity: str, **options: Any) -> Controller:
        # A Lease that outlasts what a busy machine lets its holder wait.
        lease = {"lease_duration_s": 60.0, "renew_deadline_s": 50.0, "retry_s": 0.3}
        settings = ControllerSettings(namespace=cluster.namespace, identity=identity, **lease | options)
        controller = Controller(HTTPKubeClient(cluster.kubeconfig), settings, CollectorRegistry())
        started.append(controller)
        controller.start()
        return controller

    yield start
    for controller in started:
        controller.stop()
