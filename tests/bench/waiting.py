"""Pods by the thousand whose claims no device can serve: what telling them why costs the controller. Called by `fleet`.

Half of them ask for the same, and share explanations; the others ask each for an amount of its own.
"""

import contextlib
import time
from dataclasses import dataclass

from api import kube, names
from api.claims import Object
from api.errors import GoneError
from api.kube import PODS, Selection
from tests.bench.processes import resident_mb
from tests.bench.simulated import WAITING_NAMESPACE, Fleet, changes, for_each, fraction_pod

COUNT = 3000
_EVENTS = "vgpu_controller_events_total"
_WATCHED_S = 60.0
_SHAKEN = 20
"""Changes of what all wait for, in that time: a cordon that comes or goes."""


@dataclass(frozen=True)
class _Reading:
    at_s: float
    cpu_s: float
    events: float
    memory_mb: float


def measure(fleet: Fleet) -> None:
    """Create the pods and leave them; print what they cost until they wait, and from then on."""
    before = _read(fleet)
    _create(fleet)
    waiting = _read(fleet)
    print(f"  {f'{COUNT:,} pods found to wait':<42}  in {waiting.at_s - before.at_s:.0f} s,", _costs(before, waiting))
    time.sleep(_WATCHED_S)
    quiet = _read(fleet)
    print(f"  {'then, while nothing happens':<42} ", _costs(waiting, quiet))
    for number in range(_SHAKEN):
        cordoned = [] if number % 2 else [_first_device(fleet)]
        node = {"metadata": {"name": fleet.nodes()[0]}}
        fleet.client.patch(kube.NODE_INVENTORIES, node, {"spec": {"cordonedDevices": cordoned}})
        time.sleep(_WATCHED_S / _SHAKEN)
    shaken = _read(fleet)
    print(f"  {'while what keeps them waiting changes':<42} ", _costs(quiet, shaken), flush=True)
    print(f"  {'controller, memory before and after':<42}  {before.memory_mb:.0f} and {shaken.memory_mb:.0f} MB")


def _create(fleet: Fleet) -> None:
    """Create the pods, and wait until the scheduler has tried each of them."""
    for_each([f"waiting-{number}" for number in range(COUNT)], lambda name: _create_one(fleet, name))
    selection = Selection(namespace=WAITING_NAMESPACE)
    while True:
        listed = fleet.client.list(PODS, selection)
        left = {pod["metadata"]["name"] for pod in listed["items"] if not _is_tried(pod)}
        if not left:
            return
        with contextlib.suppress(GoneError):  # so many changes that the API server has forgotten the first by now
            for pod in changes(fleet.client, PODS, selection, listed["metadata"]["resourceVersion"]):
                if _is_tried(pod):
                    left.discard(pod["metadata"]["name"])
                if not left:
                    return


def _is_tried(pod: Object) -> bool:
    return any(condition.get("reason") == "Unschedulable" for condition in pod["status"].get("conditions") or [])


def _create_one(fleet: Fleet, name: str) -> None:
    pod, number = fraction_pod(name, WAITING_NAMESPACE), int(name.rpartition("-")[2])
    if number % 2:
        claims = kube.claims(fleet.client.resource_api_version())
        capacity = {names.CAPACITY_MEMORY: f"{81 * 1024 + number}Mi"}
        exactly = {"deviceClassName": names.DEVICE_CLASS_ANY, "capacity": {"requests": capacity}}
        claim = {
            "apiVersion": claims.api_version,
            "kind": "ResourceClaim",
            "metadata": {"name": name, "namespace": WAITING_NAMESPACE},
            "spec": {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}},
        }
        fleet.client.create(claims, claim)
        pod["spec"]["resourceClaims"] = [{"name": "gpu", "resourceClaimName": name}]
    fleet.client.create(PODS, pod)


def _first_device(fleet: Fleet) -> str:
    inventory = fleet.client.get(kube.NODE_INVENTORIES, fleet.nodes()[0])
    return str(inventory["status"]["devices"][0]["name"])


def _read(fleet: Fleet) -> _Reading:
    return _Reading(
        time.monotonic(), fleet.cpu_s()["controller"], fleet.figure(_EVENTS), resident_mb(fleet.controller())
    )


def _costs(before: _Reading, after: _Reading) -> str:
    passed_s = after.at_s - before.at_s
    core = 100 * (after.cpu_s - before.cpu_s) / passed_s
    events = 60 * (after.events - before.events) / passed_s
    return f"controller: {core:.0f} % of a core, {events:.0f} events a minute"
