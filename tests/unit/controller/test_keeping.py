"""What to do with a node's pool: publish, keep, withdraw; and whether an agent is alive."""

from datetime import UTC, datetime, timedelta

import pytest

from controller.keeping import Action, NodeState, Pulse, decide
from tests.unit.controller.builders import DRIVER, facts, status

HEARTBEAT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STATED = status(facts(), heartbeat=HEARTBEAT)


@pytest.mark.parametrize(
    ("state", "action"),
    [
        (NodeState("uid", has_inventory=True, inventory=STATED, heartbeat_age_s=60), Action.PUBLISH),
        (NodeState("uid", has_inventory=True, inventory=STATED, heartbeat_age_s=61), Action.KEEP),
        (NodeState("uid", has_inventory=True, inventory=None), Action.KEEP),
        (NodeState("uid", has_inventory=False, inventory=None), Action.WITHDRAW),
        (NodeState(None, has_inventory=True, inventory=STATED), Action.WITHDRAW),
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
