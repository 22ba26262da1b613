"""Annotations that somebody changes all the time: told at once the first time, then ever more rarely, one by one."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry

from api.kube import NODE_INVENTORIES
from api.kubefake import FakeKube
from api.names import ClaimUID
from api.nodeinventory import FollowedClaim
from controller.cluster.records import trim_inventory
from controller.damping import Damper
from controller.metrics import Metrics
from controller.telling import InventoryTeller
from tests.unit.controller.builders import add_node, facts, state_inventory, status

A, B = ClaimUID("a"), ClaimUID("b")


class Node:
    """What a node knows, told through a damper."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.damper = Damper(lambda: self.now_s)
        self.told: Mapping[ClaimUID, str] = {}
        self.writes = 0

    def tell(self, wanted: Mapping[ClaimUID, str]) -> Mapping[ClaimUID, str]:
        """Tell it what may be told now."""
        admitted = self.damper.admit("n1", self.told, wanted)
        self.writes += admitted != self.told
        self.told = admitted
        return admitted


def test_what_changes_for_the_first_time_is_told_at_once() -> None:
    node = Node()
    assert node.tell({A: "1"}) == {A: "1"}
    assert node.tell({A: "1", B: "1"}) == {A: "1", B: "1"}
    node.now_s += 2.0
    assert node.tell({A: "2"}) == {A: "2"}
    assert node.damper.due_in_s("n1") is None


def test_who_changes_all_the_time_is_told_of_ever_more_rarely_and_in_the_end_of_the_last_change() -> None:
    node = Node()
    for step in range(36_000):  # ten times a second, for an hour
        node.tell({A: str(step)})
        node.now_s += 0.1
    assert 60 <= node.writes <= 66
    left_s = node.damper.due_in_s("n1")
    assert left_s is not None
    assert 0 < left_s <= 60
    node.now_s += left_s
    assert node.tell({A: "last"}) == {A: "last"}
    assert node.damper.due_in_s("n1") is None


def test_who_comes_and_goes_all_the_time_is_held_back_as_well() -> None:
    node = Node()
    for step in range(600):
        node.tell({A: "1"} if step % 2 else {})
        node.now_s += 0.1
    assert node.writes < 8


def test_a_claim_that_changes_all_the_time_keeps_no_other_waiting() -> None:
    node = Node()
    for step in range(100):
        node.tell({A: str(step)})
    assert node.tell({A: "100", B: "1"}) == {A: "0", B: "1"}


def test_who_was_quiet_is_told_of_at_once_again() -> None:
    node = Node()
    for step in range(600):
        node.tell({A: str(step)})
        node.now_s += 0.1
    node.now_s += 180.0
    assert node.tell({A: "new"}) == {A: "new"}
    node.now_s += 1.0
    assert node.tell({A: "newer"}) == {A: "newer"}


def test_what_was_told_a_moment_ago_and_is_not_seen_yet_is_not_undone_for_a_change_of_another_claim() -> None:
    node = Node()
    seen = node.told
    node.tell({A: "1"})
    assert node.damper.admit("n1", seen, {A: "1", B: "1"}) == {A: "1", B: "1"}


def test_an_annotation_that_is_flipped_all_the_time_costs_few_writes_to_the_inventory() -> None:
    kube, now_s = FakeKube(), [1000.0]
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    teller = InventoryTeller(kube, lambda: None, Metrics(CollectorRegistry()), lambda: now_s[0])
    before = len(kube.requests)
    for step in range(600):
        stated = trim_inventory(kube.objects(NODE_INVENTORIES)[0]).status
        assert stated is not None
        teller.tell_mode("n1", stated, "consumable", (FollowedClaim(uid="a", digest=str(step)),))
        now_s[0] += 0.1
    assert len(kube.requests) - before < 8
    due_s = teller.due_in_s("n1")
    assert due_s is not None
    assert due_s <= 60
