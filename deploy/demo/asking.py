"""One question in all forms: what a claim says to get a part of a GPU, by offer mode and API version of the cluster.

People write a claim for v1 and consumable capacity, as in deploy/examples. Where devices have fixed sizes (counters,
slots), the scheduler goes by CEL on the device's capacity, and a VGPUConfig narrows the share to what was asked; before
v1beta2 a request has no `exactly`. Used by the demo and the end-to-end tests, so that all versions show the same.
"""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api import names
from api.kube import JSON, KubeClient, Selection, slices
from deploy.local.errors import StartError

_OFFER_TIMEOUT_S = 150.0


@dataclass(frozen=True)
class Dialect:
    """How claims are written for a cluster."""

    version: str
    """Of resource.k8s.io."""
    mode: str
    """`consumable`, `counters` or `slots`."""

    def say(self, obj: Mapping[str, Any]) -> JSON:
        """Return an object that was written for v1 and consumable capacity as it is written for this cluster."""
        said: JSON = copy.deepcopy(dict(obj))
        if not said["apiVersion"].startswith(f"{names.RESOURCE_GROUP}/"):
            return said
        said["apiVersion"] = f"{names.RESOURCE_GROUP}/{self.version}"
        spec = said["spec"]
        devices = (spec["spec"] if said["kind"] == "ResourceClaimTemplate" else spec)["devices"]
        if self.mode != "consumable":
            parameters = [found for request in devices["requests"] if (found := _ask_by_size(request))]
            # First, so that what the claim itself says wins.
            devices["config"] = [*parameters, *devices.get("config", [])]
        if self.version == "v1beta1":
            devices["requests"] = [
                {
                    **{key: value for key, value in request.items() if key != "exactly"},
                    **_known(request.get("exactly", {})),
                }
                for request in devices["requests"]
            ]
        elif self.version == "v1beta2":
            for request in devices["requests"]:
                if "exactly" in request:
                    request["exactly"] = _known(request["exactly"])
        return said


def dialect_of(kube: KubeClient, node: str) -> Dialect:
    """Return how claims are written for a cluster, as soon as the driver offers devices on a node.

    Raises:
        StartError: it offered none in time.
    """
    version = kube.resource_api_version()
    selection = Selection(fields=f"spec.nodeName={node}")
    deadline = time.monotonic() + _OFFER_TIMEOUT_S
    while time.monotonic() < deadline:
        listed = kube.list(slices(version), selection)
        devices = [device for item in listed["items"] for device in item["spec"].get("devices") or []]
        if devices:
            return Dialect(version, _mode_of([device.get("basic", device) for device in devices]))
        # A watch ends after a second, or with the first change.
        next(kube.watch(slices(version), listed["metadata"]["resourceVersion"], selection, 1), None)
    raise StartError(f"no GPU of node {node} was offered within {_OFFER_TIMEOUT_S:.0f} s")


def _mode_of(devices: list[JSON]) -> str:
    if any(device.get("allowMultipleAllocations") for device in devices):
        return "consumable"
    return "counters" if any(device.get("consumesCounters") for device in devices) else "slots"


def _ask_by_size(request: JSON) -> JSON | None:
    """Add a selector for the amounts that a request asks for; return the parameters that narrow a device to them.

    The amounts stay beside the selector: an API server that knows them not, or whose gate is off, goes by the selector.
    """
    amounts = request.get("exactly", {}).get("capacity", {}).get("requests", {})
    if not amounts:
        return None
    capacity = f'device.capacity["{names.DRIVER_NAME}"]'
    terms = [f'{capacity}.{name}.compareTo(quantity("{amount}")) >= 0' for name, amount in amounts.items()]
    selectors = request["exactly"].setdefault("selectors", [])
    selectors.append({"cel": {"expression": " && ".join(terms)}})
    parameters = {
        "apiVersion": f"{names.API_GROUP}/{names.API_VERSION}",
        "kind": "VGPUConfig",
        **{name: int(amount) if name == names.CAPACITY_CORES else amount for name, amount in amounts.items()},
    }
    return {"requests": [request["name"]], "opaque": {"driver": names.DRIVER_NAME, "parameters": parameters}}


def _known(asked: JSON) -> JSON:
    """Return what is asked for without what only v1 has: kubectl refuses fields that it does not know."""
    return {key: value for key, value in asked.items() if key != "capacity"}
