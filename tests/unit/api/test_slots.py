"""Names of slots: what stands in them is what the node agent enforces."""

import pytest

from api.errors import ConfigError
from api.slots import Slot, gpu_of, parse_slot

GPU = "gpu-5c1f1a10-aaaa-4bbb-8ccc-0123456789ab"
GI = 1 << 30


def test_a_name_says_gpu_memory_cores_and_number() -> None:
    slot = Slot(GPU, 8 * GI, 25, 0)
    assert slot.name == f"{GPU}-slot-8192m-25c-0"
    assert parse_slot(slot.name) == slot
    assert gpu_of(slot.name) == GPU
    assert gpu_of(GPU) == GPU


def test_the_longest_name_of_a_uuid_is_a_dns_label() -> None:
    name = Slot(GPU, 9_999_999 << 20, 100, 63).name
    assert len(name) == 62
    assert parse_slot(name) == Slot(GPU, 9_999_999 << 20, 100, 63)


@pytest.mark.parametrize(
    "name",
    [
        GPU,
        f"{GPU}-slot-0",
        f"{GPU}-slot-0m-25c-0",
        f"{GPU}-slot-08m-25c-0",
        f"{GPU}-slot-8m-101c-0",
        f"{GPU}-slot-8m-25c-64",
        f"{GPU}-slot-8m-25c-0\n",
        f"{GPU}-slot--8m-25c-0",
        "-slot-8m-25c-0",
        f"{GPU}-slot-\u0668m-25c-0",
    ],
)
def test_other_names_are_no_slots(name: str) -> None:
    assert parse_slot(name) is None


@pytest.mark.parametrize(
    "slot", [Slot(GPU, GI + 1, 25, 0), Slot(GPU, GI, 101, 0), Slot(GPU, GI, 25, 64), Slot(GPU + "-x" * 8, GI, 25, 0)]
)
def test_a_slot_that_no_name_can_say_is_an_error(slot: Slot) -> None:
    with pytest.raises(
        ConfigError, match="expected whole MiB up to 9999999, at most 100 cores, an index of at most 63"
    ):
        _ = slot.name
