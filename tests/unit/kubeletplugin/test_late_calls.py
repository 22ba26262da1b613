"""Calls that the kubelet has given up, and claims that nobody has reserved any more: nothing is left of them."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from api.errors import ClaimError
from api.kubefake import FakeKube
from kubeletplugin.claims.claimreading import ClaimReader, ClaimReference
from kubeletplugin.claims.preparing import Hooks, LateCallError, Preparer
from kubeletplugin.claims.unpreparing import Unpreparer
from tests.unit.kubeletplugin.barenode import A, BareNode
from tests.unit.kubeletplugin.builders import CLAIMS, add_claim, hold_gets, result
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet


class Node(BareNode):
    """A node whose agent knows what it has undone."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        state, _, _ = self.start()
        view = self.view()
        self.unpreparer = Unpreparer(state)
        hooks = Hooks(is_undone_since=self.unpreparer.is_undone_since)
        self.preparer = Preparer(ClaimReader(self.client), state, lambda: view, hooks)

    def call(self) -> ClaimReference:
        """Return the claim as a call that comes now names it."""
        return replace(self.claim, asked_s=time.monotonic())


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
def test_a_call_that_came_before_the_claim_was_undone_prepares_nothing(node: Node, together: bool) -> None:
    late = node.call()
    node.preparer.prepare(late)
    if together:
        node.unpreparer.unprepare_together([node.claim.uid])
    else:
        node.unpreparer.unprepare(node.claim.uid)

    with pytest.raises(LateCallError) as caught:
        node.preparer.prepare(late)

    assert str(caught.value) == "ResourceClaim default/train: the kubelet has undone it since this call came"
    assert node.files() == []


def test_a_claim_that_was_undone_is_prepared_by_the_next_call_whoever_comes_late_beside_it(node: Node) -> None:
    late = node.call()
    node.unpreparer.unprepare(node.claim.uid)

    assert node.preparer.prepare_together([late]) == {}  # each of the calls in a round goes on alone
    node.preparer.prepare(node.call())

    assert len(node.limits()) == 2


def test_a_claim_that_is_reserved_for_nobody_is_not_prepared(node: Node) -> None:
    stored = node.client.get(CLAIMS, "train", "default")
    stored["status"]["reservedFor"] = []
    node.client.replace(CLAIMS, stored, "status")

    with pytest.raises(ClaimError) as caught:
        node.preparer.prepare(node.call())

    assert str(caught.value) == (
        "ResourceClaim default/train: found it reserved for nobody, expected a pod: it has ended since"
    )
    assert node.files() == []


def test_a_call_that_is_cancelled_at_its_work_leaves_nothing_once_the_claim_is_undone(
    served: FakeKubelet, client: FakeKube, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = add_claim(client, "train", result(A))
    asked, goes_on = hold_gets(client, monkeypatch)
    call = served.begin_prepare(claim)
    assert asked.wait(60)
    call.cancel()
    answers: list[dict[str, str]] = []
    undoing = threading.Thread(target=lambda: answers.append(served.unprepare(claim)))
    undoing.start()
    goes_on.set()
    undoing.join()

    assert answers == [{claim.uid: ""}]
    assert [path for path in root.rglob("*") if claim.uid in path.name] == []
