"""Which offer mode does the API server carry? Found out by publishing a sample and reading it back.

An API server whose feature gate is off drops fields without a word; a device without its request policies would be
handed out whole and without limits. So the sample is published for a node that does not exist, where no scheduler can
place anything, and nothing real is published before it came back as it was sent.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

from api import kube as kube_api
from api import names
from api.errors import ConflictError, NotFoundError
from api.kube import KubeClient
from api.slices import render_device
from controller.comparing import lost_fields
from controller.offering import NoMode, OfferMode

PROBE_NODE = "vgpu-probe.invalid"
"""A node that cannot exist: `.invalid` is reserved for such names (RFC 2606)."""


def choose_mode(kube: KubeClient, modes: Sequence[OfferMode], driver: str, version: str) -> OfferMode:
    """Return the first mode whose fields the API server keeps; NoMode, with the reason, if it keeps none.

    Raises:
        KubeError: the API server refused or did not answer.
    """
    reasons = []
    for mode in modes:
        lost = probe(kube, mode, driver, version)
        if not lost:
            return mode
        reasons.append(dropped_fields(mode, lost))
    return NoMode("; ".join(reasons))


def probe(kube: KubeClient, mode: OfferMode, driver: str, version: str) -> tuple[str, ...]:
    """Return the fields of a mode that the API server does not keep."""
    wanted = _sample(mode, driver, version)
    resource = kube_api.slices(version)
    try:
        stored = kube.create(resource, wanted)
    except ConflictError:
        # Left by a controller that was killed here, and perhaps of another mode.
        _remove(kube, driver, version)
        stored = kube.create(resource, wanted)
    _remove(kube, driver, version)
    return lost_fields(wanted["spec"], stored["spec"])


def dropped_fields(mode: OfferMode, lost: Sequence[str]) -> str:
    """Return the message for an API server that dropped fields."""
    return (
        f"the API server dropped {', '.join(lost)} of a ResourceSlice: its feature gate {mode.feature_gate} is off. "
        "Devices are not offered, since their limits could not be kept; turn the gate on for kube-apiserver, "
        "kube-scheduler and kubelet"
    )


def _sample(mode: OfferMode, driver: str, version: str) -> dict[str, Any]:
    return {
        "apiVersion": f"{names.RESOURCE_GROUP}/{version}",
        "kind": "ResourceSlice",
        "metadata": {"name": _name(driver)},
        "spec": {
            "driver": driver,
            "nodeName": PROBE_NODE,
            "pool": {"name": PROBE_NODE, "generation": 1, "resourceSliceCount": 1},
            "devices": [render_device(device, version) for device in mode.sample().devices],
        },
    }


def _remove(kube: KubeClient, driver: str, version: str) -> None:
    with contextlib.suppress(NotFoundError):
        kube.delete(kube_api.slices(version), {"metadata": {"name": _name(driver)}})


def _name(driver: str) -> str:
    return f"{PROBE_NODE}-{driver}"
