"""`dra-driver explain`: the reasons in text, from one look at the cluster."""

import pytest

from api import kube as kube_api
from api.errors import KubeError, NotFoundError
from api.kube import JSON, Resource, Selection
from api.kubefake import FakeKube
from controller.explaining import explain_claim, explain_pod
from controller.offers.consumable import ConsumableMode
from controller.offers.counters import CountersMode
from controller.offers.policies import Policy
from controller.offers.publishing import Pool, render
from tests.unit.controller.builders import (
    CLAIMS,
    CLASSES,
    DRIVER,
    GI,
    SLICES,
    claim,
    device_class,
    facts,
    offered,
    pod,
    request,
    result,
    state_inventory,
    status,
    taint_rule,
)

CONFIG = {"apiVersion": "vgpu.dra-driver.io/v1alpha1", "kind": "VGPUConfig", "cores": 0}
GPU = facts().name
RULES = kube_api.taint_rules("v1")


@pytest.fixture
def kube() -> FakeKube:
    """One node with a GPU of 10 GiB, of which 6 are taken, and a broken one."""
    fake = FakeKube()
    fake.create(CLASSES, device_class())
    stated = status(facts(), facts(1, healthy=False, health="Xid 79"))
    state_inventory(fake, "n1", stated)
    for obj in render(Pool(DRIVER, "n1", "uid", offered(ConsumableMode(), *stated.devices).slices, "v1"), 1):
        fake.create(SLICES, obj)
    fake.create(CLAIMS, claim("held", results=[result(GPU, memory="6Gi", cores="60", shares="1")]))
    return fake


def test_a_waiting_claim_is_explained_device_by_device(kube: FakeKube) -> None:
    kube.create(CLAIMS, claim("waits", memory="8Gi", cores="30", config=CONFIG))
    assert explain_claim(kube, "demo", "waits").splitlines() == [
        "ResourceClaim demo/waits: cores: found 0, expected a whole number from 1 to 100 (percent of one device)",
        "ResourceClaim demo/waits: request gpu (cores 30, memory 8Gi): 0 of 2 devices can serve it",
        f"  n1/{GPU}: CardInsufficientMemory (4Gi free of 10Gi, asked 8Gi)",
        f"  n1/{facts(1).name}: CardUnhealthy (Xid 79)",
    ]


def test_an_allocated_claim_shows_what_it_holds(kube: FakeKube) -> None:
    assert explain_claim(kube, "demo", "held") == (
        f"ResourceClaim demo/held: request gpu holds n1/{GPU}, cores 60, memory 6Gi, shares 1"
    )


def test_the_claims_of_a_pod_are_explained_together(kube: FakeKube) -> None:
    kube.create(CLAIMS, claim("a", memory="3Gi"))
    kube.create(CLAIMS, claim("b", memory="3Gi"))
    kube.create(kube_api.PODS, pod("p", "a", "b", "missing"))
    assert explain_pod(kube, "demo", "p").splitlines() == [
        "ResourceClaim demo/missing: there is none; the pod waits for it",
        "ResourceClaim demo/b: request gpu (memory 3Gi): 0 of 2 devices can serve it",
        f"  n1/{GPU}: CardInsufficientMemory (1Gi free of 10Gi, asked 3Gi)",
        f"  n1/{facts(1).name}: CardUnhealthy (Xid 79)",
    ]


def test_a_pod_without_claims_is_said_to_have_none(kube: FakeKube) -> None:
    kube.create(kube_api.PODS, pod("plain"))
    assert explain_pod(kube, "demo", "plain") == (
        "Pod demo/plain: it has no ResourceClaims, or they have not been made yet"
    )


def test_claims_of_other_drivers_are_not_explained(kube: FakeKube) -> None:
    kube.create(CLASSES, device_class("nics", "other.example"))
    kube.create(CLAIMS, claim("nic", requests=[{"name": "r", "exactly": {"deviceClassName": "nics"}}]))
    kube.create(CLAIMS, claim("has-nic", results=[result("nic-0", driver="other.example")]))
    assert explain_claim(kube, "demo", "nic") == (
        "ResourceClaim demo/nic: none of its DeviceClasses selects devices of vgpu.dra-driver.io"
    )
    assert explain_claim(kube, "demo", "has-nic") == (
        "ResourceClaim demo/has-nic: allocated, by another driver than vgpu.dra-driver.io"
    )


def test_a_request_for_another_drivers_devices_takes_nothing_of_ours(kube: FakeKube) -> None:
    kube.create(CLASSES, device_class("nics", "other.example"))
    nic = {"name": "nic", "exactly": {"deviceClassName": "nics", "count": 8}}
    kube.create(CLAIMS, claim("both", requests=[nic, request("gpu", memory="4Gi")]))
    assert explain_claim(kube, "demo", "both") == (
        "ResourceClaim demo/both: request gpu (memory 4Gi): has room on n1; the node's CPU, memory, taints and "
        "affinity are not looked at here"
    )


def test_a_claim_that_tolerates_a_cordon_is_told_what_else_hinders(kube: FakeKube) -> None:
    kube.patch(kube_api.NODE_INVENTORIES, {"metadata": {"name": "n1"}}, {"spec": {"cordonedDevices": [GPU]}})
    (stored,) = kube.objects(SLICES)
    taint = {"key": "vgpu.dra-driver.io/cordoned", "effect": "NoSchedule"}
    (device,) = [each for each in stored["spec"]["devices"] if each["name"] == GPU]
    device["taints"] = [taint]
    kube.replace(SLICES, stored)
    asked = request("gpu", memory="8Gi")
    kube.create(CLAIMS, claim("kept-away", requests=[asked]))
    tolerant = {**asked, "exactly": {**asked["exactly"], "tolerations": [{"key": taint["key"], "operator": "Exists"}]}}
    kube.create(CLAIMS, claim("tolerant", requests=[tolerant]))
    reasons = [explain_claim(kube, "demo", name).splitlines()[1] for name in ("kept-away", "tolerant")]
    assert reasons == [
        f"  n1/{GPU}: CardCordoned (cordoned by an operator)",
        f"  n1/{GPU}: CardInsufficientMemory (4Gi free of 10Gi, asked 8Gi)",
    ]


def test_a_claim_that_does_not_exist_is_an_error(kube: FakeKube) -> None:
    with pytest.raises(NotFoundError) as error:
        explain_claim(kube, "demo", "nothing")
    assert str(error.value) == "ResourceClaim demo/nothing: found none, expected one"


def test_the_account_of_the_controller_may_ask_all_that_an_explanation_needs(kube: FakeKube) -> None:
    # Who has no kubeconfig runs the program in the controller's pod, which may list and watch.
    kube.create(CLAIMS, claim("waits", memory="8Gi"))
    kube.create(kube_api.PODS, pod("p", "waits"))
    kube.requests.clear()
    assert "CardInsufficientMemory" in explain_pod(kube, "demo", "p")
    assert {verb for verb, path in kube.requests if not path.startswith("/apis/resource.k8s.io")} == {"list"}


def test_devices_on_counters_that_others_have_drawn_on_say_what_is_left() -> None:
    fake = FakeKube()
    fake.create(CLASSES, device_class())
    stated = status(facts(memory_bytes=16 * GI))
    state_inventory(fake, "n1", stated)
    offer = offered(CountersMode(), *stated.devices, policy=Policy(menu=True))
    for obj in render(Pool(DRIVER, "n1", "uid", offer.slices, "v1"), 1):
        fake.create(SLICES, obj)
    fake.create(CLAIMS, claim("held", results=[result(f"{GPU}-slot-8192m-50c-0")]))
    waits = claim("waits")
    cel = 'device.capacity["vgpu.dra-driver.io"].memory.compareTo(quantity("9Gi")) >= 0'
    waits["spec"]["devices"]["requests"][0]["exactly"]["selectors"] = [{"cel": {"expression": cel}}]
    fake.create(CLAIMS, waits)
    lines = explain_claim(fake, "demo", "waits").splitlines()
    assert lines[0] == "ResourceClaim demo/waits: request gpu (memory at least 9Gi): 0 of 7 devices can serve it"
    assert lines[1] == f"  n1/{GPU}-slot-4096m-25c-0: CardNotSelected (memory 4Gi, asked at least 9Gi)"
    assert lines[-1] == f"  n1/{GPU}: CardInsufficientMemory (memory: 8Gi of {GPU} left, it needs 16Gi)"


def test_a_device_that_a_rule_taints_names_the_rule(kube: FakeKube) -> None:
    kube.set_kinds(RULES)
    kube.create(RULES, taint_rule(pool="n1"))
    kube.create(CLAIMS, claim("waits", memory="1Gi"))
    assert explain_claim(kube, "demo", "waits").splitlines() == [
        "ResourceClaim demo/waits: request gpu (memory 1Gi): 0 of 2 devices can serve it",
        f"  n1/{GPU}: CardTainted (DeviceTaintRule maintenance: example.com/repair:NoSchedule)",
        f"  n1/{facts(1).name}: CardUnhealthy (Xid 79)",
    ]


class ClosedKube(FakeKube):
    """An API server that does not show DeviceTaintRules to this user."""

    def list(self, resource: Resource, selection: Selection = Selection()) -> JSON:  # noqa: B008 -- frozen
        if resource == RULES:
            raise KubeError("devicetaintrules is forbidden", 403)
        return super().list(resource, selection)


def test_rules_that_the_user_may_not_read_are_said_to_be_left_out() -> None:
    closed = ClosedKube()
    closed.set_kinds(RULES)
    closed.create(CLASSES, device_class())
    closed.create(CLAIMS, claim("waits", memory="1Gi"))
    closed.create(CLAIMS, claim("held", results=[result(GPU)]))
    assert explain_claim(closed, "demo", "waits").splitlines() == [
        "ResourceClaim demo/waits: request gpu (memory 1Gi): no node offers a device; is the node agent running?",
        "taints by DeviceTaintRules are not looked at: devicetaintrules is forbidden",
    ]
    assert "DeviceTaintRules" not in explain_claim(closed, "demo", "held")
