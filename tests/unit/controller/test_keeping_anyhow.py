"""The keeper of pools against anything: lost answers, stale caches, refused writes, leaders that overlap, edits.

Whatever happens, no byte is given to two claims at any moment, and once it is over, the wanted slices are there.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from prometheus_client import CollectorRegistry

from api.errors import KubeError
from api.kube import JSON, NODE_INVENTORIES, Resource
from api.kubefake import FakeKube
from api.nodeinventory import InventoryStatus, NodeInventory
from api.offerrules import OfferRule
from controller.keeping import PoolKeeper, Sources
from controller.metrics import Metrics
from controller.offers.consumable import ConsumableMode
from controller.offers.counters import CountersMode
from controller.offers.migrating import WITHDRAWAL_S, holdings
from controller.offers.offering import OfferMode
from controller.offers.policies import NodeDevices, Policy
from controller.offers.slots import SlotsMode
from tests.unit.controller.builders import DRIVER, GI, SLICES, facts, record, state_inventory, status
from tests.unit.controller.simulating import Claims, assert_nothing_is_given_twice, chances, fill, schedule, usage

MODES: list[OfferMode] = [ConsumableMode(), CountersMode(), CountersMode(together=True), SlotsMode()]
Layout = tuple[dict[str, str | int], ...]
LAYOUTS: list[Layout] = [
    (),
    ({"memory": "2Gi", "count": 3},),
    ({"memory": "6Gi", "count": 3},),
    ({"memory": "16Gi", "count": 3},),
    ({"memory": "2Gi", "cores": 80}, {"memory": "4Gi", "cores": 30}),
]
"""The last one has sizes that do not fit into a GPU together."""
NEW_FIELDS = {"offerMode", "followedClaims"}
STATUSES = [409, 429, 500, 503, None]


class ShakyKube(FakeKube):
    """An API server whose next writes can go wrong, and that remembers each state that it was in."""

    def __init__(self) -> None:
        super().__init__()
        self.before: list[Callable[[], None]] = []
        """Done with the next writes, one each, before they take effect."""
        self.after: list[Callable[[], None]] = []
        """The same, after they took effect and before they are answered."""
        self.now = 1000.0
        self.has_old_crd = False
        """It drops what inventories have of later releases."""
        self.history: list[list[JSON]] = [[]]
        self.since: list[float] = [0.0]
        """When each of these states began."""

    def create(self, resource: Resource, obj: Mapping[str, Any]) -> JSON:
        """Create, with what goes wrong."""
        stored: JSON = self._shaken(lambda: super(ShakyKube, self).create(resource, obj))
        return stored

    def replace(self, resource: Resource, obj: Mapping[str, Any], subresource: str | None = None) -> JSON:
        """Replace, with what goes wrong."""
        stored: JSON = self._shaken(lambda: super(ShakyKube, self).replace(resource, obj, subresource))
        return stored

    def patch(
        self, resource: Resource, target: Mapping[str, Any], patch: Mapping[str, Any], subresource: str | None = None
    ) -> JSON:
        """Patch, with what goes wrong."""
        if self.has_old_crd and "status" in patch:
            status = {field: value for field, value in patch["status"].items() if field not in NEW_FIELDS}
            patch = {**patch, "status": status}
        stored: JSON = self._shaken(lambda: super(ShakyKube, self).patch(resource, target, patch, subresource))
        return stored

    def delete(self, resource: Resource, obj: Mapping[str, Any], grace_s: int | None = None) -> None:
        """Delete, with what goes wrong."""
        self._shaken(lambda: super(ShakyKube, self).delete(resource, obj, grace_s))

    def _shaken(self, write: Callable[[], Any]) -> Any:
        if self.before:
            self.before.pop(0)()
        answer = write()
        stored = self.objects(SLICES)
        if stored != self.history[-1]:
            self.history.append(stored)
            self.since.append(self.now)
        if self.after:
            self.after.pop(0)()
        return answer


def refuse(code: int | None) -> Callable[[], None]:
    def fail() -> None:
        raise KubeError(f"HTTP {code}", code)

    return fail


def nothing() -> None:
    """Let a write pass."""


class World:
    """A node with two GPUs of 16 GiB, what claims hold of them, and an API server."""

    def __init__(self) -> None:
        self.kube = ShakyKube()
        self.node_uid = self.stated_uid = "uid-1"
        self.has_node = True
        self.broken: set[int] = set()
        self.claims: Claims = {}
        self.mode: OfferMode = MODES[0]
        self.policy = Policy()
        state_inventory(self.kube, "n1", self.inventory())

    def told(self) -> dict[str, Any]:
        """What the node's agent was told."""
        inventory = NodeInventory.from_object(self.kube.get(NODE_INVENTORIES, "n1"))
        assert inventory.status is not None
        return {"offer_mode": inventory.status.offer_mode, "followed_claims": inventory.status.followed_claims}

    def known_lately(self) -> list[list[JSON]]:
        """The states of the slices that a scheduler may still decide by, the latest first."""
        ends = [*self.kube.since[1:], float("inf")]
        lately = [state for state, end in zip(self.kube.history, ends, strict=True) if end > self.oldest()]
        return lately[::-1]

    def oldest(self) -> float:
        return self.kube.now - WITHDRAWAL_S

    def inventory(self) -> InventoryStatus:
        devices = (facts(n, memory_bytes=16 * GI, healthy=n not in self.broken) for n in range(2))
        return status(*devices, node_uid=self.stated_uid)


class Leader:
    """A keeper, with the caches that it sees the cluster by."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.position = len(world.kube.history) - 1
        self.claims = dict(world.claims)
        self.told = world.told()
        self.may_write = True
        sources = Sources(
            node_uid=lambda _: world.node_uid if world.has_node else None,
            inventory=lambda _: record(world.inventory().model_copy(update=self.told)),
            devices=lambda _, inventory: NodeDevices(inventory, holdings=holdings(usage(self.claims))),
            followed=lambda _: (),
            slices=lambda _: list(world.kube.history[self.position]),
            has_seen=self._has_seen,
            heartbeat_age_s=lambda _: 0.0,
            clock=lambda: world.kube.now,
        )
        metrics = Metrics(CollectorRegistry())
        self.keeper = PoolKeeper(
            world.kube, DRIVER, "v1", sources=sources, may_write=lambda: self.may_write, metrics=metrics
        )
        self.configure()

    def _has_seen(self, version: str) -> bool:
        seen = [int(obj["metadata"]["resourceVersion"]) for obj in self.world.kube.history[self.position]]
        return max(seen, default=0) >= int(version) or self.position == len(self.world.kube.history) - 1

    def configure(self) -> None:
        mode, policy = self.world.mode, self.world.policy
        self.keeper.set_mode(mode, Policy(policy.rules, taints=policy.taints, menu=mode.name == "counters"))

    def sync(self) -> None:
        try:
            self.keeper.sync("n1")
        except KubeError:
            pass
        finally:
            self.world.kube.before.clear()
            self.world.kube.after.clear()

    def catch_up(self) -> None:
        self.position = len(self.world.kube.history) - 1
        self.claims = dict(self.world.claims)
        self.told = self.world.told()


class Anyhow(RuleBasedStateMachine):
    """Anything in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.leader = Leader(self.world)
        self.number = 0

    @initialize(old=st.booleans())
    def install_a_crd(self, old: bool) -> None:
        self.world.kube.has_old_crd = old

    @rule(mode=st.sampled_from(MODES))
    def change_mode_for_the_next_leader(self, mode: OfferMode) -> None:
        self.world.mode = mode

    @rule(mode=st.sampled_from(MODES), syncs=st.integers(0, 3))
    def change_mode(self, mode: OfferMode, syncs: int) -> None:
        self.world.mode = mode
        self.leader.configure()
        for _ in range(syncs):
            self.sync()

    @rule(layout=st.sampled_from(LAYOUTS), taints=st.booleans())
    def change_policy(self, layout: Layout, taints: bool) -> None:
        rules = (OfferRule.model_validate({"slots": layout, "menu": layout}),) if layout else ()
        self.world.policy = Policy(rules, taints=taints)
        self.leader.configure()

    @rule(gpu=st.integers(0, 1), healthy=st.booleans())
    def change_health(self, gpu: int, healthy: bool) -> None:
        (self.world.broken.discard if healthy else self.world.broken.add)(gpu)

    @rule(is_there=st.booleans())
    def change_whether_there_is_a_node(self, is_there: bool) -> None:
        self.world.has_node = is_there

    @rule()
    def replace_the_node(self) -> None:
        self.world.node_uid = f"uid-{int(self.world.node_uid[4:]) + 1}"

    @rule()
    def let_the_agent_look_which_node_it_is_on(self) -> None:
        self.world.stated_uid = self.world.node_uid

    @rule()
    def sync(self) -> None:
        self.leader.catch_up()
        self.leader.sync()
        if self.world.node_uid != self.world.stated_uid:
            assert self.world.kube.objects(SLICES) == [], "what a Node of this name had before is on offer"

    @rule()
    def sync_with_stale_caches(self) -> None:
        self.leader.sync()

    @rule(good=st.integers(0, 2), code=st.sampled_from(STATUSES))
    def sync_with_a_refused_write(self, good: int, code: int | None) -> None:
        self.world.kube.before = [nothing] * good + [refuse(code)]
        self.leader.sync()

    @rule(good=st.integers(0, 2))
    def sync_with_a_lost_answer(self, good: int) -> None:
        self.world.kube.after = [nothing] * good + [refuse(None)]
        self.leader.sync()

    @rule(good=st.integers(0, 2), late_s=st.sampled_from([0.0, 8.0, 14.0]))
    def sync_with_a_write_that_takes_effect_late(self, good: int, late_s: float) -> None:
        def wait() -> None:
            self.world.kube.now += late_s
            self.leader.claims = dict(self.world.claims)

        self.world.kube.before = [nothing] * good + [wait]
        self.leader.sync()

    @rule(good=st.integers(0, 2), rounds=st.integers(1, 3))
    def change_leader_in_the_middle_of_a_write(self, good: int, rounds: int) -> None:
        """One write of the former leader arrives after the next one has begun to work."""
        former = self.leader

        def take_over() -> None:
            former.may_write = False
            self.leader = Leader(self.world)
            for _ in range(rounds):
                self.leader.sync()
                self.leader.catch_up()

        self.world.kube.before = [nothing] * good + [take_over]
        former.sync()
        if former.may_write:
            self.leader = Leader(self.world)

    @rule(steps=st.integers(1, 3))
    def see_some_of_it(self, steps: int) -> None:
        self.leader.position = min(self.leader.position + steps, len(self.world.kube.history) - 1)

    @rule()
    def list_anew(self) -> None:
        self.leader.catch_up()

    @rule(choice=st.integers(0, 100), how=st.sampled_from(["delete", "delete all", "empty", "owner", "count"]))
    def edit_by_somebody_else(self, choice: int, how: str) -> None:
        stored = self.world.kube.objects(SLICES)
        if not stored:
            return
        obj = stored[choice % len(stored)]
        if how.startswith("delete"):
            for each in stored if how == "delete all" else [obj]:
                self.world.kube.delete(SLICES, each)
            return
        if how == "empty":
            obj["spec"]["devices"] = []
        elif how == "owner":
            del obj["metadata"]["ownerReferences"]
        else:
            obj["spec"]["pool"]["resourceSliceCount"] += 1
        self.world.kube.replace(SLICES, obj)

    @rule(seconds=st.sampled_from([1.0, 6.0, WITHDRAWAL_S + 1, 60.0]))
    def wait(self, seconds: float) -> None:
        self.leader.claims = dict(self.world.claims)
        self.world.kube.now += seconds

    @rule(choice=st.integers(0, 1000))
    def end_a_claim(self, choice: int) -> None:
        if self.world.claims:
            del self.world.claims[sorted(self.world.claims)[choice % len(self.world.claims)]]

    @rule(late=st.integers(0, 3), choice=st.integers(0, 1000), all_of_it=st.booleans(), times=st.integers(1, 8))
    def allocate(self, late: int, choice: int, all_of_it: bool, times: int) -> None:
        """Allocate by the slices of now, or by those of some writes ago."""
        known = self.world.known_lately()
        slices = known[min(late, len(known) - 1)]
        for _ in range(times):
            self.number += 1
            schedule(f"claim-{self.number}", slices, self.world.claims, choice, all_of_it=all_of_it)

    @invariant()
    def no_byte_is_given_twice(self) -> None:
        """Nor could be, by what a scheduler knew lately, and then by what it knows."""
        assert_nothing_is_given_twice(self.world.claims)
        now = self.world.kube.history[-1]
        for known in self.world.known_lately()[1:4]:
            claims = dict(self.world.claims)
            fill(known, claims)
            fill(now, claims)
            assert_nothing_is_given_twice(claims)

    def teardown(self) -> None:
        """Once it is over, the slices are those of a new node with these claims, whole, and nothing more is written."""
        self.world.has_node = True
        self.world.stated_uid = self.world.node_uid
        self.leader.configure()
        self._settle_as_new()
        self.world.claims.clear()
        self._settle_as_new()

    def _settle_as_new(self) -> None:
        self._settle(self.world, self.leader)
        fresh = World()
        fresh.mode, fresh.policy, fresh.broken = self.world.mode, self.world.policy, self.world.broken
        fresh.node_uid = fresh.stated_uid = self.world.node_uid
        fresh.claims = dict(self.world.claims)
        self._settle(fresh, Leader(fresh))
        assert _offered(self.world) == _offered(fresh)
        stored = self.world.kube.objects(SLICES)
        assert {obj["metadata"]["ownerReferences"][0]["uid"] for obj in stored} == {self.world.node_uid}
        assert len({str(obj["spec"]["pool"]) for obj in stored}) == 1
        assert stored[0]["spec"]["pool"]["resourceSliceCount"] == len(stored)

    def _settle(self, world: World, leader: Leader) -> None:
        for _ in range(12):
            leader.catch_up()
            leader.sync()
            world.kube.now += 45
        written = len(world.kube.history)
        leader.catch_up()
        leader.sync()
        assert len(world.kube.history) == written


def _offered(world: World) -> list[JSON]:
    return [{**obj["spec"], "pool": None} for obj in world.kube.objects(SLICES)]


Anyhow.TestCase.settings = chances(40)
TestAnyhow = Anyhow.TestCase


def test_a_leader_that_finds_nothing_on_offer_waits_for_what_the_one_before_it_withdrew() -> None:
    state = Anyhow()
    state.sync()
    state.change_mode(mode=SlotsMode(), syncs=0)
    state.sync()
    state.change_leader_in_the_middle_of_a_write(good=0, rounds=1)
    state.sync_with_a_lost_answer(good=0)
    state.allocate(all_of_it=False, choice=1, late=2, times=1)
    state.allocate(all_of_it=False, choice=227, late=0, times=4)
    state.no_byte_is_given_twice()
    state.wait(seconds=WITHDRAWAL_S + 1)
    state.sync()
    state.allocate(all_of_it=False, choice=227, late=0, times=4)
    state.no_byte_is_given_twice()
    assert len(state.world.claims) > 1
    state.teardown()


def test_what_was_removed_before_its_keeper_saw_it_on_offer_counts_as_taken() -> None:
    state = Anyhow()
    state.sync()
    state.edit_by_somebody_else(choice=0, how="delete")
    state.change_mode(mode=SlotsMode(), syncs=1)
    state.no_byte_is_given_twice()
    assert state.world.kube.objects(SLICES)[0]["spec"]["devices"] == []
    state.wait(seconds=WITHDRAWAL_S + 1)
    state.sync()
    assert len(state.world.kube.objects(SLICES)[0]["spec"]["devices"]) == 6
    state.teardown()


def test_what_was_removed_though_its_write_was_never_answered_counts_as_taken() -> None:
    state = Anyhow()
    state.sync_with_a_lost_answer(good=1)
    state.edit_by_somebody_else(choice=0, how="delete")
    state.change_mode(mode=SlotsMode(), syncs=1)
    state.no_byte_is_given_twice()
    state.teardown()


def test_slots_that_do_not_fit_into_a_gpu_together_are_cut_as_for_a_new_node_whatever_was_on_offer() -> None:
    state = Anyhow()
    state.install_a_crd(old=True)
    state.sync()
    state.wait(seconds=6.0)
    state.wait(seconds=6.0)
    state.change_policy(layout=LAYOUTS[1], taints=False)
    state.change_mode(mode=SlotsMode(), syncs=1)
    state.change_policy(layout=LAYOUTS[4], taints=False)
    state.teardown()
    (stored,) = state.world.kube.objects(SLICES)
    assert [device["name"].rpartition("-slot-")[2] for device in stored["spec"]["devices"]] == 2 * ["2048m-80c-0"]


def test_counters_that_no_device_draws_on_any_more_count_as_taken() -> None:
    state = Anyhow()
    state.change_mode(mode=CountersMode(), syncs=2)
    state.change_mode(mode=ConsumableMode(), syncs=0)
    state.change_leader_in_the_middle_of_a_write(good=2, rounds=1)
    state.no_byte_is_given_twice()
    state.teardown()


@pytest.mark.parametrize("mode", [ConsumableMode(), SlotsMode()])
@pytest.mark.parametrize("choice", [437, 13])
def test_what_a_claim_holds_of_counters_is_not_free_for_two_when_the_claim_ends_right_after_a_change_of_the_mode(
    mode: OfferMode, choice: int
) -> None:
    state = Anyhow()
    state.change_mode(mode=CountersMode(), syncs=2)
    state.wait(seconds=60.0)
    state.allocate(all_of_it=False, choice=choice, late=0, times=3)
    state.change_mode(mode=mode, syncs=3)
    state.end_a_claim(choice=0)
    state.no_byte_is_given_twice()
    state.wait(seconds=WITHDRAWAL_S + 1)
    state.sync()
    held = {device for device, _ in state.world.claims.values()}
    offered = {device["name"] for obj in state.world.kube.objects(SLICES) for device in obj["spec"]["devices"]}
    assert held <= offered
    state.teardown()
