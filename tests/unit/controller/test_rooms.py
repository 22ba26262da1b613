"""What the agents are told of GPUs of which more is promised than they have."""

import pytest

from api.nodeinventory import DeviceFacts, InventorySpec
from api.offerrules import OfferRule
from controller.offers.composing import Composer
from controller.offers.forms import Amount, Holding
from controller.offers.policies import NodeDevices, Policy
from controller.offers.slots import SlotsMode
from tests.unit.controller.builders import GI, facts, status

NAME = facts().name
DOUBLED = Policy((OfferRule.model_validate({"memoryScaling": 2.0}),), taints=False)


def rooms(device: DeviceFacts, spec: InventorySpec, *held: Holding, policy: Policy = DOUBLED) -> list[tuple[int, int]]:
    node = NodeDevices(status(device), spec, holdings={NAME: held} if held else {})
    offer = Composer().compose("n1", node, SlotsMode(), policy, [])
    return [(room.memory_bytes // GI, room.cores) for room in offer.rooms]


@pytest.mark.parametrize(
    ("device", "spec"),
    [
        (facts(healthy=False), InventorySpec()),
        (facts(offered=False), InventorySpec()),
        (facts(), InventorySpec(cordoned_devices=[NAME])),
    ],
)
def test_a_gpu_that_leaves_the_offer_keeps_what_its_claims_were_promised(
    device: DeviceFacts, spec: InventorySpec
) -> None:
    held = Holding(NAME, Amount(15 * GI, 50), shares=2)

    assert rooms(device, spec, held) == [(20, 100)]
    assert rooms(device, spec, held, policy=Policy()) == [(15, 100)]
    assert rooms(device, spec) == []
