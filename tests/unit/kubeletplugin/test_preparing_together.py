"""Claims that are prepared in one go: as safe as one by one, and no business of each other."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from api.errors import CapacityError, KubeError, VGPUError
from api.kube import JSON, Resource
from api.names import ClaimUID
from kubeletplugin.claims.claimreading import ClaimReference
from kubeletplugin.claims.preparing import Preparer
from kubeletplugin.state.nodestates import NodeState
from tests.unit.kubeletplugin.barenode import A, BareNode
from tests.unit.kubeletplugin.builders import add_claim, result
from tests.unit.kubeletplugin.faults import Disk, crashes, in_child

_MOST = 60


class TwoClaims(BareNode):
    """A node, and a second claim beside the first."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.other = self.add("other", result(A, "1Gi"))
        self.both = [self.claim, self.other]

    def add(self, name: str, *results: dict[str, object]) -> ClaimReference:
        ref = add_claim(self.client, name, *results)
        return ClaimReference(ref.namespace, ref.name, ClaimUID(ref.uid))

    def prepare_both(self) -> dict[str, list[list[str]]]:
        state, preparer, _ = self.start()
        return ids(state, preparer, self.both)

    def unprepare_both(self) -> None:
        _, _, unpreparer = self.start()
        for claim in self.both:
            unpreparer.unprepare(claim.uid)


def ids(state: NodeState, preparer: Preparer, claims: list[ClaimReference]) -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {}
    for uid, outcome in preparer.prepare_together(claims).items():
        assert not isinstance(outcome, Exception), outcome
        found[uid] = [state.cdi_ids(device) for device in outcome.devices]
    return found


def make_lock_file(state: NodeState, node: BareNode) -> None:
    """See to it that the file of all locks is there: without it there is no round, and each claim is tried alone."""
    with state.locks.hold(node.claim.uid):
        pass


@pytest.fixture
def node(tmp_path: Path) -> TwoClaims:
    return TwoClaims(tmp_path)


def test_after_a_crash_claims_that_were_prepared_together_get_what_they_would_have_got_and_leave_nothing(
    node: TwoClaims,
) -> None:
    expected = node.prepare_both()
    assert list(expected) == [claim.uid for claim in node.both]
    node.unprepare_both()

    for number in crashes(node.prepare_both, least=20):
        node.check_that_no_share_is_unlimited()
        if number % 2:  # else they are undone as they are
            assert node.prepare_both() == expected, number
        node.unprepare_both()
        assert node.files() == [], number


def test_a_disk_that_refuses_one_thing_costs_one_claim_at_most(node: TwoClaims) -> None:
    def each_in_turn() -> None:
        state, preparer, unpreparer = node.start()
        make_lock_file(state, node)
        disk = Disk()
        for number in range(_MOST):
            with disk.full_from(number, lasting=False):
                outcomes = preparer.prepare_together(node.both)
            if not disk.refused:
                assert number > 10, number  # or the disk refuses nothing
                return
            failed = [uid for uid, outcome in outcomes.items() if isinstance(outcome, Exception)]
            assert len(outcomes) == 2, number
            assert len(failed) <= 1, (number, outcomes)
            assert not [path for path in node.files() for uid in failed if uid in path.name], number
            assert len(ids(state, preparer, node.both)) == 2, number
            for claim in node.both:
                unpreparer.unprepare(claim.uid)
        raise AssertionError(f"more than {_MOST} changes")

    in_child(each_in_turn)


def test_a_full_disk_fails_all_and_leaves_nothing(node: TwoClaims) -> None:
    def fill() -> None:
        state, preparer, _ = node.start()
        make_lock_file(state, node)
        disk = Disk()
        for number in range(5):
            with disk.full_from(number, lasting=True):
                outcomes = preparer.prepare_together(node.both)
            assert all(isinstance(outcome, OSError) for outcome in outcomes.values()), outcomes
            assert node.files() == [], number

    in_child(fill)


def test_claims_that_are_gone_or_promised_too_much_do_not_touch_the_others(node: TwoClaims) -> None:
    state, preparer, _ = node.start()
    gone = ClaimReference("default", "gone", ClaimUID("gone-uid"))
    elsewhere = node.add("elsewhere", {**result(A, "1Gi"), "pool": "another"})
    too_much = node.add("too-much", result(A, "9Gi"))

    outcomes = preparer.prepare_together([gone, node.claim, elsewhere, too_much, node.other])

    assert {uid for uid, outcome in outcomes.items() if not isinstance(outcome, Exception)} == {
        node.claim.uid,
        node.other.uid,
    }
    assert str(outcomes[gone.uid]) == "ResourceClaim default/gone: found none, expected the one with uid gone-uid"
    assert "of pool another, expected pool" in str(outcomes[elsewhere.uid])
    assert too_much.uid not in outcomes  # alone, it can wait for claims that are gone to be given up
    with pytest.raises(CapacityError, match="too-much"):
        preparer.prepare(too_much)
    assert set(state.ledger.prepared()) == {node.claim.uid, node.other.uid}


def test_a_claim_that_another_call_is_at_is_left_to_be_prepared_alone(node: TwoClaims) -> None:
    state, preparer, _ = node.start()

    with state.locks.hold(node.claim.uid):
        outcomes = preparer.prepare_together(node.both)

    assert list(outcomes) == [node.other.uid]
    assert preparer.prepare(node.claim).uid == node.claim.uid


def test_a_claim_that_a_busy_api_server_put_off_is_left_to_be_prepared_alone_and_asked_for_when_it_said(
    node: TwoClaims, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, preparer, _ = node.start()
    get, times = node.client.get, iter([True, True])

    def put_off(resource: Resource, name: str, namespace: str | None = None) -> JSON:
        if name == node.claim.name and next(times, False):
            error = KubeError("too many requests", 429)
            error.wait_s = 0.01
            raise error
        return get(resource, name, namespace)

    monkeypatch.setattr(node.client, "get", put_off)
    assert list(preparer.prepare_together(node.both)) == [node.other.uid]

    assert preparer.prepare(node.claim).uid == node.claim.uid


def test_claims_of_pods_that_run_are_answered_while_the_api_server_is_away(node: TwoClaims) -> None:
    expected = node.prepare_both()
    third = node.add("third", result(A, "1Gi"))
    state, preparer, _ = node.start()
    node.client.set_down(True)

    outcomes = preparer.prepare_together([*node.both, third])

    assert isinstance(outcomes.pop(third.uid), VGPUError)
    assert outcomes == {uid: state.ledger.get(ClaimUID(uid)) for uid in expected}


def test_all_records_are_on_disk_before_any_claim_is_answered(node: TwoClaims, monkeypatch: pytest.MonkeyPatch) -> None:
    state, preparer, _ = node.start()
    done: list[str] = []

    def noting(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            done.append(name)
            return function(*arguments)

        return call

    monkeypatch.setattr(os, "fsync", noting("fsync", os.fsync))
    monkeypatch.setattr(state, "put", noting("put", state.put))

    preparer.prepare_together(node.both)

    assert done == ["fsync", "fsync", "fsync", "put", "put"]  # two files, their folder
