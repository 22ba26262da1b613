"""From one offer to another: what claims hold stays, and nothing is promised twice, at no moment."""

import re
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from api.offerrules import OfferRule
from controller.offers.composing import Composer
from controller.offers.consumable import ConsumableMode
from controller.offers.counters import CountersMode
from controller.offers.forms import Amount
from controller.offers.migrating import WITHDRAWAL_S, holdings
from controller.offers.offering import NoMode, OfferMode
from controller.offers.policies import NodeDevices, Policy
from controller.offers.publishing import Plan, Pool, plan
from controller.offers.slots import SlotsMode
from tests.unit.controller.builders import DRIVER, GI, facts, status
from tests.unit.controller.simulating import Claims, assert_nothing_is_given_twice, chances, fill, schedule, usage

CONSUMABLE, COUNTERS, SLOTS = ConsumableMode(), CountersMode(), SlotsMode()
TOGETHER = CountersMode(together=True)
NONE = NoMode("the gate is off")
GPU = facts().name
QUARTER = f"{GPU}-slot-4096m-25c-0"


@dataclass
class Node:
    """A node with GPUs of 16 GiB, its slices in an API server, its claims, and a clock."""

    gpus: int = 1
    mode: OfferMode = CONSUMABLE
    rules: tuple[OfferRule, ...] = ()
    now: float = 1000.0
    stored: dict[str, dict[str, Any]] = field(default_factory=dict)
    claims: Claims = field(default_factory=dict)
    broken: set[int] = field(default_factory=set)
    taints: bool = True
    told: str | None = None
    """How its agent was told that its devices are offered."""

    def __post_init__(self) -> None:
        self.composer = Composer(lambda: self.now)

    def plan(self) -> Plan:
        devices = [facts(n, memory_bytes=16 * GI, healthy=n not in self.broken) for n in range(self.gpus)]
        stated = status(*devices).model_copy(update={"offer_mode": self.told})
        node = NodeDevices(stated, holdings=holdings(usage(self.claims)))
        policy = Policy(self.rules, taints=self.taints, menu=self.mode.name == "counters")
        stored = [self.stored[name] for name in sorted(self.stored)]
        offer = self.composer.compose("n1", node, self.mode, policy, stored)
        return plan(Pool(DRIVER, "n1", "uid", offer.slices, "v1"), stored)

    def sync(self, most: int = 100) -> None:
        """Write what is due, or only the first writes of it."""
        writes = self.plan()
        for obj in writes.deletes[:most]:
            del self.stored[obj["metadata"]["name"]]
        for obj in (*writes.updates, *writes.creates)[: max(most - len(writes.deletes), 0)]:
            name = obj["metadata"]["name"]
            self.stored[name] = {**obj, "metadata": {**obj["metadata"], "uid": f"uid-{name}", "resourceVersion": "1"}}
        self.plan()  # as the event of the write makes the controller do

    def settle(self) -> None:
        """Let time pass until nothing changes any more."""
        for _ in range(4):
            self.sync()
            self.now += WITHDRAWAL_S + 31
        assert not self.plan()

    def offered(self) -> list[str]:
        found = (device for name in sorted(self.stored) for device in self.stored[name]["spec"].get("devices") or [])
        return [device["name"].removeprefix(GPU) for device in found]

    def room(self) -> str:
        """What the GPU's own device or counters have."""
        for obj in self.stored.values():
            for counters in obj["spec"].get("sharedCounters") or []:
                return str(counters["counters"]["memory"]["value"])
            for device in obj["spec"].get("devices") or []:
                if device["name"] == GPU:
                    return str(device["capacity"]["memory"]["value"])
        return ""


def test_slots_in_use_stay_when_the_cluster_learns_to_share_and_the_rest_is_shared() -> None:
    node = Node(mode=SLOTS)
    node.sync()
    assert node.offered() == ["-slot-4096m-25c-0", "-slot-4096m-25c-1", "-slot-8192m-50c-0"]
    node.claims["old"] = (QUARTER, None)
    node.mode = CONSUMABLE
    node.sync()
    assert node.offered() == ["-slot-4096m-25c-0"], "what was withdrawn may have been chosen a moment ago"
    node.now += WITHDRAWAL_S + 1
    node.sync()
    assert (node.offered(), node.room()) == (["", "-slot-4096m-25c-0"], "12Gi")
    del node.claims["old"]
    node.settle()
    assert (node.offered(), node.room()) == ([""], "16Gi")


def test_shares_in_use_are_left_out_of_slots_until_they_end() -> None:
    node = Node(mode=CONSUMABLE)
    node.sync()
    node.claims["old"] = (GPU, Amount(6 * GI, 30))
    node.mode = SLOTS
    node.settle()
    assert node.offered() == ["-slot-4096m-25c-0", "-slot-4096m-25c-1"]
    del node.claims["old"]
    node.settle()
    assert node.offered() == ["-slot-4096m-25c-0", "-slot-4096m-25c-1", "-slot-8192m-50c-0"]


def test_shares_in_use_are_left_out_of_the_counters_until_they_end() -> None:
    node = Node(mode=CONSUMABLE)
    node.sync()
    node.claims["old"] = (GPU, Amount(6 * GI, 30))
    node.mode = COUNTERS
    node.settle()
    assert node.room() == "10Gi"
    assert "" not in node.offered()
    del node.claims["old"]
    node.settle()
    assert node.room() == "16Gi"
    assert "" in node.offered()


def test_a_whole_gpu_in_use_is_not_cut_into_slots() -> None:
    node = Node(mode=COUNTERS)
    node.sync()
    node.claims["old"] = (GPU, None)
    node.mode = SLOTS
    node.settle()
    assert node.offered() == [""]


def test_a_gpu_that_a_scheduler_without_amounts_gave_out_is_there_for_shares_as_soon_as_its_claim_ends() -> None:
    node = Node(mode=COUNTERS)
    node.sync()
    node.claims["old"] = (GPU, None)
    node.mode = CONSUMABLE
    node.settle()
    before = dict(node.stored)
    assert (node.offered(), node.room()) == ([""], "16Gi")
    assert "allowMultipleAllocations" in str(before)
    fill(before.values(), node.claims)
    assert list(node.claims) == ["old"]
    del node.claims["old"]
    fill(before.values(), node.claims)
    assert node.claims == {"filled-0": (GPU, Amount(16 * GI, 100))}


def test_a_slot_of_a_former_layout_stays_until_its_claim_ends() -> None:
    node = Node(mode=SLOTS)
    node.sync()
    node.claims["old"] = (QUARTER, None)
    node.rules = (OfferRule.model_validate({"slots": [{"memory": "8Gi", "count": 2}]}),)
    node.settle()
    assert node.offered() == ["-slot-4096m-25c-0", "-slot-8192m-50c-0"]
    del node.claims["old"]
    node.settle()
    assert node.offered() == ["-slot-8192m-50c-0", "-slot-8192m-50c-1"]


def test_a_new_leader_waits_for_what_the_former_one_has_just_withdrawn() -> None:
    node = Node(mode=SLOTS)
    node.sync()
    node.mode = CONSUMABLE
    node.sync()
    assert node.offered() == []
    node.composer = Composer(lambda: node.now)
    node.stored["00000-n1-vgpu.dra-driver.io"]["spec"]["devices"] = [{"name": QUARTER, "capacity": {}}]
    node.claims["old"] = (QUARTER, None)
    node.sync()
    assert node.room() == ""
    node.settle()
    assert node.room() == "12Gi"


def test_a_new_leader_offers_a_new_node_at_once() -> None:
    node = Node(mode=SLOTS)
    node.sync()
    assert len(node.offered()) == 3


def test_a_new_leader_waits_where_nothing_is_on_offer_any_more_and_the_agent_was_told_of_an_offer() -> None:
    node = Node(mode=CONSUMABLE)
    node.sync()
    node.told = CONSUMABLE.name
    node.mode = SLOTS
    node.stored.clear()
    node.composer = Composer(lambda: node.now)
    node.sync()
    assert node.offered() == []
    node.now += WITHDRAWAL_S + 1
    node.sync()
    assert len(node.offered()) == 3


def test_a_new_leader_waits_for_what_was_withdrawn_of_a_gpu_that_is_well_again_after_its_first_look() -> None:
    node = Node(gpus=2, mode=CONSUMABLE, taints=False)
    node.sync()
    node.broken = {0}
    node.sync()
    node.mode = SLOTS
    node.composer = Composer(lambda: node.now)
    node.sync()
    node.now += 2
    node.broken = set()
    node.sync()
    assert not [name for name in node.offered() if "slot" in name]
    node.settle()
    assert len(node.offered()) == 6


def test_what_a_leader_withdraws_of_a_node_that_it_never_offered_counts_as_taken_when_the_node_is_back() -> None:
    node = Node(mode=CONSUMABLE)
    node.sync()
    node.composer = Composer(lambda: node.now)
    node.now += WITHDRAWAL_S + 1
    node.composer.note_offered("n1", list(node.stored.values()))
    node.composer.forget("n1")
    node.stored.clear()
    node.mode = SLOTS
    node.sync()
    assert node.offered() == []
    node.settle()
    assert len(node.offered()) == 3


def test_what_is_withdrawn_counts_as_taken_from_when_that_is_seen_however_long_the_write_took() -> None:
    node = Node(mode=SLOTS)
    node.sync()
    node.mode = CONSUMABLE
    before = dict(node.stored)
    withdrawn = node.plan()
    node.now += WITHDRAWAL_S + 4  # on its way
    (update,) = withdrawn.updates
    node.stored = {name: {**obj, "spec": update["spec"]} for name, obj in before.items()}
    node.sync()
    assert node.offered() == []
    node.now += WITHDRAWAL_S + 1
    node.sync()
    assert node.room() == "16Gi"


class Fleet(RuleBasedStateMachine):
    """Anything in any order: modes, layouts, faults, edits, crashes between two writes, a scheduler that is late."""

    def __init__(self) -> None:
        super().__init__()
        self.node = Node(gpus=2)
        self.known: list[tuple[float, dict[str, dict[str, Any]]]] = []
        """What slices a scheduler has seen, and when."""
        self.number = 0

    @initialize(mode=st.sampled_from([CONSUMABLE, COUNTERS, TOGETHER, SLOTS]))
    def begin(self, mode: OfferMode) -> None:
        self.node.mode = mode
        self.node.sync()

    @rule(mode=st.sampled_from([CONSUMABLE, COUNTERS, TOGETHER, SLOTS, NONE]))
    def change_mode(self, mode: OfferMode) -> None:
        self.node.mode = mode

    @rule(memory=st.sampled_from(["", "2Gi", "6Gi", "16Gi"]))
    def change_layout(self, memory: str) -> None:
        size = [{"memory": memory, "count": 3}]
        self.node.rules = (OfferRule.model_validate({"slots": size, "menu": size}),) if memory else ()

    @rule(gpu=st.integers(0, 1), healthy=st.booleans(), taints=st.booleans())
    def change_health(self, gpu: int, healthy: bool, taints: bool) -> None:
        (self.node.broken.discard if healthy else self.node.broken.add)(gpu)
        self.node.taints = taints

    @rule(most=st.integers(0, 3))
    def write(self, most: int) -> None:
        self.node.sync(most)

    @rule(most=st.integers(0, 3))
    def change_leader(self, most: int) -> None:
        """The next leader begins where the former one was in the middle of its writes."""
        self.node.sync(most)
        self.node.composer = Composer(lambda: self.node.now)

    @rule()
    def write_all(self) -> None:
        self.node.sync()

    @rule(seconds=st.sampled_from([1.0, WITHDRAWAL_S + 1, 60.0]))
    def wait(self, seconds: float) -> None:
        self.node.now += seconds

    @rule(choice=st.integers(0, 1000))
    def end_a_claim(self, choice: int) -> None:
        if self.node.claims:
            del self.node.claims[sorted(self.node.claims)[choice % len(self.node.claims)]]

    @rule()
    def begin_to_schedule(self) -> None:
        self.known.append((self.node.now, dict(self.node.stored)))

    @rule(late=st.booleans(), choice=st.integers(0, 1000), all_of_it=st.booleans(), times=st.integers(1, 8))
    def allocate(self, late: bool, choice: int, all_of_it: bool, times: int) -> None:
        """Allocate devices as a scheduler does: from complete pools only, which may have changed by now."""
        known = [slices for seen, slices in self.known if seen > self.node.now - WITHDRAWAL_S]
        slices = known[choice % len(known)] if late and known else self.node.stored
        for _ in range(times):
            self.number += 1
            schedule(f"claim-{self.number}", slices.values(), self.node.claims, choice, all_of_it=all_of_it)

    @invariant()
    def no_byte_is_given_twice(self) -> None:
        assert_nothing_is_given_twice(self.node.claims)

    def teardown(self) -> None:
        """Whatever happened, the end is the wanted offer, and it stays."""
        self.node.settle()
        self.node.claims.clear()
        self.node.settle()
        fresh = Node(self.node.gpus, self.node.mode, self.node.rules, broken=self.node.broken, taints=self.node.taints)
        fresh.sync()
        # Which of several equal slots are on offer, where not all of them fit, does not matter.
        kinds = [[re.sub(r"c-\d+$", "c", name) for name in node.offered()] for node in (self.node, fresh)]
        assert kinds[0] == kinds[1]


Fleet.TestCase.settings = chances(60)
TestFleet = Fleet.TestCase
