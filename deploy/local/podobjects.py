"""What a node reads from Pod objects and writes to them. Called by processpods.py and processnode.py."""

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from api.kube import JSON
from deploy.local.draplugins import PreparedDevice

HOSTNAME_VARIABLES = ("HOSTNAME", "VGPU_STUB_HOSTNAME")
"""A container has a host name of its own, a process is told it; the stub driver's cards tell tenants apart by it."""


def now() -> str:
    """Return the time as `metav1.Time` has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def now_micro() -> str:
    """Return the time as `metav1.MicroTime` has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def is_over(pod: JSON) -> bool:
    """Tell whether all containers of a pod have ended for good."""
    return pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}


def claim_names(pod: JSON) -> dict[str, str]:
    """Return the names of the ResourceClaims of a pod, by the pod's own names for them."""
    generated = {
        status["name"]: status.get("resourceClaimName")
        for status in pod.get("status", {}).get("resourceClaimStatuses", [])
    }
    named = {
        claim["name"]: claim.get("resourceClaimName") or generated.get(claim["name"])
        for claim in pod["spec"].get("resourceClaims", [])
    }
    return {name: claim for name, claim in named.items() if claim}


def cdi_ids(container: JSON, devices: Mapping[str, Sequence[PreparedDevice]]) -> list[str]:
    """Return the CDI ids for a container: of the claims that it uses, or of single requests of them."""
    ids: dict[str, None] = {}  # a set that keeps the order
    for used in container.get("resources", {}).get("claims", []):
        for device in devices.get(used["name"], []):
            if "request" not in used or used["request"] in device.requests:
                ids |= dict.fromkeys(device.cdi_ids)
    return list(ids)


def environment(pod: JSON, container: JSON, base: Mapping[str, str]) -> dict[str, str]:
    """Return a container's environment: `base`, its host name, and those variables of its spec that have a value."""
    variables = {variable["name"]: variable.get("value", "") for variable in container.get("env", [])}
    return dict(base) | dict.fromkeys(HOSTNAME_VARIABLES, pod["metadata"]["name"]) | variables


def running(pod: JSON) -> JSON:
    """Return a patch of the status: all containers run, and are ready."""
    started = now()
    containers = [
        _container(container, {"running": {"startedAt": started}}, ready=True)
        for container in pod["spec"]["containers"]
    ]
    return _patch(pod, {"phase": "Running", "startTime": started, "containerStatuses": containers}, ready=True)


def ended(pod: JSON, statuses: Mapping[str, int]) -> JSON:
    """Return a patch of the status: all containers have ended, with these exit statuses."""
    finished = now()
    containers = []
    for container in pod["spec"]["containers"]:
        status = statuses[container["name"]]
        reason = "Error" if status else "Completed"
        terminated = {"exitCode": status, "reason": reason, "finishedAt": finished}
        containers.append(_container(container, {"terminated": terminated}, ready=False))
    phase = "Failed" if any(statuses.values()) else "Succeeded"
    return _patch(pod, {"phase": phase, "containerStatuses": containers}, ready=False)


def event(pod: JSON, node: str, reason: str, message: str) -> JSON:
    """Return an Event (events.k8s.io/v1) that warns about a pod, as its kubelet would."""
    metadata = pod["metadata"]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{secrets.token_hex(8)}", "namespace": metadata["namespace"]},
        "eventTime": now_micro(),
        "reportingController": "kubelet",
        "reportingInstance": node,
        "action": "Preparing",
        "type": "Warning",
        "reason": reason,
        "note": message[:1024],  # the API server refuses longer ones
        "regarding": {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
    }


def _container(container: JSON, state: JSON, *, ready: bool) -> JSON:
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": "",
        "ready": ready,
        "started": ready,
        "restartCount": 0,
        "state": state,
    }


def _patch(pod: JSON, status: JSON, *, ready: bool) -> JSON:
    ours = {
        kind: {"type": kind, "status": str(kind == "Initialized" or ready), "lastTransitionTime": now()}
        for kind in ("Initialized", "ContainersReady", "Ready")
    }
    # A merge patch replaces the list: what others said must be in it.
    others: list[dict[str, Any]] = pod.get("status", {}).get("conditions", [])
    conditions = [condition for condition in others if condition["type"] not in ours] + list(ours.values())
    # With the uid it is refused where another pod has taken the name.
    return {"metadata": {"uid": pod["metadata"]["uid"]}, "status": status | {"conditions": conditions}}
