"""Pods that come to a claim while it is prepared: the kubelet says nothing of them, and the agent knows them."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.claims import ClaimView
from api.names import ClaimUID
from kubeletplugin.claims.claimfollowing import ClaimFollower
from kubeletplugin.claims.claimreading import ClaimReader
from kubeletplugin.state.ledgers import Ledger
from kubeletplugin.state.nodestates import NodeState
from kubeletplugin.state.preparedclaims import PreparedClaim
from tests.unit.kubeletplugin.barenode import BareNode
from tests.unit.kubeletplugin.builders import CLAIMS


class Node(BareNode):
    """A node with a prepared claim, and who follows it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reserve("pod-1")
        self.state: NodeState
        self.state, self.preparer, _ = self.start()
        self.preparer.prepare(self.claim)
        self.follower = ClaimFollower(
            ClaimReader(self.client), self.state.ledger, self.paths.shares_dir, lambda *_: None
        )

    def reserve(self, *pods: str) -> None:
        """Let the claim be reserved for pods, and for something else."""
        stored = self.client.get(CLAIMS, "train", "default")
        consumers = [{"resource": "pods", "name": uid, "uid": uid} for uid in pods]
        stored["status"]["reservedFor"] = [*consumers, {"resource": "jobs", "name": "j", "uid": "job-1"}]
        self.client.replace(CLAIMS, stored, "status")

    def recorded(self) -> PreparedClaim | None:
        """Return the claim as the next agent reads it."""
        ledger = Ledger(self.paths.checkpoint_dir, lambda _uid: None)
        ledger.load()
        return ledger.get(self.claim.uid)

    def follow(self) -> None:
        claim = self.state.ledger.get(self.claim.uid)
        assert claim is not None
        self.follower.follow(claim)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def running(node: Node) -> Iterator[threading.Event]:
    """The follower's thread, which by itself would wait for an hour."""
    stopping = threading.Event()
    thread = threading.Thread(target=node.follower.run_until, args=(stopping, 3600.0))
    thread.start()
    yield stopping
    stopping.set()
    node.follower.stop()
    thread.join()


def test_a_pod_that_comes_to_a_prepared_claim_is_recorded_and_one_that_went_is_not(node: Node) -> None:
    before = node.limits()
    node.reserve("pod-2", "pod-3")

    node.follow()

    recorded = node.recorded()
    assert recorded is not None
    assert recorded.pods == ("pod-2", "pod-3")
    assert node.limits() == before
    assert node.preparer.prepare(node.claim) == recorded


def test_a_claim_that_is_undone_while_it_is_asked_for_stays_undone(node: Node) -> None:
    claim = node.state.ledger.get(node.claim.uid)
    assert claim is not None
    node.reserve("pod-2")
    node.unprepare()

    node.follower.follow(claim)

    assert node.recorded() is None
    assert node.files() == []


def test_fields_of_another_release_are_kept_when_pods_come(node: Node) -> None:
    path = node.paths.checkpoint_dir / f"{node.claim.uid}.json"
    path.write_text(path.read_text().replace('"version"', '"tier": "gold", "version"'))
    node.reserve("pod-2")

    node.state, _, _ = node.start()
    node.follower = ClaimFollower(ClaimReader(node.client), node.state.ledger, node.paths.shares_dir, lambda *_: None)
    node.follow()

    recorded = node.recorded()
    assert recorded is not None
    assert (recorded.pods, recorded.extra) == (("pod-2",), {"tier": "gold"})


def test_pods_are_asked_for_at_once_where_somebody_uses_a_gpu_without_a_share(
    node: Node, running: threading.Event
) -> None:
    node.reserve("pod-1", "pod-2")

    node.follower.look_now()

    while "pod-2" not in node.state.ledger.prepared()[ClaimUID(node.claim.uid)].pods:
        assert not running.wait(0.01)


def test_a_claim_is_read_when_its_pods_change_as_the_controller_tells_and_not_otherwise(node: Node) -> None:
    path = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims/train"

    def read_for_news() -> int:
        """Tell what the controller tells; return how often the claim was read for it."""
        before = node.client.requests.count(("get", path))
        digest = ClaimView.from_object(node.client.get(CLAIMS, "train", "default")).digest()
        node.follower.take_news({ClaimUID(node.claim.uid): digest} if digest else {})
        node.follower.follow_news()
        return node.client.requests.count(("get", path)) - before - 1

    assert [read_for_news() for _ in range(3)] == [1, 0, 0]
    node.reserve("pod-1", "pod-2")
    assert [read_for_news() for _ in range(3)] == [1, 0, 0]
    recorded = node.recorded()
    assert recorded is not None
    assert recorded.pods == ("pod-1", "pod-2")


def test_a_disk_that_takes_no_record_keeps_nothing_else_from_being_followed(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    node.reserve("pod-2")
    with monkeypatch.context() as patched:
        patched.setattr("kubeletplugin.state.recordfiles.write_durably", refuse)
        with caplog.at_level(logging.WARNING):
            node.follow()
    assert [record.getMessage() for record in caplog.records] == ["pods of a claim not noted"]

    node.follow()

    recorded = node.recorded()
    assert recorded is not None
    assert recorded.pods == ("pod-2",)
