"""DeviceTaintRules: which devices they taint, which claims put up with that, and what the others are told."""

from typing import Any

import pytest

from api.claims import ClaimView
from controller.reasons.capacities import RequestPolicy
from controller.reasons.describing import describe
from controller.reasons.fitting import OfferedDevice
from controller.reasons.reasoning import RequestExplanation, explain
from controller.reasons.tainting import tainted
from controller.reasons.taintrules import TaintRule, rule_trimmer
from tests.unit.controller.builders import DRIVER, GI, claim, request, taint_rule

TRIM = rule_trimmer(DRIVER)
LEAST = f'device.capacity["{DRIVER}"].memory.compareTo(quantity("%s")) >= 0'


def gpu(name: str = "gpu-0", node: str = "n1", vendor: str = "nvidia") -> OfferedDevice:
    amounts = {"memory": 10 * GI, "cores": 100}
    return OfferedDevice(node, name, vendor, amounts, {"cores": RequestPolicy(0)})


def kept(*rules: dict[str, Any]) -> list[TaintRule]:
    return [found for found in map(TRIM, rules) if found is not None]


def names_of_tainted(*rules: dict[str, Any]) -> list[str]:
    """Of two GPUs on each of two nodes."""
    devices = [gpu(name, node) for node in ("n1", "n2") for name in ("gpu-0", "gpu-1")]
    return [f"{device.node}/{device.name}" for device in tainted(devices, kept(*rules)) if device.taints]


def explained(asked: dict[str, Any], *rules: dict[str, Any]) -> list[RequestExplanation]:
    """Why a claim for one of one GPU waits."""
    view = ClaimView.from_object(claim(requests=[asked]))
    return explain([view], tainted([gpu()], kept(*rules)), {})


def findings(asked: dict[str, Any], *rules: dict[str, Any]) -> list[str]:
    return [str(finding) for explanation in explained(asked, *rules) for finding in explanation.findings]


def tolerating(*tolerations: dict[str, str]) -> dict[str, Any]:
    asked = request("gpu", memory="1Gi")
    asked["exactly"]["tolerations"] = list(tolerations)
    return asked


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({}, ["n1/gpu-0", "n1/gpu-1", "n2/gpu-0", "n2/gpu-1"]),
        ({"driver": DRIVER, "pool": "n2"}, ["n2/gpu-0", "n2/gpu-1"]),
        ({"device": "gpu-1"}, ["n1/gpu-1", "n2/gpu-1"]),
        ({"pool": "n1", "device": "gpu-1"}, ["n1/gpu-1"]),
        ({"driver": "nics.example"}, []),
        ({"pool": "n3"}, []),
        ({"deviceClassName": "vgpu-amd"}, []),
        ({"deviceClassName": "vgpu-nvidia", "pool": "n1"}, ["n1/gpu-0", "n1/gpu-1"]),
        ({"selectors": [{"cel": {"expression": LEAST % "11Gi"}}]}, []),
    ],
)
def test_a_rule_taints_the_devices_that_pass_all_its_selectors(selector: dict[str, Any], expected: list[str]) -> None:
    assert names_of_tainted(taint_rule(**selector)) == expected


@pytest.mark.parametrize("effect", ["None", "PreferNoSchedule"])
def test_an_effect_that_does_nothing_is_no_taint(effect: str) -> None:
    assert names_of_tainted(taint_rule(effect=effect)) == []


def test_a_rule_without_a_selector_selects_nothing() -> None:
    rule = taint_rule()
    del rule["spec"]["deviceSelector"]
    assert names_of_tainted(rule) == []


def test_a_device_names_the_rules_that_keep_it_from_a_claim() -> None:
    rules = taint_rule(pool="n1"), taint_rule("burning", effect="NoExecute", value="fan", device="gpu-0")
    (found,) = findings(request("gpu", memory="1Gi"), *rules)
    assert found == (
        "n1/gpu-0: CardTainted (DeviceTaintRule burning: example.com/repair=fan:NoExecute, "
        "DeviceTaintRule maintenance: example.com/repair:NoSchedule)"
    )


def test_a_device_that_is_tainted_and_has_no_room_says_both() -> None:
    (found,) = findings(request("gpu", memory="11Gi"), taint_rule())
    assert found == (
        "n1/gpu-0: CardTainted, CardInsufficientMemory (DeviceTaintRule maintenance: example.com/repair:NoSchedule; "
        "10Gi free of 10Gi, asked 11Gi)"
    )


@pytest.mark.parametrize(
    "toleration",
    [
        {"operator": "Exists"},
        {"key": "example.com/repair", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "example.com/repair", "value": "fan"},
        {"key": "example.com/repair", "operator": "Equal", "value": "fan", "effect": "NoSchedule"},
    ],
)
def test_a_claim_that_tolerates_the_taint_has_room(toleration: dict[str, str]) -> None:
    (found,) = explained(tolerating({"key": "other", "operator": "Exists"}, toleration), taint_rule(value="fan"))
    assert (found.fits_on, found.findings) == (("n1",), ())


@pytest.mark.parametrize(
    "toleration",
    [
        {"key": "example.com/other", "operator": "Exists"},
        {"key": "example.com/repair", "value": "psu"},
        {"key": "example.com/repair"},
        {"operator": "Exists", "effect": "NoExecute"},
        {"key": "example.com/repair", "operator": "Matches", "value": "fan"},
    ],
)
def test_a_claim_that_tolerates_other_taints_waits(toleration: dict[str, str]) -> None:
    assert findings(tolerating(toleration), taint_rule(value="fan")) == [
        "n1/gpu-0: CardTainted (DeviceTaintRule maintenance: example.com/repair=fan:NoSchedule)"
    ]


@pytest.mark.parametrize(
    "selector",
    [
        {"deviceClassName": "gpus-of-somebody"},
        {"selectors": [{"cel": {"expression": 'device.attributes["x"].y == "z"'}}]},
    ],
)
def test_a_rule_whose_cel_is_not_evaluated_is_named_as_a_doubt(selector: dict[str, Any]) -> None:
    (found,) = explained(request("gpu", memory="1Gi"), taint_rule(**selector))
    assert found.fits_on == ("n1",)
    assert found.is_ours
    assert describe([found]) == (
        "ResourceClaim demo/c: request gpu (memory 1Gi): has room on n1; the node's CPU, memory, taints and affinity "
        "are not looked at here: n1/gpu-0: CardTainted (has room; DeviceTaintRule maintenance: "
        "example.com/repair:NoSchedule, if its CEL selects the device)"
    )
    (tolerated,) = explained(tolerating({"operator": "Exists"}), taint_rule(**selector))
    assert not tolerated.is_ours
    assert not tolerated.findings


def test_a_doubtful_rule_is_named_beside_selectors_that_are_not_evaluated_either() -> None:
    asked = request("gpu", memory="1Gi")
    asked["exactly"]["selectors"] = [{"cel": {"expression": "true"}}]
    (found,) = findings(asked, taint_rule(deviceClassName="gpus-of-somebody"))
    assert found == (
        "n1/gpu-0: CardNotSelected (has room; left out by selectors, which are not evaluated here, or by the node, "
        "or by DeviceTaintRule maintenance: example.com/repair:NoSchedule, if its CEL selects the device)"
    )
