"""Claims that are undone in one go: with one wait for the disk, as safe as one by one, no business of each other."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from api.kubefake import FakeKube
from api.names import ClaimUID
from kubeletplugin.claims.claimreading import ClaimReference
from kubeletplugin.kubelet.services import DRAService
from kubeletplugin.state.nodestates import NodeState
from libvgpu.shares import read_limits
from tests.unit.kubeletplugin.barenode import A, BareNode
from tests.unit.kubeletplugin.builders import add_claim, gpu, result
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet
from tests.unit.kubeletplugin.faults import crashes


class TwoClaims(BareNode):
    """A node, and a second claim beside the first."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        ref = add_claim(self.client, "other", result(A, "1Gi"))
        self.other = ClaimReference(ref.namespace, ref.name, ClaimUID(ref.uid))
        self.uids = [self.claim.uid, self.other.uid]

    def prepare_both(self) -> dict[str, list[list[str]]]:
        state, preparer, _ = self.start()
        found: dict[str, list[list[str]]] = {}
        for uid, outcome in preparer.prepare_together([self.claim, self.other]).items():
            assert not isinstance(outcome, Exception), outcome
            found[uid] = [state.cdi_ids(device) for device in outcome.devices]
        return found

    def check_that_no_share_is_unlimited(self) -> None:
        for uid in self.uids:
            if list(self.paths.cdi_dir.glob(f"*claim_{uid}.json")):
                read_limits(self.paths.shares_dir / f"{uid}-0")

    def unprepare_both(self) -> frozenset[ClaimUID]:
        return self.start()[2].unprepare_together(self.uids)


@pytest.fixture
def node(tmp_path: Path) -> TwoClaims:
    return TwoClaims(tmp_path)


def test_claims_that_are_undone_together_leave_nothing(node: TwoClaims) -> None:
    node.prepare_both()

    assert node.unprepare_both() == frozenset(node.uids)
    assert node.files() == []
    assert node.unprepare_both() == frozenset(node.uids)  # claims that are not there are undone already


def test_after_a_crash_claims_are_undone_or_prepared_as_before(node: TwoClaims) -> None:
    expected = node.prepare_both()

    for number in crashes(node.unprepare_both, least=15):
        node.check_that_no_share_is_unlimited()
        if number % 2:
            node.unprepare_both()
            assert node.files() == [], number
        assert node.prepare_both() == expected, number


def test_the_disk_is_waited_for_once(node: TwoClaims, monkeypatch: pytest.MonkeyPatch) -> None:
    node.prepare_both()
    _, _, unpreparer = node.start()
    waits: list[int] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        waits.append(descriptor)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)

    unpreparer.unprepare_together(node.uids)

    assert len(waits) == 1


def test_a_disk_that_does_not_say_that_it_is_done_is_asked_again_by_each_claim_alone(
    node: TwoClaims, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.prepare_both()
    _, _, unpreparer = node.start()
    asked: list[int] = []

    def refuse(descriptor: int) -> None:
        asked.append(descriptor)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        assert unpreparer.unprepare_together(node.uids) == frozenset()
        for uid in node.uids:  # nothing is left of them, and yet: a crash of the machine may bring the records back
            with pytest.raises(OSError, match="Input/output error"):
                unpreparer.unprepare(uid)
    assert len(asked) == 3

    for uid in node.uids:
        unpreparer.unprepare(uid)
    assert node.files() == []


def test_a_share_that_cannot_be_removed_costs_no_other_claim(node: TwoClaims) -> None:
    node.prepare_both()
    state, _, unpreparer = node.start()
    remove = state.shares.remove

    def refuse(share: str) -> bool:
        if share.startswith(node.claim.uid):
            raise OSError(5, "Input/output error")
        return remove(share)

    state.shares.remove = refuse  # type: ignore[method-assign]

    assert unpreparer.unprepare_together(node.uids) == {node.other.uid}
    assert set(state.ledger.prepared()) == {node.claim.uid}
    with pytest.raises(OSError, match="Input/output error"):
        unpreparer.unprepare(node.claim.uid)


def test_a_claim_that_another_call_is_at_is_left_to_be_undone_alone(node: TwoClaims) -> None:
    node.prepare_both()
    state, _, unpreparer = node.start()

    with state.locks.hold(node.claim.uid):
        assert unpreparer.unprepare_together(node.uids) == {node.other.uid}

    unpreparer.unprepare(node.claim.uid)
    assert node.files() == []


def test_a_call_with_many_claims_takes_no_thread_for_each(served: FakeKubelet, client: FakeKube, root: Path) -> None:
    claims = [add_claim(client, f"c{number}", result(gpu(0), "100Mi", "1")) for number in range(40)]
    served.prepare(*claims)

    assert served.unprepare(*claims) == {claim.uid: "" for claim in claims}

    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("claims_")]
    assert list((root / "state/shares").iterdir()) == []


def test_what_nobody_expected_of_all_is_tried_for_each_alone(
    served: FakeKubelet, client: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = [add_claim(client, name, result(gpu(0), "1Gi")) for name in ("first", "second")]
    served.prepare(*claims)
    usual: Callable[..., object] = NodeState.remove_all

    def refuse(state: NodeState, uids: list[ClaimUID]) -> object:
        if len(uids) > 1:
            raise RecursionError("too deep")
        return usual(state, uids)

    monkeypatch.setattr(NodeState, "remove_all", refuse)

    assert served.unprepare(*claims) == {claim.uid: "" for claim in claims}


def test_a_claim_that_is_being_prepared_is_undone_behind_that(
    served: FakeKubelet, client: FakeKube, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = add_claim(client, "train", result(gpu(0)))
    asked, goes_on, left = threading.Event(), threading.Event(), threading.Event()
    get, for_each = client.get, DRAService._for_each

    def slow(*where: object) -> object:
        asked.set()
        assert goes_on.wait(60)
        return get(*where)  # type: ignore[arg-type]

    def note(service: DRAService, claims: object, *others: object) -> object:
        if claims and asked.is_set():
            left.set()  # by the round of those that are undone at once
        return for_each(service, claims, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(client, "get", slow)
    monkeypatch.setattr(DRAService, "_for_each", note)
    preparing = threading.Thread(target=served.prepare, args=(claim,))
    undone: list[object] = []
    undoing = threading.Thread(target=lambda: undone.append(served.unprepare(claim)))
    preparing.start()
    assert asked.wait(60)
    undoing.start()
    assert left.wait(60)
    goes_on.set()
    preparing.join()
    undoing.join()

    assert undone == [{claim.uid: ""}]
    assert list((root / "state/shares").iterdir()) == []
