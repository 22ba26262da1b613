"""The order in which the scheduler tries a node's GPUs, and how rarely it changes."""

import pytest

from api.nodeinventory import DeviceFacts, InventorySpec
from api.offerrules import OfferRule, Order
from controller.offers.forms import GPU, Amount, Holding
from controller.offers.ordering import REORDER_S, SPREAD_S, Orders, arrange, widest_first
from controller.offers.policies import NodeDevices, Policy
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


def test_the_widest_has_the_most_room_for_one_more_share_whatever_its_size() -> None:
    large = GPU(
        facts(4, memory_bytes=80 * GI), Amount(80 * GI, 100), held=(Holding("x", Amount(60 * GI, 50), shares=1),)
    )
    gpus = [gpu(0, held_gi=8), gpu(1, held_gi=1, cores=100), gpu(2, held_gi=2, cores=100), gpu(3), large]
    assert numbers(widest_first(gpus)) == [4, 3, 0, 1, 2]
    assert numbers(widest_first([gpu(0, held_gi=1), gpu(1)])) == [1, 0]
    assert widest_first([]) == []


def test_where_the_first_gpu_decides_for_all_it_loses_its_place_within_a_second() -> None:
    now = [100.0]
    orders = Orders(lambda: now[0])
    order = Policy((OfferRule(order=Order.BINPACK),), first_decides=True).order(NodeDevices(status()))
    assert numbers(orders.arrange("n1", order, [gpu(0), gpu(1)])) == [0, 1]
    now[0] += SPREAD_S / 2
    used = [gpu(0, held_gi=1), gpu(1)]
    assert numbers(orders.arrange("n1", order, used)) == [0, 1]
    assert orders.due_in_s("n1") == SPREAD_S / 2
    now[0] += SPREAD_S / 2
    assert numbers(orders.arrange("n1", order, used)) == [1, 0]


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


class Burst:
    """A node of 8 GPUs whose pods, a tenth of a GPU each, come one after the other and take the first GPU."""

    def __init__(self) -> None:
        self.now = 100.0
        self.orders = Orders(lambda: self.now)
        self.pods = [0] * 8
        self.written: list[list[int]] = []
        self.look()

    def look(self) -> None:
        gpus = [gpu(number, held_gi=pods, cores=10 * pods) for number, pods in enumerate(self.pods)]
        order = numbers(self.orders.arrange("n1", Order.SPREAD, gpus))
        if [order] != self.written[-1:]:
            self.written.append(order)

    def come(self, pods: int, every_s: float) -> None:
        for _ in range(pods):
            self.pods[self.written[-1][0]] += 1
            end = self.now + every_s
            self.look()
            while (due_s := self.orders.due_in_s("n1")) is not None and self.now + due_s <= end:
                self.now += due_s
                self.look()
            self.now = end


def test_pods_that_come_every_second_are_spread_over_all_gpus_with_a_write_for_each() -> None:
    burst = Burst()
    burst.come(40, every_s=1.0)
    assert (min(burst.pods), max(burst.pods)) == (4, 6), "use is compared in eighths"
    assert len(burst.written) <= 41


def test_pods_of_a_burst_meet_for_a_second_at_most_and_cost_a_write_a_second() -> None:
    burst = Burst()
    burst.come(40, every_s=0.25)
    assert max(burst.pods) <= 8
    assert min(burst.pods) >= 2
    assert len(burst.written) <= 12


def test_the_last_pod_of_a_burst_has_its_effect_too() -> None:
    burst = Burst()
    burst.come(4, every_s=0.01)
    assert burst.orders.due_in_s("n1") == pytest.approx(SPREAD_S - 0.04)
    burst.now += SPREAD_S
    burst.look()
    assert burst.pods[burst.written[-1][0]] == 0
    assert burst.orders.due_in_s("n1") is None


def test_the_order_behind_the_first_gpu_waits_for_half_a_minute() -> None:
    now = [100.0]
    orders = Orders(lambda: now[0])
    assert numbers(orders.arrange("n1", Order.SPREAD, [gpu(0), gpu(1), gpu(2)])) == [0, 1, 2]
    now[0] += SPREAD_S
    assert numbers(orders.arrange("n1", Order.SPREAD, [gpu(0), gpu(1, held_gi=5), gpu(2)])) == [0, 1, 2]
    assert orders.due_in_s("n1") == REORDER_S - SPREAD_S
