"""The order in which the scheduler tries a node's GPUs, and how rarely it changes."""

import pytest

from api.nodeinventory import DeviceFacts, InventorySpec
from api.offerrules import OfferRule, Order
from controller.forms import GPU, Amount, Holding
from controller.ordering import REORDER_S, Orders, arrange
from controller.policies import NodeDevices, Policy
from tests.unit.controller.builders import GI, facts, status


def gpu(number: int, held_gi: int = 0, cores: int = 0, **changes: object) -> GPU:
    stated: DeviceFacts = facts(number, **changes)
    held = (Holding(stated.name, Amount(held_gi * GI, cores), shares=1),) if held_gi or cores else ()
    return GPU(stated, Amount(10 * GI, 100), held=held)


def numbers(gpus: list[GPU]) -> list[int]:
    return [each.facts.index for each in gpus]


def test_binpack_tries_the_fullest_first_and_spread_the_emptiest() -> None:
    gpus = [gpu(0), gpu(1, held_gi=8), gpu(2, cores=40), gpu(3)]
    assert numbers(arrange(Order.BINPACK, gpus)) == [1, 2, 0, 3]
    assert numbers(arrange(Order.SPREAD, gpus)) == [0, 3, 2, 1]


def test_a_gpu_that_a_claim_holds_whole_is_full() -> None:
    whole = GPU(facts(1), Amount(10 * GI, 100), held=(Holding(facts(1).name, Amount(), whole=True),))
    assert numbers(arrange(Order.SPREAD, [whole, gpu(2, held_gi=8)])) == [2, 1]


def test_topology_keeps_neighbours_together_whatever_their_use() -> None:
    gpus = [
        gpu(0, numa_node=1, pcie_root="pci0000:80"),
        gpu(1, numa_node=0, pcie_root="pci0000:64", held_gi=8),
        gpu(2, numa_node=1, pcie_root="pci0000:40"),
        gpu(3, numa_node=0, pcie_root="pci0000:00"),
    ]
    assert numbers(arrange(Order.TOPOLOGY, gpus)) == [3, 1, 2, 0]


def test_small_changes_in_use_change_no_order() -> None:
    assert numbers(arrange(Order.SPREAD, [gpu(0, held_gi=1, cores=10), gpu(1, cores=9)])) == [0, 1]


def test_an_order_stays_for_half_a_minute_and_follows_then() -> None:
    now = [100.0]
    orders = Orders(lambda: now[0])
    empty, used = [gpu(0), gpu(1)], [gpu(0), gpu(1, held_gi=5)]
    assert numbers(orders.arrange("n1", Order.BINPACK, empty)) == [0, 1]
    now[0] += 10
    assert numbers(orders.arrange("n1", Order.BINPACK, used)) == [0, 1]
    assert orders.due_in_s("n1") == REORDER_S - 10
    now[0] += REORDER_S
    assert numbers(orders.arrange("n1", Order.BINPACK, used)) == [1, 0]
    assert orders.due_in_s("n1") is None


def test_another_order_and_another_gpu_do_not_wait() -> None:
    orders = Orders(lambda: 100.0)
    used = [gpu(0), gpu(1, held_gi=5)]
    assert numbers(orders.arrange("n1", Order.BINPACK, used)) == [1, 0]
    assert numbers(orders.arrange("n1", Order.SPREAD, used)) == [0, 1]
    assert numbers(orders.arrange("n1", Order.SPREAD, [*used, gpu(2, held_gi=1)])) == [0, 2, 1]


@pytest.mark.parametrize(
    ("spec", "labels", "order"),
    [
        ({}, {}, Order.BINPACK),
        ({}, {"pool": "a"}, Order.SPREAD),
        ({"order": "topology"}, {"pool": "a"}, Order.TOPOLOGY),
    ],
)
def test_a_nodes_own_order_goes_before_the_rules_and_they_before_the_default(
    spec: dict[str, str], labels: dict[str, str], order: Order
) -> None:
    policy = Policy((OfferRule.model_validate({"nodeLabels": {"pool": "a"}, "order": "spread"}),))
    node = NodeDevices(status(), InventorySpec.model_validate(spec), labels)
    assert policy.order(node) is order
