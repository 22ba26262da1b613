"""kill -9 before every change that prepare and unprepare make to the file system, and what is right after a restart."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from api.kubefake import FakeKube
from api.names import ClaimUID
from kubeletplugin.claimreading import ClaimReader, ClaimReference
from kubeletplugin.devices import DeviceTable
from kubeletplugin.ledgers import Ledger
from kubeletplugin.libraries import InstalledLibrary
from kubeletplugin.nodestates import NodePaths, NodeState
from kubeletplugin.planning import NodeView
from kubeletplugin.preparing import Preparer
from kubeletplugin.restoring import restore
from kubeletplugin.unpreparing import Unpreparer
from libvgpu.shares import read_books, read_limits
from tests.unit.kubeletplugin.builders import CLAIMS, GIB, NODE, add_claim, gpu, result

A = gpu(0)
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod"}
_MOST_CHANGES = 60


class Node:
    """A node's files, and an agent that is started anew each time."""

    def __init__(self, root: Path) -> None:
        self.client = FakeKube()
        ref = add_claim(self.client, "train", result(A, "2Gi", request="a"), result(A, "3Gi", request="b"))
        self.claim = ClaimReference(ref.namespace, ref.name, ClaimUID(ref.uid))
        self.paths = NodePaths(root / "state", root / "cdi")

    def start(self) -> tuple[NodeState, Preparer, Unpreparer]:
        library = InstalledLibrary(Path("/lib/libvgpu-1.so"), Path("/lib/libvgpu-1.so.preload"))
        state = NodeState(self.paths, "vgpu.dra-driver.io", NODE, library)
        restore(state)
        view = NodeView("vgpu.dra-driver.io", NODE, DeviceTable([A]))
        return state, Preparer(ClaimReader(self.client), state, lambda: view), Unpreparer(state)

    def prepare(self) -> list[list[str]]:
        state, preparer, _ = self.start()
        return [state.cdi_ids(device) for device in preparer.prepare(self.claim).devices]

    def reallocate(self, *results: dict[str, object]) -> None:
        """Give the claim another allocation, as a scheduler does to one that nobody uses."""
        stored = self.client.get(CLAIMS, "train", "default")
        stored["status"]["allocation"]["devices"]["results"] = list(results)
        self.client.replace(CLAIMS, stored, "status")

    def unprepare(self) -> None:
        self.start()[2].unprepare(self.claim.uid)

    def limits(self) -> list[object]:
        return [read_limits(self.paths.shares_dir / f"{self.claim.uid}-{index}") for index in (0, 1)]

    def files(self) -> list[Path]:
        return [
            path
            for folder in (self.paths.checkpoint_dir, self.paths.shares_dir, self.paths.cdi_dir)
            for path in folder.rglob("*")
        ]

    def check_that_no_share_is_unlimited(self) -> None:
        """A container can start as soon as there is a CDI spec: its limits must be whole by then."""
        if any(self.paths.cdi_dir.glob("*claim*.json")):
            self.limits()


def killed_before_change(number: int, action: Callable[[], object]) -> bool:
    """Run an action in a child that is killed before its number-th change; False: it had fewer, and ended."""
    child = os.fork()
    if child == 0:
        _die_before_change(number)
        try:
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _die_before_change(number: int) -> None:
    left = [number]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
        )
        if event in _CHANGES or writes:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    sys.addaudithook(hook)


def crashes(action: Callable[[], object]) -> Iterator[int]:
    """Yield after each crash of the action, one change later each time, until it survives."""
    for number in range(_MOST_CHANGES):
        if not killed_before_change(number, action):
            assert number > 3  # or the hook sees nothing
            return
        yield number
    raise AssertionError(f"more than {_MOST_CHANGES} changes")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_after_a_crash_in_prepare_the_claim_gets_what_it_would_have_got(node: Node) -> None:
    ids, limits = node.prepare(), node.limits()
    node.unprepare()

    for number in crashes(node.prepare):
        node.check_that_no_share_is_unlimited()
        assert node.prepare() == ids, number
        assert node.limits() == limits, number
        node.unprepare()
        assert node.files() == [], number


def test_after_a_crash_in_prepare_unprepare_leaves_nothing(node: Node) -> None:
    for number in crashes(node.prepare):
        node.unprepare()
        assert node.files() == [], number


def test_after_a_crash_in_unprepare_the_next_one_leaves_nothing(node: Node) -> None:
    node.prepare()
    for number in crashes(node.unprepare):
        node.check_that_no_share_is_unlimited()
        node.unprepare()
        assert node.files() == [], number
        node.prepare()


def test_after_a_crash_in_unprepare_the_claim_can_be_prepared_again(node: Node) -> None:
    ids = node.prepare()

    for number in crashes(node.unprepare):
        assert node.prepare() == ids, number


def test_after_a_crash_in_prepare_the_device_is_still_counted_right(node: Node) -> None:
    for _ in crashes(node.prepare):
        state = node.start()[0]
        assert set(state.ledger.prepared()) <= {node.claim.uid}
        node.unprepare()
        assert node.start()[0].ledger.prepared() == {}


def test_a_lost_record_is_rebuilt_from_the_shares_and_completed_by_the_next_prepare(node: Node) -> None:
    ids, limits = node.prepare(), node.limits()
    for path in node.paths.checkpoint_dir.iterdir():
        path.unlink()

    (rebuilt,) = node.start()[0].ledger.prepared().values()

    assert list(rebuilt.shares()) == limits
    assert node.prepare() == ids
    (completed,) = node.start()[0].ledger.prepared().values()
    assert completed.is_complete


def test_a_record_truncated_at_any_byte_costs_nothing(node: Node) -> None:
    ids, limits = node.prepare(), node.limits()
    (record,) = node.paths.checkpoint_dir.iterdir()
    content = record.read_bytes()

    for length in range(0, len(content), 37):
        record.write_bytes(content[:length])
        assert node.prepare() == ids
        assert node.limits() == limits
    node.unprepare()
    assert [path.name for path in node.files()] == [f"{node.claim.uid}.json.damaged"]


def test_limits_that_a_crash_of_the_machine_zeroed_are_written_again(node: Node) -> None:
    node.prepare()
    limits = node.limits()
    path = node.paths.shares_dir / f"{node.claim.uid}-0" / "limits"
    for damaged in (b"", b"\0" * 4096, b"\0" * 100):
        path.write_bytes(damaged)

        node.prepare()

        assert node.limits() == limits


def test_books_that_a_crash_of_the_machine_zeroed_are_written_again(node: Node) -> None:
    node.prepare()
    share = node.paths.shares_dir / f"{node.claim.uid}-0"
    for damaged in (b"", b"\0" * 4096, b"\0" * (share / "books").stat().st_size):
        (share / "books").write_bytes(damaged)

        node.prepare()

        assert read_books(share).used_bytes == 0


def test_a_claim_that_another_instance_prepares_while_this_one_starts_is_left_alone(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A rolling update: the old agent serves until the new one does.
    _, preparer, _ = node.start()
    load = Ledger.load

    def load_before_the_other_prepares(ledger: Ledger) -> None:
        load(ledger)
        preparer.prepare(node.claim)

    monkeypatch.setattr(Ledger, "load", load_before_the_other_prepares)
    state, _, _ = node.start()

    assert len(list(node.paths.cdi_dir.iterdir())) == 1
    state.ledger.load()
    assert [claim.is_complete for claim in state.ledger.prepared().values()] == [True]


def test_a_spec_of_a_claim_that_nobody_knows_is_removed_at_start(node: Node) -> None:
    node.start()
    spec = node.paths.cdi_dir / "vgpu.dra-driver.io-claim_unknown.json"
    spec.write_text("{}")

    node.start()

    assert not spec.exists()


def test_a_share_gets_its_former_limits_back_when_another_one_of_the_claim_cannot_be_changed(node: Node) -> None:
    node.prepare()
    limits = node.limits()
    damaged = node.paths.shares_dir / f"{node.claim.uid}-1" / "limits"
    damaged.unlink()
    damaged.mkdir()
    node.reallocate(result(A, "1Gi", request="a"), result(A, "1Gi", request="b"))

    with pytest.raises(OSError, match="Is a directory"):
        node.prepare()

    assert read_limits(damaged.parent.with_name(f"{node.claim.uid}-0")) == limits[0]
    damaged.rmdir()
    node.prepare()
    assert [limit.memory_bytes for limit in node.limits()] == [GIB, GIB]  # type: ignore[attr-defined]
