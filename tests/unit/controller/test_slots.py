"""The modes with fixed sizes: what a GPU is cut into, in which order, and on which counters it draws."""

from typing import Any

import pytest
from pydantic import ValidationError

from api.offerrules import OfferRule
from api.slices import render_device
from controller.offers.composing import Composer
from controller.offers.counters import CountersMode
from controller.offers.forms import Amount, Holding
from controller.offers.layouts import default_menu, default_slots
from controller.offers.offering import Offer
from controller.offers.policies import NodeDevices, Policy
from controller.offers.publishing import render_content
from controller.offers.slots import SlotsMode
from tests.unit.controller.builders import GI, facts, offered, status

SLOTS = SlotsMode()
A, B = facts(0).name, facts(1).name


def rule(**fields: Any) -> Policy:
    return Policy((OfferRule.model_validate(fields),))


def names(offer: Offer) -> list[str]:
    return [device.name for content in offer.slices for device in content.devices]


def test_a_slot_has_the_facts_of_its_gpu_and_a_capacity_of_its_own() -> None:
    device = offered(SLOTS, facts()).slices[0].devices[0]
    assert render_device(device, "v1beta1") == {
        "name": f"{A}-slot-5120m-50c-0",
        "basic": {
            "attributes": {
                "vendor": {"string": "nvidia"},
                "uuid": {"string": facts().uuid},
                "productName": {"string": "NVIDIA A10"},
                "type": {"string": "gpu"},
            },
            "capacity": {"memory": {"value": "5Gi"}, "cores": {"value": "50"}},
        },
    }


def test_slots_of_all_gpus_stand_smallest_first() -> None:
    assert names(offered(SLOTS, facts(0, memory_bytes=16 * GI), facts(1, memory_bytes=16 * GI))) == [
        f"{A}-slot-4096m-25c-0",
        f"{A}-slot-4096m-25c-1",
        f"{B}-slot-4096m-25c-0",
        f"{B}-slot-4096m-25c-1",
        f"{A}-slot-8192m-50c-0",
        f"{B}-slot-8192m-50c-0",
    ]


@pytest.mark.parametrize("memory_gi", [1, 8, 10, 16, 24, 40, 48, 80, 141, 192])
def test_default_sizes_fill_a_gpu_and_never_overfill_it(memory_gi: int) -> None:
    room = Amount(memory_gi * GI, 100)
    cut = default_slots(room)
    assert sum(size.memory_bytes * count for size, count in cut) <= room.memory_bytes
    assert sum(size.memory_bytes * count for size, count in cut) > room.memory_bytes - (8 << 20)
    assert sum(size.cores_percent * count for size, count in cut) <= 100
    assert all(size.memory_bytes * count <= room.memory_bytes for size, count in default_menu(room))


def test_a_layout_is_set_for_models_and_nodes_and_the_rest_has_the_default() -> None:
    policy = rule(models=["*H100*"], slots=[{"memory": "4Gi", "count": 2}, {"memory": "1Gi", "cores": 0}])
    other = facts(1)
    chosen = facts(0, product_name="NVIDIA H100 80GB HBM3", memory_bytes=16 * GI)
    assert names(offered(SLOTS, chosen, other, policy=policy)) == [
        f"{A}-slot-1024m-0c-0",
        f"{A}-slot-4096m-25c-0",
        f"{A}-slot-4096m-25c-1",
        f"{B}-slot-5120m-50c-0",
        f"{B}-slot-5120m-50c-1",
    ]
    elsewhere = rule(nodeLabels={"pool": "x"}, slots=[{"memory": "4Gi"}])
    assert names(offered(SLOTS, other, policy=elsewhere)) == [f"{B}-slot-5120m-50c-{n}" for n in (0, 1)]


def test_a_layout_that_is_too_much_for_a_gpu_is_cut_where_it_is_full() -> None:
    policy = rule(slots=[{"memory": "4Gi", "cores": 10, "count": 5}, {"memory": "20Gi"}])
    assert names(offered(SLOTS, facts(), policy=policy)) == [f"{A}-slot-4096m-10c-0", f"{A}-slot-4096m-10c-1"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"slots": [{"memory": "4Gi", "count": 64}]}, "found 64 slots, expected at most 63 of one GPU"),
        ({"slots": []}, "found no size, expected at least one"),
        ({"slots": [{"memory": "lots"}]}, "found 'lots', expected a quantity of memory above 0"),
        ({"memoryscaling": 2}, "Extra inputs are not permitted"),
        ({"memoryScaling": 0}, "Input should be greater than or equal to 0.01"),
    ],
)
def test_wrong_rules_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OfferRule.model_validate(fields)


def test_the_menu_and_the_whole_gpu_draw_on_the_counters_of_the_gpu() -> None:
    counters, devices = offered(CountersMode(), facts(memory_bytes=16 * GI), policy=Policy(menu=True)).slices
    assert render_content(counters, "v1") == {
        "sharedCounters": [{"name": A, "counters": {"memory": {"value": "16Gi"}, "cores": {"value": "100"}}}]
    }
    rendered = render_content(devices, "v1")["devices"]
    assert [device["name"].removeprefix(A) for device in rendered] == [
        *(f"-slot-4096m-25c-{index}" for index in range(4)),
        *(f"-slot-8192m-50c-{index}" for index in range(2)),
        "",
    ]
    assert rendered[0]["consumesCounters"] == [
        {"counterSet": A, "counters": {"memory": {"value": "4Gi"}, "cores": {"value": "25"}}}
    ]
    assert "allowMultipleAllocations" not in rendered[-1]


def test_counters_stand_with_their_devices_up_to_1_34_in_slices_of_at_most_64_devices_and_32_counters() -> None:
    gpus = [facts(number, memory_bytes=80 * GI, name=f"gpu-{number:02d}") for number in range(9)]
    slices = offered(CountersMode(together=True), *gpus, policy=Policy(menu=True)).slices
    assert [(len(content.counter_sets), len(content.devices)) for content in slices] == [(4, 60), (4, 60), (1, 15)]
    for content in slices:
        drawn = {consumed.name for device in content.devices for consumed in device.consumes}
        assert drawn == {counters.name for counters in content.counter_sets}


def test_counters_have_slices_of_their_own_from_1_35_with_at_most_8_sets() -> None:
    gpus = [facts(number, memory_bytes=80 * GI, name=f"gpu-{number:02d}") for number in range(9)]
    slices = offered(CountersMode(), *gpus, policy=Policy(menu=True)).slices
    assert [(len(content.counter_sets), len(content.devices)) for content in slices] == [
        (8, 0), (1, 0), (0, 64), (0, 64), (0, 7)
    ]  # fmt: skip


@pytest.mark.parametrize("mode", [SLOTS, CountersMode(), CountersMode(together=True)])
def test_a_part_that_the_hardware_made_is_offered_whole(mode: Any) -> None:
    part = facts(0, type="mig", memory_bytes=5 * GI)
    assert names(offered(mode, part)) == [A]


def test_the_whole_gpu_stays_on_offer_where_a_slot_of_an_older_menu_takes_the_last_place_in_its_slice() -> None:
    policy = Policy((OfferRule.model_validate({"menu": [{"memory": "64Mi", "count": 63}]}),), menu=True)
    old = f"{A}-slot-1024m-10c-0"
    node = NodeDevices(status(facts()), holdings={A: [Holding(old, Amount(GI, 10))]})
    found = names(Composer().compose("n1", node, CountersMode(together=True), policy, []))
    assert len(found) == 64
    assert found[-2:] == [old, A]
