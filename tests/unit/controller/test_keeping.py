"""What to do with a node's pool: publish, keep, withdraw; and whether an agent is alive."""

from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry

from api.claims import Object
from api.errors import ConflictError
from api.kube import JSON, NODE_INVENTORIES, Resource
from api.kubefake import FakeKube
from api.nodeinventory import FollowedClaim, InventoryStatus
from controller.keeping import PoolKeeper, Sources
from controller.leading import NotLeadingError
from controller.metrics import Metrics
from controller.offers.consumable import ConsumableMode
from controller.offers.deciding import Action, NodeState, Pulse, decide
from controller.offers.migrating import WITHDRAWAL_S
from controller.offers.policies import NodeDevices
from tests.unit.controller.builders import DRIVER, SLICES, facts, record, state_inventory, status

HEARTBEAT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STATED = status(facts(), node_uid="uid", heartbeat=HEARTBEAT)
OF_ANOTHER = STATED.model_copy(update={"node_uid": "uid-of-another"})


@pytest.mark.parametrize(
    ("state", "action"),
    [
        (NodeState("uid", has_inventory=True, inventory=STATED, heartbeat_age_s=60), Action.PUBLISH),
        (NodeState("uid", has_inventory=True, inventory=STATED, heartbeat_age_s=61), Action.KEEP),
        (NodeState("uid", has_inventory=True, inventory=None), Action.KEEP),
        (NodeState("uid", has_inventory=False, inventory=None), Action.WITHDRAW),
        (NodeState(None, has_inventory=True, inventory=STATED), Action.WITHDRAW),
        (NodeState("uid", has_inventory=True, inventory=OF_ANOTHER), Action.WITHDRAW),
        (NodeState("uid", has_inventory=True, inventory=OF_ANOTHER, heartbeat_age_s=61), Action.WITHDRAW),
        (NodeState("uid", has_inventory=True, inventory=None, owners=frozenset({"uid"})), Action.KEEP),
        (NodeState("uid", has_inventory=True, inventory=None, owners=frozenset({"uid-of-another"})), Action.WITHDRAW),
        (
            NodeState("uid", has_inventory=True, inventory=STATED, heartbeat_age_s=61, created_under=HEARTBEAT),
            Action.WITHDRAW,
        ),
        (
            NodeState(
                "uid",
                has_inventory=True,
                inventory=STATED,
                heartbeat_age_s=61,
                created_under=HEARTBEAT - timedelta(seconds=20),
            ),
            Action.KEEP,
        ),
    ],
)
def test_what_is_done_with_a_pool(state: NodeState, action: Action) -> None:
    assert decide(state, DRIVER) is action


def test_the_inventory_of_another_driver_is_left_alone() -> None:
    assert decide(NodeState("uid", has_inventory=True, inventory=STATED), "other.example") is Action.KEEP


class Time:
    def __init__(self) -> None:
        self.monotonic_s = 1000.0
        self.wall = HEARTBEAT

    def pulse(self) -> Pulse:
        return Pulse(lambda: self.monotonic_s, lambda: self.wall)

    def advance(self, seconds: float) -> None:
        self.monotonic_s += seconds
        self.wall += timedelta(seconds=seconds)


def test_the_first_heartbeat_is_as_old_as_it_says() -> None:
    time = Time()
    pulse = time.pulse()
    pulse.note("n1", HEARTBEAT - timedelta(seconds=90))
    assert pulse.age_s("n1") == 90
    assert pulse.age_s("n2") == float("inf")


def test_a_heartbeat_that_was_seen_to_come_is_young_even_if_the_nodes_clock_is_an_hour_slow() -> None:
    time = Time()
    pulse = time.pulse()
    slow = HEARTBEAT - timedelta(hours=1)
    pulse.note("n1", slow)
    assert pulse.age_s("n1") == 3600
    time.advance(20)
    pulse.note("n1", slow + timedelta(seconds=20))
    assert pulse.age_s("n1") == 0
    time.advance(61)
    assert pulse.age_s("n1") == 61


def test_an_agent_that_died_is_dead_even_if_its_clock_was_an_hour_fast() -> None:
    time = Time()
    pulse = time.pulse()
    fast = HEARTBEAT + timedelta(hours=1)
    pulse.note("n1", fast)
    time.advance(61)
    assert pulse.age_s("n1") == 61
    pulse.note("n1", fast + timedelta(seconds=20))
    time.advance(62)
    assert pulse.age_s("n1") == 62


def test_a_repeated_heartbeat_is_none() -> None:
    time = Time()
    pulse = time.pulse()
    pulse.note("n1", HEARTBEAT)
    time.advance(70)
    pulse.note("n1", HEARTBEAT)
    assert pulse.age_s("n1") == 70


def test_a_node_that_went_has_no_heartbeat() -> None:
    pulse = Time().pulse()
    pulse.note("n1", HEARTBEAT)
    pulse.note("n1", None)
    assert pulse.age_s("n1") == float("inf")


class Node:
    """The state of one node as the caches give it, over an API server in memory."""

    def __init__(self, kube: FakeKube | None = None) -> None:
        self.kube = kube or FakeKube()
        self.now = 1000.0
        self.followed: tuple[FollowedClaim, ...] = ()
        state_inventory(self.kube, "n1", STATED)
        self.age_s = 0.0
        self.leading = True
        self.inventory: InventoryStatus = STATED
        self.registry = CollectorRegistry()
        sources = Sources(
            node_uid=lambda _: "uid",
            inventory=lambda _: record(self._inventory()),
            devices=lambda _, inventory: NodeDevices(inventory),
            followed=lambda _: self.followed,
            slices=lambda _: self.kube.objects(SLICES),
            has_seen=lambda _: True,
            heartbeat_age_s=lambda _: self.age_s,
            clock=lambda: self.now,
        )
        self.keeper = PoolKeeper(
            self.kube,
            DRIVER,
            "v1",
            sources=sources,
            may_write=lambda: self.leading,
            metrics=Metrics(self.registry),
        )
        self.keeper.set_mode(ConsumableMode())

    def _inventory(self) -> InventoryStatus:
        (told,) = self.kube.objects(NODE_INVENTORIES)
        stored = InventoryStatus.model_validate(told["status"])
        by_controller = {"offer_mode": stored.offer_mode, "followed_claims": stored.followed_claims}
        return self.inventory.model_copy(update=by_controller)

    def beat(self) -> None:
        """State the same once more."""
        beat = self.inventory.heartbeat_time + timedelta(seconds=20)
        self.inventory = self.inventory.model_copy(update={"heartbeat_time": beat})

    def tell(self, mode: str) -> None:
        """As a keeper does before it offers anything."""
        self.kube.patch(
            NODE_INVENTORIES,
            {"metadata": {"name": "n1"}},
            {"status": {"offerMode": mode, "followedClaims": []}},
            "status",
        )


def test_slices_made_after_an_agents_last_heartbeat_are_withdrawn_when_no_other_comes() -> None:
    node = Node()
    node.age_s = 40
    assert node.keeper.sync("n1") == 21
    assert len(node.kube.objects(SLICES)) == 1
    node.age_s = 61
    assert node.keeper.sync("n1") is None
    assert node.kube.objects(SLICES) == []


def test_slices_that_have_seen_a_later_heartbeat_stay_when_the_agent_dies() -> None:
    node = Node()
    node.keeper.sync("n1")
    node.inventory = status(facts(), node_uid="uid", heartbeat=HEARTBEAT + timedelta(seconds=20))
    assert node.keeper.sync("n1") is None
    node.age_s = 61
    node.keeper.sync("n1")
    assert len(node.kube.objects(SLICES)) == 1


class OldCRD(FakeKube):
    """Drops what the CRD of an older release has no place for."""

    dropped = frozenset({"offerMode", "followedClaims"})

    def patch(self, resource: Resource, target: Object, patch: Object, subresource: str | None = None) -> JSON:
        if resource == NODE_INVENTORIES:
            kept = {field: value for field, value in patch["status"].items() if field not in self.dropped}
            patch = {**patch, "status": kept}
        return super().patch(resource, target, patch, subresource)


TOLD = ("patch", "/apis/vgpu.dra-driver.io/v1alpha1/nodeinventories/n1/status")


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [vars(record)["field"] for record in caplog.records if "drops what the controller tells" in record.message]


def test_a_crd_of_an_older_release_is_complained_of_once_and_tried_again_ever_more_rarely(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kube = OldCRD()
    node = Node(kube)
    before = kube.requests.count(TOLD)
    for _ in range(3):
        assert node.keeper.sync("n1") == 10
    assert kube.requests.count(TOLD) == before + 1
    assert complaints(caplog) == []
    node.beat()
    node.now += 10
    assert node.keeper.sync("n1") == 300
    assert complaints(caplog) == ["status.offerMode", "status.followedClaims"]
    assert node.registry.get_sample_value("vgpu_controller_crd_outdated") == 1
    node.now += 300
    assert node.keeper.sync("n1") == 300
    assert kube.requests.count(TOLD) == before + 3
    assert len(complaints(caplog)) == 2

    kube.dropped = frozenset()
    node.now += 300
    assert node.keeper.sync("n1") is None

    assert node.registry.get_sample_value("vgpu_controller_crd_outdated") == 0
    (stored,) = kube.objects(NODE_INVENTORIES)
    assert (stored["status"]["offerMode"], stored["status"]["followedClaims"]) == ("consumable", [])


def test_a_crd_that_takes_effect_a_moment_after_its_update_is_no_reason_to_complain(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kube = OldCRD()
    node = Node(kube)
    node.keeper.sync("n1")
    kube.dropped = frozenset()
    node.beat()
    node.now += 10
    assert node.keeper.sync("n1") is None
    assert complaints(caplog) == []
    assert kube.objects(NODE_INVENTORIES)[0]["status"]["offerMode"] == "consumable"


@pytest.mark.parametrize(("kube", "offered_at_once"), [(FakeKube(), 1), (OldCRD(), 0)])
def test_where_the_crd_forgets_what_was_offered_a_pool_without_slices_is_not_taken_for_new(
    kube: FakeKube, offered_at_once: int
) -> None:
    node = Node(kube)
    node.keeper.sync("n1")
    (stored,) = kube.objects(SLICES)
    assert len(stored["spec"]["devices"]) == offered_at_once
    node.now += WITHDRAWAL_S
    node.keeper.sync("n1")
    (stored,) = kube.objects(SLICES)
    assert len(stored["spec"]["devices"]) == 1


def test_a_crd_that_was_updated_just_now_does_not_make_a_pool_without_slices_a_new_one() -> None:
    node = Node()
    node.keeper.note_old_crd()
    node.keeper.sync("n1")
    assert node.kube.objects(SLICES)[0]["spec"]["devices"] == []
    node.now += WITHDRAWAL_S
    node.keeper.sync("n1")
    assert len(node.kube.objects(SLICES)[0]["spec"]["devices"]) == 1


def test_an_agent_is_told_which_of_its_claims_are_annotated_and_when_none_is_any_more() -> None:
    node = Node()

    def told() -> object:
        return node.kube.get(NODE_INVENTORIES, "n1")["status"]["followedClaims"]

    node.followed = (FollowedClaim(uid="uid-1", digest="d"),)
    node.keeper.sync("n1")
    assert told() == [{"uid": "uid-1", "digest": "d"}]
    node.followed = ()
    wait_s = node.keeper.sync("n1")
    assert (wait_s, told()) == (1.0, [{"uid": "uid-1", "digest": "d"}]), "changed a moment ago"
    node.now += 1.0
    node.keeper.sync("n1")
    assert told() == []


def test_a_slice_that_somebody_empties_all_the_time_is_filled_at_once_and_then_ever_more_rarely() -> None:
    node = Node()
    node.keeper.sync("n1")
    (full,) = node.kube.objects(SLICES)
    writes = 0
    for _ in range(600):  # ten times a second, for a minute
        (stored,) = node.kube.objects(SLICES)
        if stored["spec"]["devices"]:
            node.kube.replace(SLICES, {**stored, "spec": {**stored["spec"], "devices": []}})
        node.keeper.sync("n1")
        (stored,) = node.kube.objects(SLICES)
        writes += stored["spec"] == full["spec"]
        node.now += 0.1
    assert 5 <= writes <= 7
    wait_s = node.keeper.sync("n1")
    assert wait_s is not None
    node.now += wait_s
    node.keeper.sync("n1")
    assert node.kube.objects(SLICES)[0]["spec"] == full["spec"]


def test_who_does_not_lead_writes_nothing() -> None:
    node = Node()
    node.leading = False
    with pytest.raises(NotLeadingError):
        node.keeper.sync("n1")
    assert ("create", "/apis/resource.k8s.io/v1/resourceslices") not in node.kube.requests
    node.leading = True
    node.keeper.sync("n1")
    node.leading = False
    node.inventory = status(node_uid="uid", heartbeat=HEARTBEAT)
    with pytest.raises(NotLeadingError):
        node.keeper.sync("n1")
    (stored,) = node.kube.objects(SLICES)
    assert len(stored["spec"]["devices"]) == 1


def test_a_write_that_somebody_was_faster_with_is_counted_and_left_to_the_next_try() -> None:
    node = Node()
    node.tell("consumable")
    node.kube.fail_next(ConflictError("already exists", 409))
    with pytest.raises(ConflictError):
        node.keeper.sync("n1")
    assert node.registry.get_sample_value("vgpu_controller_write_conflicts_total") == 1
    node.keeper.sync("n1")
    assert len(node.kube.objects(SLICES)) == 1
