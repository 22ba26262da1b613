"""Slices that somebody else changes: put right at once, and ever more rarely while that goes on."""

import pytest

from controller.offers.offering import SliceContent
from controller.offers.publishing import Pool
from controller.restoring import Restores
from tests.unit.controller.builders import DRIVER

POOL = Pool(DRIVER, "n1", "uid", (SliceContent(),), "v1")
OTHER = Pool(DRIVER, "n1", "uid", (SliceContent(), SliceContent()), "v1")


class Node:
    """A node whose slices somebody else changes."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.restores = Restores(lambda: self.now_s)
        assert self.write(POOL)

    def write(self, pool: Pool) -> bool:
        """Write a pool if that may be."""
        may = self.restores.may_write("n1", pool)
        if may:
            self.restores.note_written("n1", pool)
        return may


def test_the_first_change_is_put_right_at_once_and_endless_ones_once_a_minute() -> None:
    node = Node()
    written = []
    for _ in range(36_000):  # ten times a second, for an hour
        written.append(node.write(POOL))
        node.now_s += 0.1
    assert written[0]
    assert 60 <= sum(written) <= 66
    assert 0 < (node.restores.due_in_s("n1") or 0) <= 60


def test_an_own_wish_is_written_at_once_in_the_middle_of_it() -> None:
    node = Node()
    for _ in range(600):
        node.write(POOL)
        node.now_s += 0.1
    assert not node.write(POOL)
    assert node.write(OTHER)
    assert node.restores.due_in_s("n1") is None


def test_after_a_quiet_time_a_change_is_put_right_at_once_again() -> None:
    node = Node()
    for _ in range(600):
        node.write(POOL)
        node.now_s += 0.1
    node.now_s += 180
    assert node.write(POOL)
    assert not node.write(POOL)
    assert node.restores.due_in_s("n1") == 1.0


def test_what_came_right_by_itself_while_it_had_to_wait_is_due_no_more() -> None:
    node = Node()
    assert node.write(POOL)
    assert not node.write(POOL)
    node.restores.note_written("n1", POOL)  # whoever had changed them has changed them back
    node.now_s += 3600
    assert node.restores.due_in_s("n1") is None


def test_who_changes_slices_again_and_again_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    for _ in range(8):
        node.write(POOL)
        node.now_s += node.restores.due_in_s("n1") or 0.0
    assert "somebody else changes the slices of a node again and again; put right" in caplog.messages
