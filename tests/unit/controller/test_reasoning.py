"""Why a claim cannot be met: each device with its reason, as the scheduler counts."""

from collections.abc import Sequence
from typing import Any

import pytest

from api.claims import ClaimView
from controller.offers.counting import DeviceKey, Ledger, Usage
from controller.reasons.capacities import RequestPolicy
from controller.reasons.describing import describe
from controller.reasons.fitting import OfferedDevice, amounts
from controller.reasons.reasoning import RequestExplanation, explain
from tests.unit.controller.builders import DRIVER, GI, claim, request, result

MI = 1 << 20


def gpu(node: str = "n1", name: str = "gpu-0", memory_bytes: int = 10 * GI, **changes: Any) -> OfferedDevice:
    """A device of the consumable mode."""
    values: dict[str, Any] = {
        "vendor": "nvidia",
        "capacity": {"memory": memory_bytes, "cores": 100, "shares": 64},
        "policies": {
            "memory": RequestPolicy(memory_bytes, MI, memory_bytes, MI),
            "cores": RequestPolicy(0, 0, 100, 1),
            "shares": RequestPolicy(1, values=(1,)),
        },
    }
    return OfferedDevice(node, name, **values | changes)


def view(name: str = "c", **changes: Any) -> ClaimView:
    return ClaimView.from_object(claim(name, **changes))


def used(memory_gi: int = 0, cores: int = 0, shares: int = 1, **changes: Any) -> Usage:
    return Usage(memory_gi * GI, cores, shares, **{"claims": shares, **changes})


def findings(
    claims: ClaimView | Sequence[ClaimView],
    devices: Sequence[OfferedDevice],
    usage: dict[DeviceKey, Usage] | None = None,
) -> list[str]:
    """The findings of all requests as text."""
    found = explain([claims] if isinstance(claims, ClaimView) else claims, devices, usage or {})
    return [str(finding) for explanation in found for finding in explanation.findings]


N1 = ("n1", "gpu-0")


@pytest.mark.parametrize(
    ("asked", "usage", "finding"),
    [
        ({"memory": "999999Mi"}, {}, "CardInsufficientMemory (10Gi free of 10Gi, asked 999999Mi)"),
        ({"memory": "5Gi"}, {N1: used(6)}, "CardInsufficientMemory (4Gi free of 10Gi, asked 5Gi)"),
        ({"memory": "1Gi", "cores": "20"}, {N1: used(1, 90)}, "CardInsufficientCore (10 cores free of 100, asked 20)"),
        ({"memory": "1Gi"}, {N1: used(1, shares=64)}, "CardSharesExhausted (64 of 64 shares in use)"),
        (
            {"memory": "5Gi", "cores": "20"},
            {N1: used(6, 98)},
            "CardInsufficientMemory, CardInsufficientCore (4Gi free of 10Gi, asked 5Gi; 2 cores free of 100, asked 20)",
        ),
        ({}, {N1: used(1)}, "CardInUse (the whole device is asked, 1 share on it)"),
        ({"memory": "10Gi"}, {N1: used(1, shares=2)}, "CardInUse (the whole device is asked, 2 shares on it)"),
        ({"memory": "1Gi"}, {N1: Usage(claims=1, whole=1)}, "CardInUse (a claim holds the whole device)"),
        (
            {"memory": "1Gi"},
            {N1: used(12)},
            "CardInsufficientMemory (0 free of 10Gi, asked 1Gi)",
        ),
    ],
)
def test_a_device_says_what_is_missing_found_and_asked(
    asked: dict[str, str], usage: dict[DeviceKey, Usage], finding: str
) -> None:
    assert findings(view(**asked), [gpu()], usage) == [f"n1/gpu-0: {finding}"]


def test_a_withheld_device_says_why() -> None:
    withheld = OfferedDevice("n1", "gpu-0", withheld="Xid 79")
    assert findings(view(memory="1Gi"), [withheld]) == ["n1/gpu-0: CardUnhealthy (Xid 79)"]


def test_a_device_of_another_vendor_is_not_of_the_class() -> None:
    asked = view(requests=[request("gpu", device_class="vgpu-amd", memory="1Gi")])
    assert findings(asked, [gpu()]) == ["n1/gpu-0: CardNotSelected (vendor nvidia, asked DeviceClass vgpu-amd)"]


def test_a_capacity_that_no_device_has_is_named() -> None:
    asked = view(requests=[request("gpu", bandwidth="1")])
    assert findings(asked, [gpu()]) == [
        "n1/gpu-0: CardNotSelected (has no capacity bandwidth, but cores, memory, shares)"
    ]


@pytest.mark.parametrize("name", [f"{DRIVER}/memory", "other.example/memory"])
def test_names_of_capacities_are_compared_as_they_are_written(name: str) -> None:
    asked = view(requests=[request("gpu", **{name: "1Gi"})])
    assert findings(asked, [gpu()]) == [
        f"n1/gpu-0: CardNotSelected (has no capacity {name}, but cores, memory, shares)"
    ]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"cores": "150"}, "CardInsufficientCore (cores: one request can have 100 at most, asked 150)"),
        ({"shares": "2"}, "CardSharesExhausted (shares: one request can have 1 at most, asked 2)"),
    ],
)
def test_more_than_one_request_can_have_is_said_to_be_too_much_though_there_is_room(
    asked: dict[str, str], reason: str
) -> None:
    twice = gpu(capacity={"memory": 10 * GI, "cores": 200, "shares": 64})
    assert findings(view(requests=[request("gpu", memory="1Gi", **asked)]), [twice]) == [f"n1/gpu-0: {reason}"]


def test_another_choice_of_devices_is_looked_for_where_the_first_that_fit_do_not_go_together() -> None:
    asked = view(requests=[request("small", memory="1Gi"), request("large", memory="10Gi")])
    (small, large) = explain([asked], [gpu(), gpu(name="gpu-1", memory_bytes=2 * GI)], {})
    assert small.fits_on == large.fits_on == ("n1",)


def on_numa_node(name: str, number: int, **changes: Any) -> OfferedDevice:
    return gpu(name=name, attributes={"resource.kubernetes.io/numaNode": {"int": number}}, **changes)


def two(constraint: str) -> ClaimView:
    """A claim of two GPUs with a constraint."""
    asked = claim("c", requests=[{"name": "gpu", "exactly": {"deviceClassName": "vgpu", "count": 2}}])
    asked["spec"]["devices"]["constraints"] = [{constraint: "resource.kubernetes.io/numaNode"}]
    return ClaimView.from_object(asked)


def test_two_gpus_of_one_numa_node_are_found_wherever_they_are_in_the_order() -> None:
    devices = [on_numa_node("gpu-0", 0), on_numa_node("gpu-1", 1), on_numa_node("gpu-2", 1)]
    assert explain([two("matchAttribute")], devices, {})[0].fits_on == ("n1",)


@pytest.mark.parametrize(
    ("constraint", "numbers", "detail"),
    [
        ("matchAttribute", (0, 1), "another resource.kubernetes.io/numaNode than the other devices of the claim"),
        ("distinctAttribute", (1, 1), "the same resource.kubernetes.io/numaNode as another device of the claim"),
    ],
)
def test_devices_that_a_constraint_keeps_from_going_together_are_said_to(
    constraint: str, numbers: tuple[int, int], detail: str
) -> None:
    devices = [on_numa_node(f"gpu-{place}", number) for place, number in enumerate(numbers)]
    assert findings(two(constraint), devices) == [
        f"n1/gpu-1: CardNotSelected (has room, but {detail})",
        "n1/gpu-0: CardNotSelected (has room, but 1 of the 2 devices wanted for request gpu have)",
    ]


def test_a_device_without_the_attribute_that_a_constraint_compares_is_named_with_it() -> None:
    (found,) = findings(two("matchAttribute"), [gpu()])
    assert found == (
        "n1/gpu-0: CardNotSelected (has room, but no attribute resource.kubernetes.io/numaNode, which a constraint of "
        "the claim compares)"
    )


def test_all_devices_are_those_that_the_request_can_mean() -> None:
    everything = {"name": "gpu", "exactly": {"deviceClassName": "vgpu-nvidia", "allocationMode": "All"}}
    devices = [gpu(), gpu(name="gpu-1", vendor="amd")]
    assert explain([view(requests=[everything])], devices, {})[0].fits_on == ("n1",)
    assert findings(view(requests=[everything]), devices, {N1: used(1)}) == [
        "n1/gpu-0: CardInUse (the whole device is asked, 1 share on it)"
    ]


def test_a_claim_for_more_devices_than_it_can_be_given_says_so() -> None:
    slots = [slot(f"slot-{number}", 1) for number in range(33)]
    everything = {"name": "gpu", "exactly": {"deviceClassName": "vgpu", "allocationMode": "All"}}
    found = findings(view(requests=[everything]), slots)
    assert set(found) == {
        f"n1/slot-{number}: CardNotSelected (has room, but a claim can be given no more than 32 devices)"
        for number in range(33)
    }


def test_an_administrator_may_look_at_a_device_that_somebody_holds() -> None:
    looking = {"name": "gpu", "exactly": {"deviceClassName": "vgpu", "adminAccess": True}}
    held = {("n1", "slot-0"): Usage(claims=1, whole=1)}
    assert explain([view(requests=[looking])], [slot("slot-0", 4)], held)[0].fits_on == ("n1",)


def test_a_device_that_is_not_shared_is_in_use_with_its_first_claim() -> None:
    alone = OfferedDevice("n1", "gpu-0", capacity={"memory": 10 * GI}, shared=False)
    assert findings(view(memory="1Gi"), [alone], {N1: used(1)}) == [
        "n1/gpu-0: CardInUse (a claim holds the whole device)"
    ]


def test_requests_are_rounded_as_the_scheduler_rounds() -> None:
    asked = view(memory="1500k").requests[0]
    assert amounts(asked, gpu()) == {"memory": 2 * MI, "cores": 0, "shares": 1}
    nothing = view(memory="0", cores="0").requests[0]
    assert amounts(nothing, gpu()) == {"memory": MI, "cores": 0, "shares": 1}


def test_two_requests_of_one_claim_do_not_fit_where_each_alone_would() -> None:
    asked = view(requests=[request("a", memory="6Gi"), request("b", memory="6Gi")])
    assert findings(asked, [gpu()]) == ["n1/gpu-0: CardInsufficientMemory (4Gi free of 10Gi, asked 6Gi)"]


def test_two_claims_of_one_pod_do_not_fit_where_each_alone_would() -> None:
    pod = [view("a", memory="6Gi"), view("b", memory="6Gi")]
    found = explain(pod, [gpu()], {})
    assert [explanation.claim for explanation in found] == ["demo/b"]
    assert findings(pod, [gpu(), gpu("n2", "gpu-1")]) == [
        "n1/gpu-0: CardInsufficientMemory (4Gi free of 10Gi, asked 6Gi)",
        "n2/gpu-1: CardInsufficientMemory (4Gi free of 10Gi, asked 6Gi)",
    ]
    (first, second) = explain(pod, [gpu(), gpu(name="gpu-1")], {})
    assert first.fits_on == second.fits_on == ("n1",)
    assert not first.is_ours


def test_devices_of_different_nodes_cannot_serve_one_claim_together() -> None:
    asked = view(requests=[request("a"), request("b")])
    assert findings(asked, [gpu(), gpu("n2", "gpu-1")]) == [
        "n1/gpu-0: CardInUse (the whole device is asked, 1 share on it)",
        "n2/gpu-1: CardInUse (the whole device is asked, 1 share on it)",
    ]


def test_a_pod_that_has_one_claim_already_can_only_go_to_its_node() -> None:
    there = ClaimView.from_object(claim("a", results=[result("gpu-0", memory="1Gi", cores="0", shares="1")]))
    pod = [there, view("b", memory="10Gi")]
    assert findings(pod, [gpu(), gpu("n2", "gpu-1")], {N1: used(1)}) == [
        "n1/gpu-0: CardInUse (the whole device is asked, 1 share on it)"
    ]


def test_one_alternative_of_first_available_is_enough() -> None:
    alternatives = [
        {"name": "big", "deviceClassName": "vgpu", "capacity": {"requests": {"memory": "40Gi"}}},
        {"name": "small", "deviceClassName": "vgpu", "capacity": {"requests": {"memory": "8Gi"}}},
    ]
    asked = view(requests=[{"name": "gpu", "firstAvailable": alternatives}])
    assert explain([asked], [gpu()], {})[0].fits_on == ("n1",)
    assert findings(asked, [gpu()], {N1: used(6)}) == ["n1/gpu-0: CardInsufficientMemory (4Gi free of 10Gi, asked 8Gi)"]


def test_several_devices_for_one_request_must_be_there_at_once() -> None:
    two = {"name": "gpu", "exactly": {"deviceClassName": "vgpu", "count": 2}}
    assert findings(view(requests=[two]), [gpu(), gpu(name="gpu-1")], {N1: used(1)}) == [
        "n1/gpu-0: CardInUse (the whole device is asked, 1 share on it)",
        "n1/gpu-1: CardNotSelected (has room, but 1 of the 2 devices wanted for request gpu have)",
    ]


def test_selectors_are_named_where_they_must_be_what_leaves_a_device_out() -> None:
    selecting = request("gpu", memory="1Gi")
    selecting["exactly"]["selectors"] = [{"cel": {"expression": "false"}}]
    (explanation,) = explain([view(requests=[selecting])], [gpu()], {})
    assert explanation.is_ours
    assert describe([explanation]) == (
        "ResourceClaim demo/c: request gpu (memory 1Gi): no device is selected: n1/gpu-0: CardNotSelected "
        "(has room; left out by selectors, which are not evaluated here, or by the node)"
    )


def test_a_foreign_device_class_may_select_too() -> None:
    (explanation,) = explain([view(requests=[request("gpu", device_class="team-gpus", memory="1Gi")])], [gpu()], {})
    assert explanation.is_ours


def test_where_devices_have_room_the_node_is_what_is_missing() -> None:
    (explanation,) = explain([view(memory="1Gi")], [gpu()], {})
    assert not explanation.is_ours
    assert describe([explanation]) == (
        "ResourceClaim demo/c: request gpu (memory 1Gi): has room on n1; the node's CPU, memory, taints and affinity "
        "are not looked at here"
    )


def test_a_cluster_without_devices_is_said_to_be_one() -> None:
    assert describe(explain([view()], [], {})) == (
        "ResourceClaim demo/c: request gpu (a whole device): no node offers a device; is the node agent running?"
    )


def test_every_device_of_every_node_is_named() -> None:
    devices = [gpu("n2", "gpu-1"), gpu("n1", "gpu-0"), gpu("n1", "gpu-2", 4 * GI)]
    assert describe(explain([view(memory="80Gi", cores="10")], devices, {})) == (
        "ResourceClaim demo/c: request gpu (cores 10, memory 80Gi): 0 of 3 devices can serve it: "
        "n1/gpu-0: CardInsufficientMemory (10Gi free of 10Gi, asked 80Gi); "
        "n1/gpu-2: CardInsufficientMemory (4Gi free of 4Gi, asked 80Gi); "
        "n2/gpu-1: CardInsufficientMemory (10Gi free of 10Gi, asked 80Gi)"
    )


@pytest.mark.parametrize("devices", [10, 11, 12, 13, 100, 1600])
def test_a_long_text_is_cut_at_1024_characters_between_devices(devices: int) -> None:
    found = explain([view(memory="80Gi")], [gpu(f"n{index:04d}") for index in range(devices)], {})
    text = describe(found)
    shown = text.count("CardInsufficientMemory")
    assert len(text) <= 1024
    assert f"0 of {devices} devices" in text
    if shown < devices:
        assert text.endswith(f"asked 80Gi); and {devices - shown} more")
        assert len(text) > 900
    else:
        assert text.endswith("asked 80Gi)")


def test_texts_of_several_requests_stand_one_after_the_other() -> None:
    asked = view(requests=[request("a", memory="80Gi"), request("b", memory="90Gi")])
    text = describe(explain([asked], [gpu()], {}))
    assert text == (
        "ResourceClaim demo/c: request a (memory 80Gi): 0 of 1 device can serve it: "
        "n1/gpu-0: CardInsufficientMemory (10Gi free of 10Gi, asked 80Gi). "
        "ResourceClaim demo/c: request b (memory 90Gi): 0 of 1 device can serve it: "
        "n1/gpu-0: CardInsufficientMemory (10Gi free of 10Gi, asked 90Gi)"
    )


def test_an_explanation_knows_its_claim() -> None:
    (explanation,) = explain([view("train", memory="80Gi")], [gpu()], {})
    assert isinstance(explanation, RequestExplanation)
    assert explanation.claim == "demo/train"


def test_the_ledger_adds_up_what_claims_consume_and_gives_it_back() -> None:
    ledger = Ledger(DRIVER)
    first = ClaimView.from_object(
        claim("a", results=[result("gpu-0", memory="2Gi", cores="25", shares="1"), result("gpu-1", memory="1Gi")])
    )
    second = ClaimView.from_object(claim("b", results=[result("gpu-0", memory="3Gi", cores="40", shares="1")]))
    ledger.note(first.uid, first.allocation)
    ledger.note(first.uid, first.allocation)
    ledger.note(second.uid, second.allocation)
    assert ledger.usage()["n1", "gpu-0"] == Usage(5 * GI, 65, 2, 2)
    ledger.note(first.uid, None)
    assert ledger.usage() == {("n1", "gpu-0"): Usage(3 * GI, 40, 1, 1)}
    ledger.note(second.uid, None)
    assert ledger.usage() == {}


def test_the_ledger_reads_prefixed_capacities_and_skips_foreign_and_admin_access() -> None:
    ledger = Ledger(DRIVER)
    prefixed = result("gpu-0") | {"consumedCapacity": {f"{DRIVER}/memory": "2Gi"}}
    foreign = result("gpu-0", driver="other.example", memory="2Gi")
    admin = result("gpu-0", memory="2Gi") | {"adminAccess": True}
    view_of = ClaimView.from_object(claim("a", results=[prefixed, foreign, admin, result("gpu-1")]))
    ledger.note(view_of.uid, view_of.allocation)
    assert ledger.usage() == {
        ("n1", "gpu-0"): Usage(2 * GI, claims=1, idle=1),
        ("n1", "gpu-1"): Usage(claims=1, whole=1),
    }


def slot(name: str, memory_gi: int) -> OfferedDevice:
    return OfferedDevice("n1", name, "nvidia", {"memory": memory_gi * GI, "cores": 25}, shared=False)


def at_least(quantity: str, more: str = "") -> ClaimView:
    asked = request("gpu")
    cel = f'device.capacity["{DRIVER}"].memory.compareTo(quantity("{quantity}")) >= 0{more}'
    asked["exactly"]["selectors"] = [{"cel": {"expression": cel}}]
    return view(requests=[asked])


def test_a_claim_for_a_slot_is_told_which_are_too_small_and_which_are_taken() -> None:
    usage = {("n1", "large"): Usage(claims=1, whole=1)}
    (found,) = explain([at_least("8Gi")], [slot("small", 4), slot("large", 8)], usage)
    assert describe([found]) == (
        "ResourceClaim demo/c: request gpu (memory at least 8Gi): 0 of 2 devices can serve it: "
        "n1/small: CardNotSelected (memory 4Gi, asked at least 8Gi); "
        "n1/large: CardInUse (a claim holds the whole device)"
    )


@pytest.mark.parametrize("more", [" || true", ' && device.attributes["x"].y == 1'])
def test_what_is_not_understood_of_cel_is_said_to_be_left_to_the_scheduler(more: str) -> None:
    (finding,) = findings(at_least("4Gi", more), [slot("small", 4)])
    assert finding.startswith("n1/small: CardNotSelected (has room; left out by selectors, which are not evaluated")


def test_counters_of_which_claims_hold_more_than_is_offered_close_the_whole_node() -> None:
    def counted(name: str, gpu_name: str) -> OfferedDevice:
        amounts_ = {"memory": 8 * GI, "cores": 50}
        room = {"memory": 10 * GI, "cores": 100}
        return OfferedDevice("n1", name, "nvidia", amounts_, shared=False, drawn_on=gpu_name, draws=amounts_, room=room)

    held = {("n1", name): Usage(claims=1, whole=1) for name in ("a-0", "a-1")}
    devices = [counted("a-0", "gpu-a"), counted("a-1", "gpu-a"), counted("b-0", "gpu-b")]
    reason = "has room, but claims hold more of gpu-a than is offered: no device of the node is given out"
    assert findings(view(), devices, held)[-1] == f"n1/b-0: CardInUse ({reason})"
