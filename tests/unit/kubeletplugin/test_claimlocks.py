"""The lock of a claim: between threads, and between two agents on one node."""

import threading
from pathlib import Path

import pytest

from api.errors import TransientError
from api.names import ClaimUID
from kubeletplugin.state.claimlocks import ClaimLocks

A, B = ClaimUID("a"), ClaimUID("b")


def test_two_claims_do_not_wait_for_each_other(tmp_path: Path) -> None:
    locks = ClaimLocks(tmp_path / "locks", timeout_s=0)

    with locks.hold(A), locks.hold(B):
        pass


@pytest.mark.parametrize("instances", [1, 2])
def test_calls_for_one_claim_wait_for_each_other(tmp_path: Path, instances: int) -> None:
    first = ClaimLocks(tmp_path / "locks")
    second = first if instances == 1 else ClaimLocks(tmp_path / "locks")
    order: list[str] = []
    entered = threading.Event()

    def enter() -> None:
        with second.hold(A):
            order.append("second")
            entered.set()

    with first.hold(A):
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.05)
        order.append("first")
    thread.join()

    assert order == ["first", "second"]


def test_a_call_that_never_ends_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    locks = ClaimLocks(tmp_path / "locks", timeout_s=0.01)

    with locks.hold(A), pytest.raises(TransientError) as caught:
        locks.hold(A).__enter__()

    assert str(caught.value) == "claim a: another call for it runs for more than 0.01 s"
    with locks.hold(A):
        pass


@pytest.mark.parametrize("instances", [1, 2])
def test_of_several_claims_those_are_held_that_nobody_is_at(tmp_path: Path, instances: int) -> None:
    locks = ClaimLocks(tmp_path / "locks", timeout_s=0)
    others = locks if instances == 1 else ClaimLocks(tmp_path / "locks", timeout_s=0)

    with others.hold(A), locks.hold_free([A, B]) as held:
        assert held == {B}
        with pytest.raises(TransientError):
            locks.hold(B).__enter__()

    with locks.hold(A), locks.hold(B):
        pass


def test_another_agent_that_never_ends_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    first, second = (ClaimLocks(tmp_path / "locks", timeout_s=0.01) for _ in range(2))

    with first.hold(A), pytest.raises(TransientError, match="held by another instance of the agent for more than"):
        second.hold(A).__enter__()

    with second.hold(A):
        pass


def test_locks_that_are_asked_for_at_once_for_the_first_time_are_all_given_back(tmp_path: Path) -> None:
    for number in range(20):
        locks = ClaimLocks(tmp_path / f"locks-{number}", timeout_s=0)
        barrier = threading.Barrier(8)

        def take(uid: str, locks: ClaimLocks = locks, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            with locks.hold(ClaimUID(uid)):
                pass

        threads = [threading.Thread(target=take, args=(f"claim-{i}",)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        other = ClaimLocks(tmp_path / f"locks-{number}", timeout_s=0)
        for i in range(8):
            with other.hold(ClaimUID(f"claim-{i}")):
                pass
