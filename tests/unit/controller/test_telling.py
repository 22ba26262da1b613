"""What the controller writes to the inventories of nodes that are gone, or are others by now."""

import pytest
from prometheus_client import CollectorRegistry

from api.errors import ConflictError
from api.kube import NODE_INVENTORIES, NODES
from api.kubefake import FakeKube
from controller.cluster.records import InventoryRecord, trim_inventory
from controller.metrics import Metrics
from controller.telling import InventoryTeller, kept_for
from tests.unit.controller.builders import add_node, facts, state_inventory, status

NODE = {"metadata": {"name": "n1"}}


class World:
    def __init__(self) -> None:
        self.kube = FakeKube()
        self.now = 1000.0
        self.teller = InventoryTeller(self.kube, lambda: None, Metrics(CollectorRegistry()), lambda: self.now)
        add_node(self.kube)
        state_inventory(self.kube, "n1", status(facts()))

    def record(self) -> InventoryRecord:
        (stored,) = self.kube.objects(NODE_INVENTORIES)
        return trim_inventory(stored)

    def stated_uid(self) -> str:
        stated = self.record().status
        assert stated is not None
        return stated.node_uid


def test_an_inventory_that_changed_since_it_was_seen_is_not_deleted() -> None:
    world = World()
    seen = world.record()
    world.kube.patch(NODE_INVENTORIES, NODE, {"spec": {"cordonedDevices": [facts().name]}})
    with pytest.raises(ConflictError):
        world.teller.clean_up("n1", seen, 61)
    assert world.teller.clean_up("n1", world.record(), 61) is None
    assert len(world.kube.objects(NODE_INVENTORIES)) == 1


def test_an_inventory_that_was_made_anew_since_it_was_seen_is_not_deleted() -> None:
    world = World()
    seen = world.record()
    world.kube.delete(NODE_INVENTORIES, NODE)
    state_inventory(world.kube, "n1", status(facts()))
    with pytest.raises(ConflictError):
        world.teller.clean_up("n1", seen, 61)


def test_the_inventory_of_a_node_that_is_gone_stays_while_its_agent_is_alive() -> None:
    world = World()
    assert world.teller.clean_up("n1", world.record(), 40) == 21
    assert len(world.kube.objects(NODE_INVENTORIES)) == 1
    assert world.teller.clean_up("n1", world.record(), 61) is None
    assert world.kube.objects(NODE_INVENTORIES) == []


def test_an_inventory_that_states_nothing_yet_has_a_minute_for_its_node_to_be_seen() -> None:
    world = World()
    world.kube.delete(NODE_INVENTORIES, NODE)
    world.kube.create(NODE_INVENTORIES, {"metadata": {"name": "n1"}, "spec": {}})
    assert world.teller.clean_up("n1", world.record(), float("inf")) == 61
    world.now += 60
    assert world.teller.clean_up("n1", world.record(), float("inf")) == 1
    assert len(world.kube.objects(NODE_INVENTORIES)) == 1
    world.now += 1
    assert world.teller.clean_up("n1", world.record(), float("inf")) is None
    assert world.kube.objects(NODE_INVENTORIES) == []


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({}, ""),
        ({"cordonedDevices": []}, ""),
        ({"cordonedDevices": ["GPU-1", "gpu-2"], "order": "spread"}, "cordonedDevices: GPU-1, gpu-2, order: spread"),
        ({"memoryScaling": 1.5}, "memoryScaling: 1.5"),
    ],
)
def test_an_inventory_is_kept_for_what_an_operator_says_in_it(spec: dict[str, object], said: str) -> None:
    world = World()
    world.kube.patch(NODE_INVENTORIES, NODE, {"spec": spec})
    assert kept_for(world.record()) == said


def test_an_inventory_that_cannot_be_read_is_not_deleted() -> None:
    world = World()
    world.kube.patch(NODE_INVENTORIES, NODE, {"spec": {"cordonedDevices": 3}})
    world.teller.clean_up("n1", world.record(), 61)
    assert len(world.kube.objects(NODE_INVENTORIES)) == 1


def test_an_agent_is_asked_once_what_it_states_has_differed_for_a_while() -> None:
    world = World()
    seen = world.record()
    assert world.teller.ask_anew("n1", seen, "uid-2") == 5
    world.now += 4
    assert world.teller.ask_anew("n1", seen, "uid-2") == 1
    assert world.teller.ask_anew("n1", seen, "uid-3") == 5, "a Node that was just made anew is no reason yet"
    world.now += 5
    assert world.teller.ask_anew("n1", seen, "uid-3") is None
    assert world.stated_uid() == ""
    assert world.teller.ask_anew("n1", world.record(), "uid-3") is None
    assert world.kube.requests[-1] == ("patch", "/apis/vgpu.dra-driver.io/v1alpha1/nodeinventories/n1/status")


def test_an_agent_that_has_just_stated_its_node_is_not_asked() -> None:
    world = World()
    seen = world.record()
    world.kube.delete(NODES, NODE)
    uid = add_node(world.kube)
    world.teller.ask_anew("n1", seen, uid)
    world.now += 5
    state_inventory(world.kube, "n1", status(facts()))
    with pytest.raises(ConflictError):
        world.teller.ask_anew("n1", seen, uid)
    assert world.stated_uid() == uid
