"""Maintenance of one GPU: cordon, uncordon, drain. Called by the command line; works through the API server alone.

A cordon stands in the `spec` of the node's NodeInventory; what follows from it is the controller's business.
"""

import time
from collections.abc import Callable, Iterator

from api import kube as kube_api
from api import names
from api.claims import ClaimView, Object
from api.errors import ConfigError, ConflictError, KubeError, NotFoundError, PermanentError, TransientError
from api.kube import KubeClient, Resource
from api.nodeinventory import DeviceFacts, NodeInventory
from api.slots import gpu_of

_TRIES = 5
_POLL_S = 2.0

Pod = tuple[str, str]
"""Namespace and name."""


def cordon(kube: KubeClient, node: str, device: str, *, cordoned: bool = True) -> bool:
    """Keep new claims away from a device, or no longer; return whether that is new.

    Args:
        kube: the cluster.
        node: its name.
        device: name, UUID, or the start of one of them if no other device starts so.
        cordoned: False: uncordon.

    Raises:
        ConfigError: the node has no such device.
        KubeError: the API server refused or did not answer.
    """
    for attempt in range(_TRIES):
        obj = _inventory(kube, node)
        before = NodeInventory.from_object(obj).spec.cordoned_devices
        spellings = _spellings(obj, device, before, cordoned=cordoned)
        after = [name for name in before if name.lower() not in spellings]
        if cordoned:
            if len(after) < len(before):
                return False
            after.append(find_device(obj, device).name)
        elif before == after:
            return False
        metadata = {"resourceVersion": obj["metadata"]["resourceVersion"]}
        try:
            kube.patch(kube_api.NODE_INVENTORIES, obj, {"metadata": metadata, "spec": {"cordonedDevices": after}})
        except ConflictError:
            # A heartbeat, mostly.
            if attempt == _TRIES - 1:
                raise
        else:
            return True
    return False


def _spellings(inventory: Object, device: str, cordons: list[str], *, cordoned: bool) -> set[str]:
    """Return name and UUID of a device; to uncordon, one that is cordoned and gone will do, as it was written there."""
    if not cordoned and device.lower() in {name.lower() for name in cordons}:
        status = NodeInventory.from_object(inventory).status
        devices = status.devices if status else []
        if not any(device.lower() in (facts.name, facts.uuid.lower()) for facts in devices):
            return {device.lower()}
    facts = find_device(inventory, device)
    return {facts.name, facts.uuid.lower()}


def drain(
    kube: KubeClient, node: str, device: str, *, timeout_s: float, report: Callable[[str], None], driver: str
) -> None:
    """Cordon a device and evict the pods that hold it, until none does.

    Args:
        kube: the cluster.
        node: its name.
        device: as with `cordon`.
        timeout_s: how long disruption budgets and the pods' own ends are waited for.
        report: takes a line for each thing that happened.
        driver: our driver name.

    Raises:
        ConfigError: the node has no such device.
        TransientError: pods still hold it after `timeout_s`.
        KubeError: the API server refused or did not answer.
    """
    cordon(kube, node, device)
    gpu = find_device(_inventory(kube, node), device).name
    report(f"{node}/{gpu}: cordoned")
    deadline = time.monotonic() + timeout_s
    evicted: set[Pod] = set()
    while True:
        pods = set(holders(kube, node, gpu, driver))
        refusals = {pod: _evict(kube, pod) for pod in sorted(pods - evicted)}
        for pod in sorted(pods - evicted):
            if not refusals[pod]:
                report(f"pod {pod[0]}/{pod[1]}: evicted")
                evicted.add(pod)
        if not pods:
            report(f"{node}/{gpu}: drained")
            return
        if time.monotonic() >= deadline:
            left = "; ".join(f"pod {pod[0]}/{pod[1]}: {refusals.get(pod) or 'not gone yet'}" for pod in sorted(pods))
            raise TransientError(f"{node}/{gpu}: not drained after {timeout_s:g} s: {left}")
        time.sleep(min(_POLL_S, max(deadline - time.monotonic(), 0.0)))


def holders(kube: KubeClient, node: str, gpu: str, driver: str = names.DRIVER_NAME) -> Iterator[Pod]:
    """Yield the pods whose claims hold a GPU or a part of it; who only looks at it holds nothing."""
    for obj in kube.list(kube_api.claims(kube.resource_api_version()))["items"]:
        try:
            claim = ClaimView.from_object(obj)
        except PermanentError:
            continue
        results = claim.allocation.results if claim.allocation else ()
        # An observer (adminAccess) takes nothing, and a monitor that a DaemonSet keeps there would come back at once.
        results = tuple(each for each in results if not each.admin_access)
        if any((each.driver, each.pool, gpu_of(each.device)) == (driver, node, gpu) for each in results):
            yield from ((claim.namespace, each.name) for each in claim.reserved_for if each.resource == "pods")


def find_device(inventory: Object, device: str) -> DeviceFacts:
    """Return the device that a name, a UUID or the start of one means.

    Raises:
        ConfigError: there is none, or more than one.
    """
    stated = NodeInventory.from_object(inventory)
    devices = stated.status.devices if stated.status else []
    exact = [facts for facts in devices if device in (facts.name, facts.uuid)]
    found = exact or [facts for facts in devices if device and facts.name.startswith(device.lower())]
    if len(found) != 1:
        there = ", ".join(facts.name for facts in devices) or "none"
        raise ConfigError(f"node {stated.node_name}: found {len(found)} devices {device!r}, expected one of {there}")
    return found[0]


def _inventory(kube: KubeClient, node: str) -> Object:
    try:
        return kube.get(kube_api.NODE_INVENTORIES, node)
    except NotFoundError as error:
        raise ConfigError(f"node {node}: found no NodeInventory, expected one; is the node agent running?") from error


def _evict(kube: KubeClient, pod: Pod) -> str:
    """Evict a pod; return why the API server does not want that now, empty if it does."""
    namespace, name = pod
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"namespace": namespace, "name": name},
    }
    try:
        kube.create(Resource("", "v1", f"pods/{name}/eviction", namespaced=True), eviction)
    except NotFoundError:
        return ""
    except KubeError as error:
        if error.status != 429:  # a PodDisruptionBudget
            raise
        return str(error)
    return ""
