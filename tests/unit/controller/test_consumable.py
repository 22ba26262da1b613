"""The consumable offer: one shareable device per GPU, with policies that the API server accepts."""

import pytest

from api.slices import Version, render_device
from controller.offers.consumable import ConsumableMode
from controller.offers.offering import NoMode, SliceContent, Withheld, as_version, attributes, pack
from tests.unit.controller.builders import CAPACITY_OF_10_GIB, GI, facts, offered


def test_a_gpu_is_one_shareable_device_with_memory_cores_and_shares() -> None:
    (content,) = offered(ConsumableMode(), facts()).slices
    (device,) = content.devices
    assert render_device(device, "v1") == {
        "name": "gpu-00000000-aaaa-bbbb-cccc-000000000000",
        "allowMultipleAllocations": True,
        "attributes": {
            "vendor": {"string": "nvidia"},
            "uuid": {"string": "GPU-00000000-aaaa-bbbb-cccc-000000000000"},
            "productName": {"string": "NVIDIA A10"},
            "type": {"string": "gpu"},
        },
        "capacity": CAPACITY_OF_10_GIB,
    }


def test_everything_that_the_agent_knows_can_be_selected_by() -> None:
    known = facts(
        architecture="Hopper",
        compute_capability="9.0",
        driver_version="580.159.03",
        runtime_version="13.0",
        pci_bus_id="0000:65:00.0",
        pcie_root="pci0000:64",
        numa_node=0,
    )
    (device,) = offered(ConsumableMode(), known).slices[0].devices
    assert device.attributes == {
        "vendor": "nvidia",
        "uuid": known.uuid,
        "productName": "NVIDIA A10",
        "architecture": "Hopper",
        "type": "gpu",
        "computeCapability": Version("9.0.0"),
        "driverVersion": Version("580.159.3"),
        "runtimeVersion": Version("13.0.0"),
        "resource.kubernetes.io/pciBusID": "0000:65:00.0",
        "resource.kubernetes.io/pcieRoot": "pci0000:64",
        "resource.kubernetes.io/numaNode": 0,
    }


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("580.159.03", Version("580.159.3")),
        ("9.0", Version("9.0.0")),
        ("13", Version("13.0.0")),
        ("535.104.05.01", "535.104.05.01"),
        ("550.54-beta", "550.54-beta"),
        ("1" * 70, "1" * 64),
    ],
)
def test_versions_become_strict_semantic_versions_or_stay_text(text: str, version: Version | str) -> None:
    assert as_version(text) == version


def test_text_is_cut_to_64_bytes_and_not_within_a_character() -> None:
    (device,) = offered(ConsumableMode(), facts(product_name="é" * 40)).slices[0].devices
    assert device.attributes["productName"] == "é" * 32
    (device,) = offered(ConsumableMode(), facts(product_name="x" + "é" * 40)).slices[0].devices
    assert device.attributes["productName"] == "x" + "é" * 31


def test_memory_is_rounded_down_to_whole_mebibytes() -> None:
    (device,) = offered(ConsumableMode(), facts(memory_bytes=10 * GI + 12345)).slices[0].devices
    assert device.capacity["memory"].value == "10Gi"
    (device,) = offered(ConsumableMode(), facts(memory_bytes=10 * GI - 1)).slices[0].devices
    assert device.capacity["memory"].value == "10239Mi"


def test_devices_that_must_not_be_offered_are_withheld_with_their_reason() -> None:
    offer = offered(
        ConsumableMode(),
        facts(0),
        facts(1, healthy=False, health="Xid 79: fallen off the bus"),
        facts(2, shareable=False, health="MIG is on"),
        facts(3, memory_bytes=1 << 20),
        facts(4, name="GPU_4"),
        facts(5, name=facts(0).name),
        facts(6, healthy=False),
    )
    assert [device.name for device in offer.slices[0].devices] == [facts(0).name]
    assert offer.withheld == (
        Withheld(facts(2).name, "MIG is on"),
        Withheld("GPU_4", "found the name 'GPU_4', expected a DNS label of at most 63 characters"),
        Withheld(facts(0).name, "another device of the node has the same name"),
        Withheld(facts(1).name, "Xid 79: fallen off the bus"),
        Withheld(facts(6).name, "not healthy"),
        Withheld(
            facts(3).name,
            "found 1048576 bytes of memory and a name of 40 characters, "
            "expected at least 2Mi, and for slots a size and a name that fit into theirs",
        ),
    )


def test_unused_gpus_stand_in_the_order_of_their_indexes() -> None:
    devices = offered(ConsumableMode(), facts(2), facts(0), facts(1)).slices[0].devices
    assert [device.name for device in devices] == [facts(0).name, facts(1).name, facts(2).name]


def test_a_node_without_devices_offers_an_empty_slice() -> None:
    assert offered(ConsumableMode()).slices == (SliceContent(),)


def test_slices_are_filled_to_the_limit_of_the_api() -> None:
    devices = offered(ConsumableMode(), *(facts(name=f"gpu-{n}") for n in range(200))).slices
    assert [len(content.devices) for content in devices] == [128, 72]
    assert devices[1].devices[-1].name == "gpu-199"
    assert len(pack(())) == 1


def test_without_a_mode_nothing_is_offered_and_the_reason_is_kept() -> None:
    offer = offered(NoMode("the gate is off"), facts())
    assert offer.slices == (SliceContent(),)
    assert offer.withheld == (Withheld(facts().name, "the gate is off"),)


def test_a_mig_device_can_be_asked_for_by_its_profile() -> None:
    found = attributes(facts(type="mig", profile="1g.10gb", shareable=False))
    assert (found["type"], found["profile"]) == ("mig", "1g.10gb")
    assert "profile" not in attributes(facts())
