"""What belongs to nobody goes, and nothing else."""

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from api.errors import CapacityError, KubeError, NotFoundError
from api.names import ClaimUID
from kubeletplugin.claims.claimreading import ClaimReader, ClaimReference
from kubeletplugin.claims.collecting import Collector
from kubeletplugin.claims.preparing import Hooks
from kubeletplugin.state.libraries import install_library, remove_old_libraries
from kubeletplugin.state.nodestates import NodeState
from libvgpu.layout import layout
from tests.unit.kubeletplugin.barenode import A, BareNode
from tests.unit.kubeletplugin.builders import CLAIMS, add_claim, result

LONG_S = 700.0


class CollectedNode(BareNode):
    """A node with one prepared claim, and a collector with a clock of its own."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.now_s = 0.0
        self.another: list[ClaimReference] = []
        self.state, self.preparer, self.unpreparer = self.start()
        self.preparer.prepare(self.claim)
        self.collector = self.new_collector(self.state)

    def hooks(self, state: NodeState) -> Hooks:
        return Hooks(make_room=self.new_collector(state).make_room)

    def prepare_another(self) -> list[str]:
        """Prepare a claim that has room only where the first one has none; returns the claims of the node."""
        if not self.another:
            ref = add_claim(self.client, "another", result(A, "8Gi"))
            self.another.append(ClaimReference(ref.namespace, ref.name, ClaimUID(ref.uid)))
        self.preparer.prepare(self.another[0])
        return sorted({str(claim) for claim in self.state.ledger.prepared().values()})

    def new_collector(self, state: NodeState) -> Collector:
        return Collector(state, ClaimReader(self.client), "vgpu.dra-driver.io", lambda: self.now_s)

    def collect(self, after_s: float = 0.0) -> None:
        self.now_s += after_s
        self.collector.run_once()

    @contextlib.contextmanager
    def process(self) -> Iterator[None]:
        """Use a share as a process does that lives."""
        with (self.paths.shares_dir / f"{self.claim.uid}-1" / "books").open("r+b") as books:
            slot = struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, layout().constants.VGPU_SLOT_LOCKS + 7, 1, 0)
            fcntl.fcntl(books, fcntl.F_OFD_SETLK, slot)
            yield

    def delete_claim(self) -> None:
        self.client.delete(CLAIMS, {"metadata": {"namespace": "default", "name": "train"}})

    def is_prepared(self) -> bool:
        return self.claim.uid in self.state.ledger.prepared() and bool(self.files())


@pytest.fixture
def node(tmp_path: Path) -> CollectedNode:
    return CollectedNode(tmp_path)


def test_a_claim_that_is_gone_and_was_never_undone_is_removed_after_some_time(node: CollectedNode) -> None:
    node.delete_claim()

    node.collect()
    node.collect(after_s=300)
    assert node.is_prepared()
    node.collect(after_s=LONG_S)

    assert node.files() == []
    assert node.state.ledger.prepared() == {}


def test_a_claim_that_nobody_has_reserved_any_more_is_removed_after_some_time_and_counted_until_then(
    node: CollectedNode,
) -> None:
    stored = node.client.get(CLAIMS, "train", "default")
    stored["status"]["reservedFor"] = []
    node.client.replace(CLAIMS, stored, "status")

    counted = []
    for after_s in (0.0, 300.0, LONG_S):
        node.collect(after_s)
        counted.append((node.collector.leftovers(), node.is_prepared()))

    assert counted == [(1, True), (1, True), (0, False)]


def test_a_claim_that_was_given_the_room_of_one_that_is_gone_has_it_at_once(node: CollectedNode) -> None:
    node.delete_claim()

    assert node.prepare_another() == ["ResourceClaim default/another"]


def test_the_room_of_a_claim_that_lives_or_that_nobody_can_be_asked_about_stays_its_own(node: CollectedNode) -> None:
    with pytest.raises(CapacityError, match="found 8Gi for ResourceClaim default/another and 5Gi for ResourceClaim"):
        node.prepare_another()

    node.delete_claim()
    get = node.client.get
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node.client, "get", lambda *where: get(*where) if where[1] == "another" else fail())
        with pytest.raises(CapacityError):
            node.prepare_another()

    assert node.is_prepared()


def test_the_room_of_a_claim_that_is_gone_stays_its_own_as_long_as_a_process_has_it(node: CollectedNode) -> None:
    node.delete_claim()
    with node.process():
        with pytest.raises(CapacityError):
            node.prepare_another()
        assert node.is_prepared()

    assert node.prepare_another() == ["ResourceClaim default/another"]


def test_a_whole_gpu_of_a_claim_that_is_gone_is_given_on_after_some_time_since_its_use_cannot_be_seen(
    node: CollectedNode,
) -> None:
    node.unpreparer.unprepare(node.claim.uid)
    node.reallocate(result(A, "10Gi", "100", request="a"))
    assert node.preparer.prepare(node.claim).needs_no_library
    node.delete_claim()
    for after_s in (0, 300):
        node.now_s += after_s
        with pytest.raises(CapacityError):
            node.prepare_another()

    node.now_s += LONG_S

    assert node.prepare_another() == ["ResourceClaim default/another"]


def fail() -> NoReturn:
    raise KubeError("no answer from the API server")


def test_a_claim_that_was_given_other_devices_elsewhere_is_removed(node: CollectedNode) -> None:
    node.reallocate(result(A, pool="another-node"))

    node.collect()
    node.collect(after_s=LONG_S)

    assert node.files() == []


def test_a_claim_that_is_there_stays(node: CollectedNode) -> None:
    for _ in range(5):
        node.collect(after_s=4000)

    assert node.is_prepared()


def test_a_claim_that_comes_back_in_time_stays(node: CollectedNode) -> None:
    stored = node.client.get(CLAIMS, "train", "default")["status"]["allocation"]["devices"]["results"]
    node.reallocate(result(A, pool="another-node"))
    node.collect()
    node.reallocate(*stored)

    node.collect(after_s=LONG_S)
    node.reallocate(result(A, pool="another-node"))
    node.collect(after_s=100)

    assert node.is_prepared()


def test_nothing_is_removed_as_long_as_the_api_server_is_away(node: CollectedNode) -> None:
    node.client.set_down(True)

    for _ in range(5):
        node.collect(after_s=4000)

    assert node.is_prepared()


def test_a_claim_stays_while_an_api_server_without_its_version_answers(
    node: CollectedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*_arguments: object) -> Any:
        raise NotFoundError("the server could not find the requested resource")

    monkeypatch.setattr(node.client, "get", answer)

    for _ in range(3):
        node.collect(after_s=4000)

    assert node.is_prepared()


def test_a_claim_stays_as_long_as_a_process_has_its_share(node: CollectedNode) -> None:
    node.delete_claim()
    with node.process():
        for _ in range(3):
            node.collect(after_s=LONG_S)
        assert node.is_prepared()

    node.collect(after_s=1)
    node.collect(after_s=LONG_S)

    assert node.files() == []


def test_a_healthy_claim_is_asked_about_once_an_hour(node: CollectedNode) -> None:
    node.collect()
    node.client.requests.clear()

    for _ in range(6):
        node.collect(after_s=601)

    assert [verb for verb, path in node.client.requests if path.endswith("/train")] == ["get"]


def test_a_lost_record_is_rebuilt_with_its_name_so_that_the_claim_can_be_asked_about(node: CollectedNode) -> None:
    for path in node.paths.checkpoint_dir.glob("*.json"):
        path.unlink()
    node.state, _, _ = node.start()
    node.collector = node.new_collector(node.state)
    assert [claim.is_complete for claim in node.state.ledger.prepared().values()] == [True]
    node.delete_claim()

    node.collect()
    node.collect(after_s=LONG_S)

    assert node.files() == []


def test_a_claim_of_which_not_even_the_name_is_left_stays_for_the_kubelet_to_undo(node: CollectedNode) -> None:
    for path in [*node.paths.checkpoint_dir.glob("*.json"), *node.paths.shares_dir.glob("*/claim.json")]:
        path.unlink()
    node.state, _, node.unpreparer = node.start()
    node.collector = node.new_collector(node.state)
    (rebuilt,) = node.state.ledger.prepared().values()
    assert (rebuilt.is_complete, list(rebuilt.shares())) == (False, node.limits())
    node.delete_claim()

    for _ in range(3):
        node.collect(after_s=LONG_S)
    assert node.is_prepared()
    node.unpreparer.unprepare(node.claim.uid)

    assert node.files() == []


def test_a_share_that_its_claim_no_longer_has_is_removed(node: CollectedNode) -> None:
    stray = node.paths.shares_dir / f"{node.claim.uid}-7"
    stray.mkdir()
    (stray / "limits").touch()

    node.collect()

    assert not stray.exists()
    assert len(node.limits()) == 2


def _age(path: Path, seconds: float) -> None:
    changed_s = path.stat().st_mtime - seconds
    os.utime(path, (changed_s, changed_s))


def test_what_writes_left_that_were_never_finished_goes_after_some_time(node: CollectedNode) -> None:
    left = [
        node.paths.checkpoint_dir / ".someone.json.tmp",
        node.paths.cdi_dir / ".vgpu.dra-driver.io-claim_someone.json.tmp",
    ]
    foreign = node.paths.cdi_dir / ".other-driver.json.tmp"
    young = node.paths.checkpoint_dir / ".young.json.tmp"
    for path in (*left, foreign, young):
        path.touch()
    for path in (*left, foreign):
        _age(path, 4000)

    node.collect()
    node.collect(after_s=LONG_S)

    assert [path.exists() for path in (*left, foreign, young)] == [False, False, True, True]


def test_a_damaged_record_that_was_put_aside_is_kept_for_a_week(node: CollectedNode) -> None:
    old, new = (node.paths.checkpoint_dir / f"{name}.json.damaged" for name in ("old", "new"))
    old.touch()
    new.touch()
    _age(old, 8 * 24 * 3600)
    _age(new, 6 * 24 * 3600)

    node.collect()
    node.collect(after_s=LONG_S)

    assert (old.exists(), new.exists()) == (False, True)


def test_only_builds_of_the_library_that_nobody_can_need_are_removed(tmp_path: Path) -> None:
    def install(content: bytes) -> Path:
        (tmp_path / "libvgpu.so").write_bytes(content)
        path = install_library(tmp_path / "libvgpu.so", tmp_path / "lib").path
        _age(path, 2 * 24 * 3600)
        return path

    unused, named = install(b"unused"), install(b"named by a CDI spec")
    young = install(b"young")
    _age(young, -2 * 24 * 3600)
    (tmp_path / "libvgpu.so").write_bytes(b"of the agent beside us")
    beside = install_library(tmp_path / "libvgpu.so", tmp_path / "lib")
    _age(beside.path, 2 * 24 * 3600)
    (tmp_path / "libvgpu.so").write_bytes(b"ours")
    current = install_library(tmp_path / "libvgpu.so", tmp_path / "lib")
    _age(current.path, 2 * 24 * 3600)

    assert remove_old_libraries(current, {named}) == [unused]

    left = {path.name for path in (tmp_path / "lib").iterdir()}
    assert left == {
        f"{path.name}{suffix}" for path in (named, young, beside.path, current.path) for suffix in ("", ".preload")
    }


def test_a_library_is_installed_though_a_tenant_has_locked_it(tmp_path: Path) -> None:
    (tmp_path / "libvgpu.so").write_bytes(b"one")
    path = install_library(tmp_path / "libvgpu.so", tmp_path / "lib").path
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        assert install_library(tmp_path / "libvgpu.so", tmp_path / "lib").path == path
