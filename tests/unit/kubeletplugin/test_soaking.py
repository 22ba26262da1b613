"""Agents in processes of their own that are killed at their work. `make soak` does it longer, and at every change."""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.kubeletplugin.soaking import Node, crash_everywhere, soak


@pytest.fixture(scope="module")
def kept() -> Iterator[Node]:
    """A node for several tests: to load what an agent needs takes longer than they do."""
    with tempfile.TemporaryDirectory(prefix="vgpu-", dir="/tmp") as folder:
        node = Node(Path(folder), random.Random(0))
        node.agent.stop()
        yield node
        node.close()


@pytest.fixture
def node(kept: Node) -> Iterator[Node]:
    kept.start_agent("fresh")
    yield kept
    kept.end_all()
    kept.agent.stop()


def test_pods_come_and_go_while_the_agent_is_killed_and_nothing_is_lost_or_left(node: Node) -> None:
    soak(node, cycles=15, seed=3)


def test_an_agent_that_is_killed_at_a_change_or_an_answer_goes_on_where_it_was(node: Node) -> None:
    # Each twentieth point; the matrix of the files alone is complete in test_crashes.
    assert crash_everywhere(node, step=20) >= 3


def test_a_rolling_update_fails_no_call(node: Node) -> None:
    first = node.start_pod(*node.results(2))
    former = node.agent
    node.start_agent("new")
    second = node.start_pod(*node.results(2))
    former.stop()
    node.prepare(first)
    node.share_pod(second)
    assert "not prepared" not in node.agents.log()
