"""Objects that the controller's tests are made of, and small helpers to wait for what threads do."""

import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry

from api import kube as kube_api
from api import names, nodeinventory
from api.errors import ConflictError, NotFoundError
from api.events import Subject
from api.kube import KubeClient
from api.nodeinventory import DeviceFacts, InventoryStatus
from controller.cluster.records import InventoryRecord
from controller.controller import Controller, ControllerSettings
from controller.offers.composing import Composer
from controller.offers.offering import Offer, OfferMode
from controller.offers.policies import NodeDevices, Policy

DRIVER = names.DRIVER_NAME
GI = 1 << 30
_PATIENCE_S = 120
CLASSES = kube_api.device_classes("v1")
SLICES = kube_api.slices("v1")
CLAIMS = kube_api.claims("v1")


CAPACITY_OF_10_GIB = {
    "memory": {
        "value": "10Gi",
        "requestPolicy": {"default": "10Gi", "validRange": {"min": "1Mi", "max": "10Gi", "step": "1Mi"}},
    },
    "cores": {"value": "100", "requestPolicy": {"default": "0", "validRange": {"min": "0", "max": "100", "step": "1"}}},
    "shares": {"value": "64", "requestPolicy": {"default": "1", "validValues": ["1"]}},
}
"""Of a GPU of this size in the mode consumable, as JSON."""


def facts(number: int = 0, **changes: Any) -> DeviceFacts:
    """A GPU of 10 GiB."""
    uuid = f"GPU-0000000{number}-aaaa-bbbb-cccc-000000000000"
    values: dict[str, Any] = {
        "name": names.device_name(uuid),
        "uuid": uuid,
        "vendor": "nvidia",
        "product_name": "NVIDIA A10",
        "memory_bytes": 10 * GI,
        "index": number,
    }
    return DeviceFacts(**values | changes)


def status(*devices: DeviceFacts, node_uid: str = "", heartbeat: datetime | None = None) -> InventoryStatus:
    """What an agent states that is alive now; without a UID it is of the Node that there is (see `state_inventory`)."""
    return InventoryStatus(
        node_uid=node_uid,
        driver_name=DRIVER,
        heartbeat_time=heartbeat or datetime.now(UTC),
        devices=list(devices),
    )


def record(stated: InventoryStatus | None, node: str = "n1") -> InventoryRecord:
    """What a cache keeps of an inventory."""
    return InventoryRecord(
        Subject(names.GROUP_VERSION, names.NODE_INVENTORY_KIND, "", node, f"uid-{node}"), "1", stated
    )


def offered(mode: OfferMode, *devices: DeviceFacts, policy: Policy | None = None) -> Offer:
    """What a new node with these devices offers."""
    return Composer().compose("n1", NodeDevices(status(*devices)), mode, policy or Policy(), [])


def device_class(name: str = "vgpu", driver: str = DRIVER) -> dict[str, Any]:
    """A DeviceClass that selects the devices of a driver."""
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {"name": name},
        "spec": {"selectors": [{"cel": {"expression": f'device.driver == "{driver}"'}}]},
    }


def claim(
    name: str = "c",
    *,
    memory: str | None = None,
    cores: str | None = None,
    uid: str | None = None,
    requests: list[dict[str, Any]] | None = None,
    results: list[dict[str, Any]] | None = None,
    config: object = None,
) -> dict[str, Any]:
    """A ResourceClaim of namespace `demo`, waiting, or allocated if it has results."""
    asked = {key: value for key, value in (("memory", memory), ("cores", cores)) if value is not None}
    devices: dict[str, Any] = {"requests": requests or [request("gpu", **asked)]}
    if config is not None:
        devices["config"] = [{"opaque": {"driver": DRIVER, "parameters": config}}]
    found: dict[str, Any] = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"namespace": "demo", "name": name, "uid": uid or f"uid-{name}"},
        "spec": {"devices": devices},
    }
    if results is not None:
        found["status"] = {"allocation": {"devices": {"results": results}}}
    return found


def request(name: str, *, device_class: str = "vgpu", **capacity: str) -> dict[str, Any]:
    """A request of a claim."""
    exactly: dict[str, Any] = {"deviceClassName": device_class}
    if capacity:
        exactly["capacity"] = {"requests": capacity}
    return {"name": name, "exactly": exactly}


def result(device: str, node: str = "n1", driver: str = DRIVER, **consumed: str) -> dict[str, Any]:
    """A device that a claim was given; without consumed capacity it has it whole."""
    found: dict[str, Any] = {"request": "gpu", "driver": driver, "pool": node, "device": device}
    if consumed:
        found["consumedCapacity"] = consumed
    return found


def pod(name: str, *claims: str, unschedulable: bool = True) -> dict[str, Any]:
    """A pod of namespace `demo` that names claims and has no node."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "demo", "name": name, "uid": f"uid-{name}"},
        "spec": {"resourceClaims": [{"name": f"c{i}", "resourceClaimName": c} for i, c in enumerate(claims)]},
        "status": {"conditions": [condition] if unschedulable else []},
    }


def add_node(kube: KubeClient, name: str = "n1") -> str:
    """Create a Node; return its uid."""
    node = kube.create(kube_api.NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    return str(node["metadata"]["uid"])


def state_inventory(kube: KubeClient, node: str, stated: InventoryStatus) -> None:
    """Write what an agent states, which asks for its Node's UID."""
    with contextlib.suppress(NotFoundError):
        uid = kube.get(kube_api.NODES, node)["metadata"]["uid"]
        stated = stated.model_copy(update={"node_uid": stated.node_uid or uid})
    obj = nodeinventory.to_object(node, stated)
    with contextlib.suppress(ConflictError):
        kube.create(kube_api.NODE_INVENTORIES, obj)
    kube.patch(kube_api.NODE_INVENTORIES, obj, {"status": obj["status"]}, "status")


def make_controller(
    kube: KubeClient, identity: str = "a", registry: CollectorRegistry | None = None, **options: Any
) -> Controller:
    """A controller that tries often, and keeps its Lease though a busy machine lets it wait for long."""
    lease = {"lease_duration_s": 120.0, "renew_deadline_s": 110.0, "retry_s": 0.1}
    settings = ControllerSettings(namespace="system", identity=identity, **lease | options)
    return Controller(kube, settings, registry or CollectorRegistry())


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds that no event tells of, for as long as a busy machine may take."""
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not so within {_PATIENCE_S} s: {condition}"
        time.sleep(0.01)


def taint_rule(
    name: str = "maintenance", *, effect: str = "NoSchedule", value: str = "", **selector: object
) -> dict[str, Any]:
    """A DeviceTaintRule with the key `example.com/repair`; no selector selects all devices."""
    taint = {"key": "example.com/repair", "effect": effect, **({"value": value} if value else {})}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceTaintRule",
        "metadata": {"name": name},
        "spec": {"deviceSelector": selector, "taint": taint},
    }
