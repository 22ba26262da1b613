"""Wrong parameters are found in claims and templates before anything is scheduled, with the exact reason."""

from typing import Any

import pytest

from api.nodeinventory import InventorySpec, NodeInventory
from controller.cluster.records import claim_trimmer, class_trimmer, trim_pod
from controller.reasons.checking import check_cordons, check_template
from tests.unit.controller.builders import DRIVER, claim, device_class, facts, pod, request, result, status

HEAD = {"apiVersion": "vgpu.dra-driver.io/v1alpha1", "kind": "VGPUConfig"}


def problem(obj: dict[str, Any]) -> str:
    record = claim_trimmer(DRIVER)(obj)
    assert record is not None
    return record.problem


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"memroy": "1Gi"},
            "memroy: unknown field, expected one of memory, cores, policy, priority, overuse, apiVersion, kind",
        ),
        (
            {"memory": "-1Gi"},
            """memory: found '-1Gi', expected a quantity of memory above 0 such as "8Gi" or "500Mi\"""",
        ),
        ({"cores": 0}, "cores: found 0, expected a whole number from 1 to 100 (percent of one device)"),
        ({"cores": "30"}, "cores: found '30', expected a whole number from 1 to 100 (percent of one device)"),
        ({"policy": "Turbo"}, """policy: found 'Turbo', expected "Fixed" or "Burst\""""),
    ],
)
def test_a_wrong_field_is_named_with_what_was_found_and_expected(parameters: dict[str, Any], message: str) -> None:
    assert problem(claim(config=HEAD | parameters)) == f"ResourceClaim demo/c: {message}"


def test_right_parameters_are_no_problem() -> None:
    assert problem(claim(config=HEAD | {"memory": "1Gi", "cores": 30, "policy": "Burst"})) == ""


def test_parameters_of_other_drivers_are_not_ours_to_judge() -> None:
    foreign = claim(config={"kind": "Anything"})
    foreign["spec"]["devices"]["config"][0]["opaque"]["driver"] = "other.example"
    assert problem(foreign) == ""


def test_a_request_that_is_no_amount_is_a_problem_of_the_claim() -> None:
    assert problem(claim(memory="-1Gi")) == (
        "ResourceClaim demo/c: request gpu: capacity: memory: found '-1Gi', expected a whole number of 0 or above"
    )


def test_an_allocation_counts_whatever_else_the_claim_asks_for() -> None:
    """The API server takes amounts below 0, and the scheduler takes another alternative."""
    alternatives = [
        {"name": name, "deviceClassName": "vgpu", "capacity": {"requests": {"memory": memory}}}
        for name, memory in (("first", "-1"), ("second", "1Gi"))
    ]
    given = result("gpu-0", memory="1Gi", cores="0")
    odd = claim(requests=[{"name": "gpu", "firstAvailable": alternatives}], results=[given])
    record = claim_trimmer(DRIVER)(odd)
    assert record is not None
    assert record.view is not None
    assert record.view.allocation is not None
    assert record.view.allocation.results[0].consumed == {"memory": 1 << 30, "cores": 0}


def test_of_many_parameters_with_many_mistakes_a_few_are_told() -> None:
    wrong = claim(config=HEAD | {f"key{number}": 0 for number in range(1000)})
    wrong["spec"]["devices"]["config"] *= 32
    assert problem(wrong).count("\n") == 8
    assert problem(wrong).endswith("ResourceClaim demo/c: and 992 more")


def test_a_template_is_checked_like_the_claims_that_it_makes() -> None:
    template = {
        "metadata": {"namespace": "demo", "name": "t", "uid": "u"},
        "spec": {"spec": claim(config=HEAD | {"cores": 101})["spec"]},
    }
    assert check_template(template, DRIVER) == (
        "ResourceClaimTemplate demo/t: cores: found 101, expected a whole number from 1 to 100 (percent of one device)"
    )
    template["spec"] = {"spec": claim(memory="-1")["spec"]}
    assert check_template(template, DRIVER) == (
        "ResourceClaimTemplate demo/t: request gpu: capacity: memory: found '-1', expected a whole number of 0 or above"
    )


def test_of_an_allocated_claim_only_what_it_holds_of_our_devices_is_kept() -> None:
    trim = claim_trimmer(DRIVER)
    mixed = claim(results=[result("gpu-0", memory="1Gi"), result("nic-0", driver="other.example")], config=HEAD)
    record = trim(mixed)
    assert record is not None
    assert record.view is not None
    assert record.view.allocation is not None
    assert [held.device for held in record.view.allocation.results] == ["gpu-0"]
    assert record.view.requests == ()
    assert trim(claim(results=[result("nic-0", driver="other.example")])) is None


def test_classes_are_ours_if_they_name_our_driver() -> None:
    trim = class_trimmer(DRIVER)
    assert trim(device_class("team-gpus"))
    assert trim({"metadata": {"name": "x", "uid": "u"}, "spec": {"config": [{"opaque": {"driver": DRIVER}}]}})
    assert trim(device_class("nics", "other.example")) is None
    assert trim({"metadata": {"name": "all"}}) is None


def test_a_pod_is_kept_with_the_claims_that_were_made_for_it() -> None:
    made = pod("p", "shared")
    made["spec"]["resourceClaims"].append({"name": "own", "resourceClaimTemplateName": "t"})
    made["spec"]["resourceClaims"].append({"name": "later", "resourceClaimTemplateName": "t"})
    made["status"]["resourceClaimStatuses"] = [{"name": "own", "resourceClaimName": "p-own-x7k2p"}]
    record = trim_pod(made)
    assert record is not None
    assert record.claims == (("demo", "shared"), ("demo", "p-own-x7k2p"))
    assert record.unschedulable
    assert trim_pod(pod("plain")) is None


def test_requests_of_a_waiting_claim_are_kept() -> None:
    record = claim_trimmer(DRIVER)(claim(requests=[request("gpu", memory="1Gi")], config=HEAD))
    assert record is not None
    assert record.view is not None
    assert record.view.requests[0].capacity == {"memory": 1 << 30}
    assert record.view.configs == ()


def test_wrong_parameters_of_a_class_are_told_of_the_class() -> None:
    wrong = device_class("team-gpus")
    wrong["spec"]["config"] = [{"opaque": {"driver": DRIVER, "parameters": HEAD | {"memory": "lots"}}}]
    record = class_trimmer(DRIVER)(wrong)
    assert record is not None
    assert record.problem.startswith("DeviceClass team-gpus: memory: found 'lots', expected")


def test_a_cordon_of_what_is_no_device_is_a_problem_and_one_of_a_device_that_is_gone_is_not() -> None:
    here, gone = facts(0), facts(1)
    cordons = [here.name.upper(), here.uuid, gone.name, gone.uuid, "gpu-typo"]
    stated = NodeInventory(
        node_name="n1", resource_version="1", status=status(here), spec=InventorySpec(cordonedDevices=cordons)
    )
    assert check_cordons(stated) == (
        "NodeInventory n1: spec.cordonedDevices: found 'gpu-typo', expected names or UUIDs of devices; "
        f"the node has {here.name}"
    )
