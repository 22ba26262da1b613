"""What a claim gets, decided from plain data."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from api.claims import ClaimView
from api.errors import CapacityError, ClaimError, ConfigError
from api.names import ClaimUID
from api.nodeinventory import OfferedRoom
from kubeletplugin.claims.planning import plan
from kubeletplugin.hardware.devices import Device, DeviceTable
from kubeletplugin.hardware.nodeviews import NodeView
from kubeletplugin.state.ledgers import Prepared
from kubeletplugin.state.preparedclaims import PreparedClaim
from libvgpu.shares import Limits, Policy
from tests.unit.kubeletplugin.builders import GIB, NODE, claim_object, gpu, parameters, result

A, B = gpu(0), gpu(1)
FIELDS = "memory, cores, policy, priority, overuse, apiVersion, kind"
MIG = gpu(2, shareable=False, reason="MIG mode is enabled")
NODE_VIEW = NodeView("vgpu.dra-driver.io", NODE, DeviceTable([A, B, MIG]))


def planned(
    *results: Any, configs: Sequence[Any] = (), name: str = "train", prepared: Prepared | None = None
) -> PreparedClaim:
    claim = ClaimView.from_object(claim_object(name, results, configs))
    return plan(claim, NODE_VIEW, prepared or {})


def only_limits(*results: Any, configs: Sequence[Any] = ()) -> Limits:
    (limits,) = planned(*results, configs=configs).shares()
    return limits


def slot(size: str, **fields: Any) -> dict[str, Any]:
    return {**result(A, memory=None), "device": f"{A.name}-slot-{size}", **fields}


def compute(limits: Limits) -> tuple[int, int, Policy]:
    return limits.cores_percent, limits.ceiling_percent, limits.policy


def message(error: type[Exception], *results: Any, **options: Any) -> str:
    with pytest.raises(error) as caught:
        planned(*results, **options)
    return str(caught.value)


def test_a_share_gets_what_was_allocated() -> None:
    assert only_limits(result(A, "2Gi", "25")) == Limits("uid-train-0", A.uuid, 2 * GIB, 25, 25, Policy.FIXED)


def test_prefixed_names_of_consumed_capacity_count_as_well() -> None:
    prefixed = {"vgpu.dra-driver.io/memory": "3Gi", "vgpu.dra-driver.io/cores": "30"}

    limits = only_limits(result(A, consumedCapacity=prefixed))

    assert (limits.memory_bytes, limits.cores_percent) == (3 * GIB, 30)


def test_parameters_lower_memory_and_cores() -> None:
    limits = only_limits(result(A, "4Gi", "50"), configs=[parameters(memory="1Gi", cores=10)])

    assert (limits.memory_bytes, compute(limits)) == (GIB, (10, 10, Policy.FIXED))


def test_parameters_above_the_allocation_are_refused() -> None:
    assert message(ClaimError, result(A, "4Gi"), configs=[parameters(memory="5Gi")]) == (
        "ResourceClaim default/train: request gpu: memory: found 5Gi, expected at most the 4Gi that were allocated"
    )
    assert message(ClaimError, result(A, "4Gi", "25"), configs=[parameters(cores=26)]) == (
        "ResourceClaim default/train: request gpu: cores: found 26, expected at most the 25 that were allocated"
    )


def test_burst_keeps_the_guarantee_and_lifts_the_ceiling() -> None:
    assert compute(only_limits(result(A), configs=[parameters(policy="Burst")])) == (25, 100, Policy.BURST)


def test_a_slot_is_limited_by_its_size_whatever_else_the_result_says() -> None:
    for extra in {}, {"consumedCapacity": {"memory": "9Gi", "cores": "90"}, "shareID": "s"}:
        (device,) = planned(slot("2048m-25c-1", **extra)).devices
        assert device.device == f"{A.name}-slot-2048m-25c-1"
        assert device.limits == Limits("uid-train-0", A.uuid, 2 * GIB, 25, 25, Policy.FIXED)


def test_parameters_lower_a_slot_and_never_raise_it() -> None:
    assert only_limits(slot("2048m-25c-1"), configs=[parameters(memory="1Gi")]).memory_bytes == GIB
    assert message(ClaimError, slot("2048m-25c-1"), configs=[parameters(memory="3Gi")]) == (
        "ResourceClaim default/train: request gpu: memory: found 3Gi, expected at most the 2Gi that were allocated"
    )


def test_a_slot_larger_than_its_gpu_is_refused() -> None:
    assert message(ClaimError, slot("20480m-25c-0")) == (
        f"ResourceClaim default/train: request gpu: memory of {A.name}-slot-20480m-25c-0: found 20Gi, "
        f"expected at most the 10Gi of {A.name}"
    )


def test_slots_that_are_more_than_their_gpu_are_refused_with_both_claims() -> None:
    other = planned(slot("8192m-25c-0"), name="other")

    assert message(CapacityError, slot("4096m-25c-0"), prepared={ClaimUID("uid-other"): other}) == (
        f"{A.name}: memory: found 4Gi for ResourceClaim default/train and 8Gi for ResourceClaim default/other, "
        "expected at most 10Gi"
    )


def test_without_cores_a_share_has_idle_time_only() -> None:
    assert compute(only_limits(result(A, "2Gi", "0"))) == (0, 100, Policy.BURST)
    assert compute(only_limits(result(A, "2Gi", None))) == (0, 100, Policy.BURST)


def test_a_core_that_was_booked_for_a_share_that_asked_for_none_guarantees_nothing() -> None:
    assert compute(only_limits(result(A, "2Gi", "1"))) == (0, 100, Policy.BURST)
    asked = claim_object("train", [result(A, "2Gi", "1")])
    asked["spec"]["devices"]["requests"][0]["exactly"]["capacity"] = {"requests": {"cores": "1"}}
    (limits,) = plan(ClaimView.from_object(asked), NODE_VIEW, {}).shares()
    assert compute(limits) == (1, 1, Policy.FIXED)


def test_without_allocated_cores_the_parameter_is_a_ceiling() -> None:
    assert compute(only_limits(result(A, "2Gi", "0"), configs=[parameters(cores=30)])) == (0, 30, Policy.BURST)


def test_a_device_that_was_allocated_whole_is_the_limit_and_never_no_limit() -> None:
    limits = only_limits(result(A, memory=None))

    assert (limits.memory_bytes, compute(limits)) == (10 * GIB, (100, 100, Policy.FIXED))


def test_parameters_limit_a_device_that_was_allocated_whole() -> None:
    limits = only_limits(result(A, memory=None), configs=[parameters(memory="4Gi", cores=30)])

    assert (limits.memory_bytes, compute(limits)) == (4 * GIB, (30, 30, Policy.FIXED))


def asking(asked: dict[str, str], device: Device = A) -> ClaimView:
    """A claim that asks for amounts and was given a device whole, by a scheduler that does not know of amounts."""
    claim = claim_object("train", [result(device, memory=None)])
    claim["spec"]["devices"]["requests"][0]["exactly"]["capacity"] = {"requests": asked}
    return ClaimView.from_object(claim)


@pytest.mark.parametrize(
    ("asked", "memory_bytes", "expected"),
    [
        ({"memory": "4Gi", "cores": "10"}, 4 * GIB, (10, 10, Policy.FIXED)),
        ({"memory": "4Gi"}, 4 * GIB, (0, 100, Policy.BURST)),
        ({"memory": "4194305Ki"}, 4 * GIB + (1 << 20), (0, 100, Policy.BURST)),
        ({"cores": "10"}, 10 * GIB, (10, 10, Policy.FIXED)),
        ({"example.com/other": "1"}, 10 * GIB, (100, 100, Policy.FIXED)),
    ],
)
def test_a_claim_gets_what_it_asks_for_of_a_device_that_was_allocated_whole(
    asked: dict[str, str], memory_bytes: int, expected: tuple[int, int, Policy]
) -> None:
    (limits,) = plan(asking(asked), NODE_VIEW, {}).shares()

    assert (limits.memory_bytes, compute(limits)) == (memory_bytes, expected)


def test_a_device_that_was_allocated_whole_and_is_smaller_than_what_was_asked_for_is_refused() -> None:
    with pytest.raises(ClaimError) as caught:
        plan(asking({"memory": "11Gi"}), NODE_VIEW, {})

    assert str(caught.value) == (
        "ResourceClaim default/train: request gpu: found 11Gi of memory and 0 cores asked for, expected at most the "
        f"10Gi and 100 of {A.name}: the scheduler allocated it without amounts (feature gate DRAConsumableCapacity)"
    )


def test_a_shared_device_without_an_amount_of_memory_is_refused() -> None:
    assert message(ClaimError, result(A, consumedCapacity={"cores": "10"})) == (
        "ResourceClaim default/train: request gpu: consumedCapacity of memory: found 0, expected above 0 and at most "
        f"the 10Gi of {A.name}"
    )


def test_an_amount_above_the_device_is_refused() -> None:
    assert message(ClaimError, result(A, "11Gi")) == (
        "ResourceClaim default/train: request gpu: consumedCapacity of memory: found 11Gi, expected above 0 and at "
        f"most the 10Gi of {A.name}"
    )
    assert message(ClaimError, result(A, "1Gi", "101")) == (
        "ResourceClaim default/train: request gpu: consumedCapacity of cores: found 101, expected at most 100"
    )


def test_the_claim_wins_over_its_class_field_by_field() -> None:
    limits = only_limits(
        result(A, "8Gi", "50"),
        configs=[
            parameters("FromClaim", memory="2Gi"),
            parameters("FromClass", memory="4Gi", cores=20, policy="Burst"),
        ],
    )

    assert (limits.memory_bytes, compute(limits)) == (2 * GIB, (20, 100, Policy.BURST))


@pytest.mark.parametrize(
    ("of_class", "of_claim", "expected"),
    [
        (
            {"memory": "4Gi", "cores": 20, "policy": "Fixed", "overuse": "Kill", "priority": -10},
            {"memory": "8Gi", "cores": 50, "policy": "Burst", "overuse": "Report", "priority": 1000},
            (4 * GIB, (20, 20, Policy.FIXED), True, -10),
        ),
        ({"memory": "9Gi", "cores": 90}, {}, (8 * GIB, (50, 50, Policy.FIXED), False, 0)),
        ({"memory": "4Gi"}, {"cores": 40, "priority": 5}, (4 * GIB, (40, 40, Policy.FIXED), False, 5)),
        ({"priority": 7, "overuse": "Report"}, {"overuse": "Kill"}, (8 * GIB, (50, 50, Policy.FIXED), True, 7)),
        ({"priority": 7}, {"priority": -7, "memory": "1Gi"}, (GIB, (50, 50, Policy.FIXED), False, -7)),
    ],
    ids=["all", "above what was allocated", "left out", "unsaid by the claim", "narrower"],
)
def test_what_an_administrator_writes_into_a_class_binds_the_claim(
    of_class: dict[str, Any], of_claim: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    configs = [parameters("FromClass", **of_class), parameters("FromClaim", **of_claim)]

    limits = only_limits(result(A, "8Gi", "50"), configs=configs)

    assert (limits.memory_bytes, compute(limits), limits.kill_overuse, limits.priority) == expected


def test_a_share_without_guarantee_takes_no_more_idle_time_than_its_class_allows() -> None:
    configs = [parameters("FromClass", cores=20), parameters("FromClaim", cores=80)]

    assert compute(only_limits(result(A, "8Gi", "0"), configs=configs)) == (0, 20, Policy.BURST)


def test_wrong_parameters_of_a_class_are_told_as_such() -> None:
    expected = (
        "ResourceClaim default/train: parameters of its DeviceClass: policy: found 'Turbo', expected \"Fixed\" or"
    )

    assert message(ConfigError, result(A), configs=[parameters("FromClass", policy="Turbo")]).startswith(expected)


def test_parameters_reach_the_requests_that_they_name() -> None:
    claim = planned(
        result(A, request="small"),
        result(B, request="any/big"),
        configs=[parameters(requests=["any"], memory="1Gi")],
    )

    assert [limits.memory_bytes for limits in claim.shares()] == [2 * GIB, GIB]


def test_parameters_of_another_driver_are_not_read() -> None:
    foreign = {"source": "FromClaim", "opaque": {"driver": "gpu.example.com", "parameters": {"memory": "what"}}}

    assert only_limits(result(A), configs=[foreign]).memory_bytes == 2 * GIB


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"memroy": "1Gi"}, f"memroy: unknown field, expected one of {FIELDS}"),
        ({"memory": "-1Gi"}, 'memory: found \'-1Gi\', expected a quantity of memory above 0 such as "8Gi" or "500Mi"'),
        ({"memory": 0}, 'memory: found 0, expected a quantity of memory above 0 such as "8Gi" or "500Mi"'),
        ({"cores": 0}, "cores: found 0, expected a whole number from 1 to 100 (percent of one device)"),
        ({"cores": "many"}, "cores: found 'many', expected a whole number from 1 to 100 (percent of one device)"),
        ({"kind": "GpuConfig"}, "kind: found 'GpuConfig', expected \"VGPUConfig\""),
    ],
)
def test_bad_parameters_are_refused_with_their_field(fields: dict[str, Any], expected: str) -> None:
    config = parameters()
    config["opaque"]["parameters"].update(fields)

    assert message(ConfigError, result(A), configs=[config]) == f"ResourceClaim default/train: {expected}"


def test_limits_follow_the_device_and_not_the_order_of_results() -> None:
    claim = planned(result(B, "3Gi", request="b"), result(A, "1Gi", request="a"))

    assert {limits.device_uuid: limits.memory_bytes for limits in claim.shares()} == {A.uuid: GIB, B.uuid: 3 * GIB}


def test_results_of_other_drivers_are_left_out_and_keep_their_place() -> None:
    claim = planned(result(A, driver="nic.example.com", request="nic"), result(B))

    assert [(device.index, device.device) for device in claim.devices] == [(1, B.name)]
    assert [limits.share for limits in claim.shares()] == ["uid-train-1"]


def test_admin_access_gets_the_device_and_no_share() -> None:
    claim = planned(result(A, adminAccess=True))

    assert [device.limits for device in claim.devices] == [None]


def test_the_pods_that_may_use_a_claim_are_recorded() -> None:
    claim = claim_object("train", [result(A)])
    consumers = [("pods", "pod-b"), ("pods", "pod-a"), ("jobs", "job")]
    claim["status"]["reservedFor"] = [{"resource": kind, "name": uid, "uid": uid} for kind, uid in consumers]

    assert plan(ClaimView.from_object(claim), NODE_VIEW, {}).pods == ("pod-a", "pod-b")


def test_a_claim_without_allocation_is_refused() -> None:
    claim = claim_object("train", [result(A)])
    del claim["status"]["allocation"]

    with pytest.raises(ClaimError) as caught:
        plan(ClaimView.from_object(claim), NODE_VIEW, {})

    assert str(caught.value) == (
        "ResourceClaim default/train: found no allocation, expected one with devices of driver vgpu.dra-driver.io"
    )


def test_a_device_of_another_node_is_refused() -> None:
    assert message(ClaimError, result(A, pool="node-2")) == (
        f"ResourceClaim default/train: found device {A.name} of pool node-2, expected pool node-1"
    )


def test_a_device_that_is_kept_out_of_fractions_is_refused_with_its_reason() -> None:
    assert message(ClaimError, result(MIG)) == (
        f"ResourceClaim default/train: request gpu: device {MIG.name} cannot be shared: MIG mode is enabled"
    )


def test_all_claims_together_get_no_more_memory_than_the_device_has() -> None:
    first = planned(result(A, "6Gi", "10"), name="first")

    assert message(CapacityError, result(A, "5Gi", "10"), name="second", prepared={first.uid: first}) == (
        f"{A.name}: memory: found 5Gi for ResourceClaim default/second and 6Gi for ResourceClaim default/first, "
        "expected at most 10Gi"
    )
    planned(result(A, "4Gi", "10"), name="second", prepared={first.uid: first})
    planned(result(B, "6Gi", "10"), name="second", prepared={first.uid: first})


def test_all_claims_together_get_no_more_cores_than_the_device_has() -> None:
    first = planned(result(A, "1Gi", "60"), name="first")

    assert message(CapacityError, result(A, "1Gi", "41"), name="second", prepared={first.uid: first}) == (
        f"{A.name}: cores: found 41 for ResourceClaim default/second and 60 for ResourceClaim default/first, "
        "expected at most 100"
    )


def test_what_claims_have_narrowed_themselves_to_makes_no_room_for_others() -> None:
    narrow = [parameters(memory="4Gi", cores=40)]
    first = planned(result(A, "8Gi", "60"), configs=narrow, name="first")
    prepared = {first.uid: first}

    assert message(CapacityError, result(A, "8Gi", "40"), configs=narrow, name="second", prepared=prepared) == (
        f"{A.name}: memory: found 8Gi for ResourceClaim default/second and 8Gi for ResourceClaim default/first, "
        "expected at most 10Gi"
    )
    assert message(CapacityError, result(A, "2Gi", "60"), configs=narrow[1:], name="second", prepared=prepared) == (
        f"{A.name}: cores: found 60 for ResourceClaim default/second and 60 for ResourceClaim default/first, "
        "expected at most 100"
    )


def test_a_claim_that_was_given_a_whole_gpu_beside_parts_of_it_holds_what_it_wants_and_is_left() -> None:
    # As a scheduler does that knows no counters, on an API server that does.
    first = planned(result(A, "5Gi", "50"), name="first")
    second = planned(
        result(A, "10Gi", "100"),
        configs=[parameters(memory="4Gi", cores=40)],
        name="second",
        prepared={first.uid: first},
    )
    (share,) = second.devices
    assert share.limits is not None
    assert (share.limits.memory_bytes, share.limits.cores_percent) == (4 << 30, 40)
    assert share.held is not None
    assert (share.held.memory_bytes, share.held.cores_percent) == (4 << 30, 40)
    again = {first.uid: first, second.uid: second}
    assert (
        planned(result(A, "10Gi", "100"), configs=[parameters(memory="4Gi", cores=40)], name="second", prepared=again)
        == second
    )


def test_one_claim_that_holds_a_device_twice_is_counted_twice() -> None:
    assert message(CapacityError, result(A, "6Gi", request="a"), result(A, "6Gi", request="b")) == (
        f"{A.name}: memory: found 12Gi for ResourceClaim default/train, expected at most 10Gi"
    )


def test_a_claim_does_not_compete_with_its_own_former_record() -> None:
    former = planned(result(A, "6Gi"))

    assert planned(result(A, "6Gi"), prepared={ClaimUID("uid-train"): former}) == former


def test_a_mig_device_is_given_out_whole_without_limits_of_ours() -> None:
    part = gpu(3, type="mig", shareable=False)
    claim = ClaimView.from_object(claim_object("train", [result(part, memory=None, cores=None)]))
    (device,) = plan(claim, NodeView("vgpu.dra-driver.io", NODE, DeviceTable([part])), {}).devices
    assert device.limits is None


def test_a_mig_device_goes_to_one_claim_and_to_those_that_only_look_at_it() -> None:
    part = gpu(3, type="mig", shareable=False)
    view = NodeView("vgpu.dra-driver.io", NODE, DeviceTable([part]))
    prepared: dict[ClaimUID, PreparedClaim] = {}
    for name, admin in ("monitor", True), ("one", False), ("one", False), ("other-monitor", True):
        fields: dict[str, Any] = {"adminAccess": True} if admin else {}
        claim = ClaimView.from_object(claim_object(name, [result(part, memory=None, cores=None, **fields)]))
        prepared[claim.uid] = plan(claim, view, prepared)

    with pytest.raises(CapacityError) as caught:
        plan(ClaimView.from_object(claim_object("two", [result(part, memory=None, cores=None)])), view, prepared)

    assert str(caught.value) == (
        f"{part.name}: found it given to ResourceClaim default/one, expected it free for ResourceClaim default/two: "
        "a part that the hardware made has one holder"
    )


def test_a_device_that_is_held_back_is_refused_with_its_reason() -> None:
    held = gpu(3, offered=False, shareable=False, reason="held back by the setting hold_back: 3")
    claim = ClaimView.from_object(claim_object("train", [result(held)]))
    with pytest.raises(ClaimError) as caught:
        plan(claim, NodeView("vgpu.dra-driver.io", NODE, DeviceTable([held])), {})
    assert str(caught.value) == (
        f"ResourceClaim default/train: request gpu: device {held.name} is not offered: "
        "held back by the setting hold_back: 3"
    )


@pytest.mark.parametrize(
    "later",
    [
        {"offered": False, "shareable": False, "reason": "held back by the setting hold_back: 0"},
        {"shareable": False, "reason": "MIG mode is enabled"},
    ],
    ids=["held back", "divided"],
)
def test_a_claim_keeps_what_it_was_given_of_a_device_that_is_kept_from_new_claims_later(later: dict[str, Any]) -> None:
    former = planned(result(A))
    view = replace(NODE_VIEW, devices=DeviceTable([gpu(0, **later), B]))
    again = ClaimView.from_object(claim_object("train", [result(A)]))
    prepared = {former.uid: former}

    assert plan(again, view, prepared) == former
    for other in (
        ClaimView.from_object(claim_object("other", [result(A)])),
        ClaimView.from_object(claim_object("train", [result(A, shareID="share-anew")])),
    ):
        with pytest.raises(ClaimError, match=str(later["reason"])):
            plan(other, view, prepared)


def test_priority_and_what_overuse_means_come_from_the_parameters() -> None:
    plain = only_limits(result(A))
    chosen = only_limits(result(A), configs=[parameters(priority=-5, overuse="Kill")])
    assert (plain.priority, plain.kill_overuse) == (0, False)
    assert (chosen.priority, chosen.kill_overuse) == (-5, True)


@pytest.mark.parametrize(
    ("allocated", "configs", "whole"),
    [
        (("10Gi", "100"), (), True),
        (("10Gi", "100"), (parameters(priority=3),), True),
        (("10239Mi", "100"), (), False),
        (("10Gi", "99"), (), False),
        (("10Gi", "0"), (), False),
        (("10Gi", "100"), (parameters(memory="1Gi"),), False),
        (("10Gi", "100"), (parameters(cores=50),), False),
        (("10Gi", "100"), (parameters(policy="Fixed"),), False),
        (("10Gi", "100"), (parameters(overuse="Kill"),), False),
        ((None, None), (), False),  # nobody asked for all of it: an API server may have dropped what was asked
    ],
)
def test_a_claim_that_asked_for_all_of_a_gpu_and_says_nothing_needs_no_library(
    allocated: tuple[str | None, str | None], configs: Sequence[Any], whole: bool
) -> None:
    found = planned(result(A, *allocated), configs=configs)

    assert found.needs_no_library is whole


def test_a_claim_with_all_of_one_gpu_and_a_part_of_another_needs_the_library() -> None:
    found = planned(result(A, "10Gi", "100", request="a"), result(B, "1Gi", request="b"))

    assert [device.holds().whole for device in found.devices] == [True, False]
    assert not found.needs_no_library


def test_a_gpu_that_was_given_out_whole_gets_no_neighbour_when_more_of_it_is_offered_later() -> None:
    holder = planned(result(A, "10Gi", "100"), name="holder")
    offered = OfferedRoom(device=A.name, memory_bytes=20 * GIB, cores=200)
    view = replace(NODE_VIEW, offers={A.name: offered})
    claim = ClaimView.from_object(claim_object("train", [result(A, "1Gi", "0")]))

    with pytest.raises(CapacityError) as caught:
        plan(claim, view, {holder.uid: holder})

    assert str(caught.value) == (
        f"{A.name}: found all of it given to ResourceClaim default/holder, expected no share for ResourceClaim "
        "default/train beside it"
    )


def test_a_gpu_that_was_given_out_whole_is_full() -> None:
    holder = planned(result(A, "10Gi", "100"), name="holder")

    assert message(CapacityError, result(A, "1Gi", "0"), prepared={holder.uid: holder}) == (
        f"{A.name}: memory: found 1Gi for ResourceClaim default/train and 10Gi for ResourceClaim default/holder, "
        "expected at most 10Gi"
    )


def test_shares_of_a_device_that_is_oversubscribed_may_have_what_is_offered_together() -> None:
    offered = OfferedRoom(device=A.name, memory_bytes=20 * GIB, cores=200)
    view = NodeView("vgpu.dra-driver.io", NODE, DeviceTable([A]), {A.name: offered})
    prepared: dict[ClaimUID, PreparedClaim] = {}
    for name, memory in ("a", "10Gi"), ("b", "8Gi"):
        claim = ClaimView.from_object(claim_object(name, [result(A, memory, "100")]))
        prepared[claim.uid] = plan(claim, view, prepared)
        (limits,) = prepared[claim.uid].shares()
        assert limits.oversubscribe
        assert limits.host_memory_bytes == limits.memory_bytes // 2
        (device,) = prepared[claim.uid].devices
        assert device.held is not None
        assert not device.held.whole, "another share may be beside it"
    with pytest.raises(CapacityError, match=r"memory: found 4Gi for .* expected at most 20Gi"):
        plan(ClaimView.from_object(claim_object("c", [result(A, "4Gi", "0")])), view, prepared)


def test_a_share_that_may_oversubscribe_keeps_that_while_nothing_is_known_of_the_offer() -> None:
    view = replace(NODE_VIEW, offers={A.name: OfferedRoom(device=A.name, memory_bytes=20 * GIB, cores=200)})
    prepared: dict[ClaimUID, PreparedClaim] = {}
    claims = [ClaimView.from_object(claim_object(name, [result(A, "10Gi", "100")])) for name in ("a", "b")]
    for claim in claims:
        prepared[claim.uid] = plan(claim, view, prepared)

    assert [plan(claim, NODE_VIEW, prepared) for claim in claims] == list(prepared.values())


def test_a_share_above_what_its_gpu_has_keeps_it_while_nothing_is_known_of_the_offer() -> None:
    view = replace(NODE_VIEW, offers={A.name: OfferedRoom(device=A.name, memory_bytes=20 * GIB, cores=100)})
    for allocated in result(A, "15Gi"), slot("15360m-25c-0"):
        claim = ClaimView.from_object(claim_object("train", [allocated]))
        first = plan(claim, view, {})
        assert plan(claim, NODE_VIEW, {claim.uid: first}) == first


def test_a_claim_with_another_allocation_keeps_nothing_of_the_one_before() -> None:
    view = replace(NODE_VIEW, offers={A.name: OfferedRoom(device=A.name, memory_bytes=20 * GIB, cores=100)})
    first = plan(ClaimView.from_object(claim_object("train", [result(A, "8Gi")])), view, {})
    again = ClaimView.from_object(claim_object("train", [result(A, "8Gi", shareID="another")]))

    (limits,) = plan(again, NODE_VIEW, {first.uid: first}).shares()

    assert (limits.oversubscribe, limits.host_memory_bytes) == (False, 0)


def test_a_claim_without_the_library_stays_alone_when_more_is_offered_later_and_it_is_prepared_again() -> None:
    claim = ClaimView.from_object(claim_object("holder", [result(A, "10Gi", "100")]))
    first = plan(claim, NODE_VIEW, {})
    view = replace(NODE_VIEW, offers={A.name: OfferedRoom(device=A.name, memory_bytes=20 * GIB, cores=200)})

    assert plan(claim, view, {claim.uid: first}).needs_no_library


@pytest.mark.parametrize(
    ("mode", "asked", "configs", "whole"),
    [
        ("counters", {}, (), True),
        ("counters", {"memory": "10Gi", "cores": "100"}, (), True),
        ("counters", {"memory": "4Gi", "cores": "100"}, (), False),
        ("counters", {}, (parameters(memory="1Gi"),), False),
        ("consumable", {}, (), False),  # nobody knows what it asked for
        ("slots", {}, (), False),
        ("", {}, (), False),
    ],
)
def test_a_whole_gpu_on_counters_needs_no_library(
    mode: str, asked: dict[str, str], configs: Sequence[Any], whole: bool
) -> None:
    claim = claim_object("train", [result(A, memory=None)], configs)
    claim["spec"]["devices"]["requests"][0]["exactly"]["capacity"] = {"requests": asked}

    found = plan(ClaimView.from_object(claim), replace(NODE_VIEW, offer_mode=mode), {})

    assert found.needs_no_library is whole
