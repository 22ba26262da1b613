"""`exclusive`: a claim that has all cores of a GPU is alone on it, in every mode, without a moment between."""

from api.claims import Allocation, AllocationResult
from api.names import ClaimUID
from api.nodeinventory import InventorySpec
from api.offerrules import OfferRule
from api.slices import Device
from controller.offers.composing import Composer
from controller.offers.consumable import ConsumableMode
from controller.offers.counters import CountersMode
from controller.offers.counting import Ledger
from controller.offers.forms import GPU, Amount, Holding
from controller.offers.migrating import holdings
from controller.offers.offering import OfferMode
from controller.offers.policies import NodeDevices, Policy
from controller.offers.slots import SlotsMode
from tests.unit.controller.builders import DRIVER, GI, facts, status

GPU_NAME = facts().name
SIZES = [{"memory": "5Gi", "cores": 100}, {"memory": "1Gi", "cores": 0}]


def devices(mode: OfferMode, node: NodeDevices, **rule: object) -> list[Device]:
    """What a node with one GPU of 10 GiB offers with an exclusive rule."""
    rules = (OfferRule.model_validate({"exclusive": True, **rule}),)
    policy = Policy(rules, menu=mode.name == "counters")
    offer = Composer().compose("n1", node, mode, policy, [])
    return [device for content in offer.slices for device in content.devices]


def test_every_share_of_a_shared_gpu_takes_a_core_so_that_all_cores_are_to_be_had_on_an_empty_one_only() -> None:
    (device,) = devices(ConsumableMode(), NodeDevices(status(facts())))
    cores = device.capacity["cores"]
    assert (cores.value, cores.default) == ("100", "1")
    assert cores.valid_range is not None
    assert (cores.valid_range.minimum, cores.valid_range.maximum) == ("1", "100")


def test_shares_that_took_no_core_before_the_rule_keep_claims_for_all_cores_away() -> None:
    ledger = Ledger(DRIVER)
    for number, given in enumerate((0, 0, 30)):
        consumed = {"memory": GI, "cores": given, "shares": 1}
        held = AllocationResult(0, "gpu", DRIVER, "n1", GPU_NAME, None, consumed, admin_access=False)
        ledger.note(ClaimUID(f"claim-{number}"), Allocation((held,), ()))
    (device,) = devices(ConsumableMode(), NodeDevices(status(facts()), holdings=holdings(ledger.usage_of("n1"))))
    cores = device.capacity["cores"]
    assert cores.value == "98"
    assert cores.valid_range is not None
    assert cores.valid_range.maximum == "98"
    for number in range(3):
        ledger.note(ClaimUID(f"claim-{number}"), None)
    (device,) = devices(ConsumableMode(), NodeDevices(status(facts()), holdings=holdings(ledger.usage_of("n1"))))
    assert device.capacity["cores"].value == "100"


def test_all_cores_are_those_of_the_gpu_whatever_the_scaling() -> None:
    node = NodeDevices(status(facts()), InventorySpec(cores_scaling=2.0))
    (device,) = devices(ConsumableMode(), node)
    assert device.capacity["cores"].value == "100"


def test_a_size_without_cores_draws_one_on_the_counters_and_still_has_none() -> None:
    small, large, whole = devices(CountersMode(), NodeDevices(status(facts())), menu=SIZES)
    assert small.capacity["cores"].value == "0"
    assert [device.consumes[0].counters["cores"] for device in (small, large, whole)] == ["1", "100", "100"]


def test_slots_beside_one_with_all_cores_are_not_offered() -> None:
    node = NodeDevices(status(facts()))
    names = [device.name for device in devices(SlotsMode(), node, slots=SIZES[:1])]
    assert names == [f"{GPU_NAME}-slot-5120m-100c-0"]
    names = [device.name for device in devices(SlotsMode(), node, slots=SIZES)]
    assert names == [f"{GPU_NAME}-slot-1024m-0c-0"], "the smaller come first"


def test_a_gpu_whose_cores_slots_of_another_mode_have_is_not_offered_to_shares() -> None:
    slot = f"{GPU_NAME}-slot-5120m-100c-0"
    node = NodeDevices(status(facts()), holdings={GPU_NAME: [Holding(slot, Amount(5 * GI, 100))]})
    assert [device.name for device in devices(ConsumableMode(), node)] == [slot]


def test_without_the_rule_nothing_is_booked() -> None:
    gpu = GPU(facts(), Amount(10 * GI, 100))
    ((device, _),) = ConsumableMode().divide(gpu).devices
    assert device.capacity["cores"].default == "0"
