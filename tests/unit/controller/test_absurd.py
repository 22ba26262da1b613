"""What nobody means: inventories, amounts and Leases that pass the API server's schema and make no sense."""

import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api import kube as kube_api
from api import names
from api.errors import KubeError
from api.kube import LEASES
from api.kubefake import FakeKube
from api.nodeinventory import DeviceFacts, InventorySpec
from api.offerrules import OfferRule
from api.quantities import parse_count
from controller import leading
from controller.controller import Controller
from controller.offers.composing import Composer
from controller.offers.consumable import ConsumableMode
from controller.offers.counters import CountersMode
from controller.offers.offering import OfferMode
from controller.offers.policies import NodeDevices, Policy
from controller.offers.slots import SlotsMode
from tests.unit.controller.builders import (
    CLAIMS,
    SLICES,
    add_node,
    claim,
    device_class,
    facts,
    make_controller,
    offered,
    state_inventory,
    status,
    wait_until,
)
from tests.unit.controller.slicerules import violations

_WORDS = st.one_of(
    st.sampled_from(["", "580.65.06", "1.2.3.4", "00.01", "٣.٣", "x" * 100, "é" * 40]), st.text(max_size=70)
)
_NAMES = st.one_of(
    st.sampled_from(["gpu-a", "gpu-b", "", "GPU", "-", "a" * 64, "gpu-a-slot-1m-0c-0"]), st.text(max_size=8)
)
_BYTES = st.one_of(
    st.sampled_from([0, 1, (1 << 20) - 1, 1 << 20, 2 << 20, 80 << 30, (1 << 63) - 1]), st.integers(0, (1 << 63) - 1)
)
_FACTS = st.builds(
    DeviceFacts,
    name=_NAMES,
    uuid=_WORDS,
    vendor=_WORDS,
    product_name=_WORDS,
    memory_bytes=_BYTES,
    index=st.integers(0, 1 << 40),
    type=st.sampled_from(["gpu", "mig"]),
    driver_version=_WORDS,
    compute_capability=_WORDS,
    numa_node=st.one_of(st.none(), st.integers(-(1 << 63), (1 << 63) - 1)),
    healthy=st.booleans(),
)
_RULES = st.one_of(
    st.just({}),
    st.builds(
        lambda memory, cores, count: {"slots": [{"memory": memory, "cores": cores, "count": count}]},
        st.integers(1 << 20, (1 << 63) - 1),
        st.one_of(st.none(), st.integers(0, 100)),
        st.integers(1, 63),
    ),
)
_SCALING = st.one_of(st.none(), st.sampled_from([0.01, 10.0]))


@pytest.mark.parametrize("mode", [ConsumableMode(), CountersMode(), CountersMode(together=True), SlotsMode()], ids=str)
def test_whatever_an_inventory_states_the_api_server_takes_the_slices(mode: OfferMode) -> None:
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(st.lists(_FACTS, max_size=4), _SCALING, _SCALING, _RULES, st.booleans())
    def check(
        stated: list[DeviceFacts], memory: float | None, cores: float | None, sizes: dict[str, Any], exclusive: bool
    ) -> None:
        menu = {"menu": sizes["slots"]} if sizes else {}
        rule = OfferRule.model_validate({"exclusive": exclusive, **sizes, **menu})
        policy = Policy((rule,), taints=True, menu=mode.name == "counters")
        node = NodeDevices(status(*stated), InventorySpec(memory_scaling=memory, cores_scaling=cores))
        offer = Composer().compose("n1", node, mode, policy, [])
        assert violations(offer.slices) == []

    check()


def test_more_memory_than_a_quantity_can_hold_is_cut_to_that() -> None:
    node = NodeDevices(status(facts(memory_bytes=(1 << 63) - 1)), InventorySpec(memory_scaling=10.0))
    offer = Composer().compose("n1", node, ConsumableMode(), Policy(), [])
    assert violations(offer.slices) == []
    (device,) = offer.slices[0].devices
    assert parse_count(device.capacity["memory"].value, "memory") == (1 << 63) - (1 << 20)


def notes(kube: FakeKube, name: str) -> list[tuple[str, str]]:
    events = [obj for obj in kube.objects(kube_api.EVENTS) if obj["regarding"]["name"] == name]
    return [(event["reason"], event["note"]) for event in events]


def test_an_inventory_that_cannot_be_read_gets_an_event_that_says_what_was_found(
    kube: FakeKube, controller: Controller
) -> None:
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    # And not that of a node which does not exist, with which the mode is tried out.
    wait_until(lambda: [obj for obj in kube.objects(SLICES) if obj["spec"]["nodeName"] == "n1"])
    kube.patch(kube_api.NODE_INVENTORIES, {"metadata": {"name": "n1"}}, {"spec": {"memoryScaling": 1e308}})
    wait_until(lambda: notes(kube, "n1"))
    assert notes(kube, "n1") == [
        (
            "VGPUInventoryInvalid",
            "NodeInventory n1: spec.memoryScaling: found 1e+308, expected less than or equal to 10",
        )
    ]
    (event,) = kube.objects(kube_api.EVENTS)
    assert event["metadata"]["namespace"] == "default"
    assert (event["regarding"]["kind"], event["regarding"]["namespace"]) == ("NodeInventory", "")
    (stored,) = kube.objects(SLICES)
    assert [device["name"] for device in stored["spec"]["devices"]] == [facts().name]


def test_cordons_and_classes_that_are_wrong_get_events(kube: FakeKube, controller: Controller) -> None:
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    cordons = {"spec": {"cordonedDevices": ["gpu-typo", facts().uuid.upper()]}}
    kube.patch(kube_api.NODE_INVENTORIES, {"metadata": {"name": "n1"}}, cordons)
    wrong = device_class("team-gpus")
    wrong["spec"]["config"] = [{"opaque": {"driver": names.DRIVER_NAME, "parameters": {"kind": "VGPUConfig"}}}]
    kube.create(kube_api.device_classes("v1"), wrong)
    wait_until(lambda: notes(kube, "n1") and notes(kube, "team-gpus"))
    assert [reason for reason, _ in notes(kube, "n1")] == ["VGPUInventoryInvalid"]
    assert notes(kube, "team-gpus") == [
        ("VGPUConfigInvalid", 'DeviceClass team-gpus: apiVersion: missing, expected "vgpu.dra-driver.io/v1alpha1"')
    ]
    assert controller.is_leading()


@pytest.mark.parametrize("amount", ["-1", "1e400", "1e99999999999999999999", "9223372036854775808", "٣", 1.5, {}])
def test_a_claim_for_an_absurd_amount_is_told_so_and_hides_no_other(
    kube: FakeKube, controller: Controller, amount: object
) -> None:
    absurd = claim("absurd", memory="1Gi")
    absurd["spec"]["devices"]["requests"][0]["exactly"]["capacity"]["requests"]["memory"] = amount
    kube.create(CLAIMS, absurd)
    kube.create(
        CLAIMS, claim("typo", config={"apiVersion": names.GROUP_VERSION, "kind": "VGPUConfig", "cores": 1 << 70})
    )
    wait_until(lambda: notes(kube, "typo"))
    where = "ResourceClaim demo/absurd: request gpu: capacity"
    assert notes(kube, "absurd") == [
        ("VGPUConfigInvalid", f"{where}: memory: found {amount!r}, expected a whole number of 0 or above")
    ]
    expected = "expected a whole number from 1 to 100 (percent of one device)"
    assert notes(kube, "typo")[0][1] == f"ResourceClaim demo/typo: cores: found {1 << 70}, {expected}"


def test_what_could_not_be_written_while_the_lease_was_in_doubt_is_written_afterwards(
    kube: FakeKube, controller: Controller
) -> None:
    wait_until(controller.idle)
    term = controller._term
    assert term is not None
    leads, term._is_leading = term._is_leading, lambda: False
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    wait_until(lambda: term._pools._failures)
    assert kube.objects(SLICES) == []
    term._is_leading = leads
    wait_until(lambda: len(kube.objects(SLICES)) == 1)


def test_a_lease_with_nonsense_in_it_is_reported_once_and_does_not_end_the_election(
    kube: FakeKube, caplog: pytest.LogCaptureFixture
) -> None:
    lease = {"metadata": {"namespace": "system", "name": "controller-vgpu.dra-driver.io"}}
    spec = {"holderIdentity": "other", "leaseDurationSeconds": "soon"}
    stored = kube.create(LEASES, {**lease, "spec": spec})
    controller = make_controller(kube)
    with caplog.at_level(logging.WARNING):
        controller.start()
        wait_until(lambda: len([path for verb, path in kube.requests if verb == "get" and "leases" in path]) > 3)
        assert controller.alive() == ""
        kube.replace(LEASES, {**stored, "spec": {}})
        wait_until(controller.is_leading)
    controller.stop()
    reports = [record.__dict__["error"] for record in caplog.records if record.message == "cannot reach the Lease"]
    assert reports == ["""cannot read it: ValueError("could not convert string to float: 'soon'")"""]


def test_who_was_suspended_for_long_leads_no_more(kube: FakeKube, monkeypatch: pytest.MonkeyPatch) -> None:
    slept_s = [0.0]
    clock = leading.monotonic_s
    monkeypatch.setattr(leading, "monotonic_s", lambda: clock() + slept_s[0])
    controller = make_controller(kube)
    controller.start()
    wait_until(controller.is_leading)
    kube.fail_next(*[KubeError("still asleep")] * 50)
    slept_s[0] = 3600.0
    assert not controller.is_leading()
    controller.stop()


def test_of_a_node_with_hundreds_of_devices_the_first_ones_are_offered() -> None:
    many = [facts(name=f"gpu-{number:03}", uuid=f"GPU-{number:03}", index=number) for number in range(300)]
    offer = offered(ConsumableMode(), *many)
    assert [device.name for content in offer.slices for device in content.devices] == [one.name for one in many[:256]]
    assert [one.device for one in offer.withheld] == [one.name for one in many[256:]]
    assert {one.reason for one in offer.withheld} == {"the node has more than 256 devices that could be offered"}
