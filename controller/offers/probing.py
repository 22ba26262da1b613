"""Which offer mode does the API server carry? Found out by publishing a sample and reading it back.

An API server whose feature gate is off drops fields without a word; a device without its request policies would be
handed out whole and without limits. So the sample is published for a node that does not exist, where no scheduler can
place anything, and nothing real is published before it came back as it was sent.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from api import kube as kube_api
from api import names
from api.errors import ConflictError, KubeError, NotFoundError
from api.kube import KubeClient
from api.slices import Device, Taint
from controller.offers.comparing import lost_fields
from controller.offers.offering import NoMode, OfferMode, SliceContent
from controller.offers.publishing import render_content

PROBE_NODE = "vgpu-probe.invalid"
"""A node that cannot exist: `.invalid` is reserved for such names (RFC 2606)."""

_REFUSED = (400, 422)
"""HTTP: the object is not one that this API server takes."""
_TAINTED = (SliceContent((Device(name="probe", taints=(Taint(names.TAINT_CORDONED),)),)),)


@dataclass(frozen=True)
class Lost:
    """What an API server does not keep of a sample; both empty: it keeps all."""

    fields: tuple[str, ...] = ()
    """Dropped without a word."""
    refusal: str = ""

    def __bool__(self) -> bool:
        return bool(self.fields or self.refusal)


def choose_mode(kube: KubeClient, modes: Sequence[OfferMode], driver: str, version: str) -> OfferMode:
    """Return the first mode whose fields the API server keeps; NoMode, with the reason, if it keeps none.

    Raises:
        KubeError: the API server did not answer, or refused for another reason than what a sample holds.
    """
    reasons = []
    for mode in modes:
        lost = probe(kube, mode.sample(), driver, version)
        if not lost:
            return mode
        reasons.append(lost.refusal or dropped_fields(mode, lost.fields))
    return NoMode(" ".join(dict.fromkeys(reasons)))


def keeps_taints(kube: KubeClient, driver: str, version: str) -> bool:
    """Say whether the API server keeps the taints of devices.

    Raises:
        KubeError: as with `choose_mode`.
    """
    return not probe(kube, _TAINTED, driver, version)


def probe(kube: KubeClient, sample: Sequence[SliceContent], driver: str, version: str) -> Lost:
    """Return what the API server does not keep of a sample."""
    wanted = [_render(content, index, len(sample), driver, version) for index, content in enumerate(sample)]
    resource = kube_api.slices(version)
    lost: list[str] = []
    try:
        for obj in wanted:
            try:
                stored = kube.create(resource, obj)
            except ConflictError:
                # Left by a controller that was killed here, and perhaps of another mode.
                _remove(kube, obj, version)
                stored = kube.create(resource, obj)
            lost += lost_fields(obj["spec"], stored["spec"])
    except KubeError as error:
        if error.status not in _REFUSED:
            raise
        return Lost(refusal=str(error))
    finally:
        for obj in wanted:
            with contextlib.suppress(KubeError):
                _remove(kube, obj, version)
    return Lost(tuple(dict.fromkeys(lost)))


def dropped_fields(mode: OfferMode, lost: Sequence[str]) -> str:
    """Return the message for an API server that dropped fields."""
    gate = f": its feature gate {mode.feature_gate} is off" if mode.feature_gate else ""
    remedy = "; turn the gate on for kube-apiserver, kube-scheduler and kubelet" if mode.feature_gate else ""
    return (
        f"the API server dropped {', '.join(lost)} of a ResourceSlice{gate}. "
        f"Devices are not offered, since their limits could not be kept{remedy}"
    )


def _render(content: SliceContent, index: int, count: int, driver: str, version: str) -> dict[str, Any]:
    return {
        "apiVersion": f"{names.RESOURCE_GROUP}/{version}",
        "kind": "ResourceSlice",
        "metadata": {"name": f"{PROBE_NODE}-{driver}" + (f"-{index}" if index else "")},
        "spec": {
            "driver": driver,
            "nodeName": PROBE_NODE,
            "pool": {"name": PROBE_NODE, "generation": 1, "resourceSliceCount": count},
            **render_content(content, version),
        },
    }


def _remove(kube: KubeClient, obj: dict[str, Any], version: str) -> None:
    with contextlib.suppress(NotFoundError):
        kube.delete(kube_api.slices(version), {"metadata": {"name": obj["metadata"]["name"]}})
