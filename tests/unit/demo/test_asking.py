"""One claim in the form of each API version and offer mode."""

from typing import Any

import pytest

from api import kube as kube_api
from api.kubefake import FakeKube
from deploy.demo.asking import Dialect, dialect_of

SELECTOR = (
    'device.capacity["vgpu.dra-driver.io"].memory.compareTo(quantity("2Gi")) >= 0 && '
    'device.capacity["vgpu.dra-driver.io"].cores.compareTo(quantity("25")) >= 0'
)
NARROWED = {
    "requests": ["gpu"],
    "opaque": {
        "driver": "vgpu.dra-driver.io",
        "parameters": {
            "apiVersion": "vgpu.dra-driver.io/v1alpha1",
            "kind": "VGPUConfig",
            "memory": "2Gi",
            "cores": 25,
        },
    },
}
OWN = {"opaque": {"driver": "vgpu.dra-driver.io", "parameters": {"policy": "Burst"}}}
CAPACITY = {"requests": {"memory": "2Gi", "cores": "25"}}


def template() -> dict[str, Any]:
    exactly = {"deviceClassName": "vgpu-nvidia", "capacity": CAPACITY}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": "some"},
        "spec": {"spec": {"devices": {"requests": [{"name": "gpu", "exactly": exactly}], "config": [OWN]}}},
    }


def said(version: str, mode: str) -> tuple[str, dict[str, Any]]:
    found = Dialect(version, mode).say(template())
    return found["apiVersion"], found["spec"]["spec"]["devices"]


def test_where_capacity_is_consumable_a_claim_stays_as_it_is_written() -> None:
    assert Dialect("v1", "consumable").say(template()) == template()


@pytest.mark.parametrize("mode", ["counters", "slots"])
def test_for_devices_of_fixed_sizes_cel_chooses_and_parameters_narrow(mode: str) -> None:
    version, devices = said("v1", mode)
    selectors = [{"cel": {"expression": SELECTOR}}]
    exactly = {"deviceClassName": "vgpu-nvidia", "capacity": CAPACITY, "selectors": selectors}
    assert version == "resource.k8s.io/v1"
    assert devices == {"requests": [{"name": "gpu", "exactly": exactly}], "config": [NARROWED, OWN]}


def test_the_oldest_version_has_the_fields_of_a_request_inline_and_no_capacity() -> None:
    version, devices = said("v1beta1", "slots")
    request = {"name": "gpu", "deviceClassName": "vgpu-nvidia", "selectors": [{"cel": {"expression": SELECTOR}}]}
    assert version == "resource.k8s.io/v1beta1"
    assert devices == {"requests": [request], "config": [NARROWED, OWN]}


def test_the_version_of_1_33_has_the_fields_in_their_place_and_no_capacity() -> None:
    version, devices = said("v1beta2", "slots")
    exactly = {"deviceClassName": "vgpu-nvidia", "selectors": [{"cel": {"expression": SELECTOR}}]}
    assert version == "resource.k8s.io/v1beta2"
    assert devices == {"requests": [{"name": "gpu", "exactly": exactly}], "config": [NARROWED, OWN]}


def test_pods_are_the_same_everywhere() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "some"}}
    assert Dialect("v1beta1", "slots").say(pod) == pod


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ({"allowMultipleAllocations": True}, "consumable"),
        ({"consumesCounters": [{"counterSet": "gpu"}]}, "counters"),
        ({"basic": {"capacity": {}}}, "slots"),
    ],
)
def test_the_offer_mode_is_seen_on_what_is_offered(fields: dict[str, Any], mode: str) -> None:
    kube = FakeKube({"resource.k8s.io": ("v1beta1",)})
    device = {"name": "some", **fields}
    spec = {"driver": "vgpu.dra-driver.io", "nodeName": "n1", "devices": [device]}
    kube.create(kube_api.slices("v1beta1"), {"metadata": {"name": "one"}, "spec": spec})
    assert dialect_of(kube, "n1") == Dialect("v1beta1", mode)
