"""kill -9 before every change that prepare and unprepare make to the file system, and what is right after a restart."""

from pathlib import Path

import pytest

from kubeletplugin.state.ledgers import Ledger
from libvgpu.shares import read_books, read_limits
from tests.unit.kubeletplugin.barenode import A, BareNode
from tests.unit.kubeletplugin.builders import GIB, result
from tests.unit.kubeletplugin.faults import crashes


@pytest.fixture
def node(tmp_path: Path) -> BareNode:
    return BareNode(tmp_path)


def test_after_a_crash_in_prepare_the_claim_gets_what_it_would_have_got(node: BareNode) -> None:
    ids, limits = node.prepare(), node.limits()
    node.unprepare()

    for number in crashes(node.prepare):
        node.check_that_no_share_is_unlimited()
        assert node.prepare() == ids, number
        assert node.limits() == limits, number
        node.unprepare()
        assert node.files() == [], number


def test_after_a_crash_in_prepare_unprepare_leaves_nothing(node: BareNode) -> None:
    for number in crashes(node.prepare):
        node.unprepare()
        assert node.files() == [], number


def test_after_a_crash_in_unprepare_the_next_one_leaves_nothing(node: BareNode) -> None:
    node.prepare()
    for number in crashes(node.unprepare):
        node.check_that_no_share_is_unlimited()
        node.unprepare()
        assert node.files() == [], number
        node.prepare()


def test_after_a_crash_in_unprepare_the_claim_can_be_prepared_again(node: BareNode) -> None:
    ids = node.prepare()

    for number in crashes(node.unprepare):
        assert node.prepare() == ids, number


def test_after_a_crash_in_prepare_the_device_is_still_counted_right(node: BareNode) -> None:
    for _ in crashes(node.prepare):
        state = node.start()[0]
        assert set(state.ledger.prepared()) <= {node.claim.uid}
        node.unprepare()
        assert node.start()[0].ledger.prepared() == {}


def test_a_lost_record_is_rebuilt_from_the_shares_and_completed_by_the_next_prepare(node: BareNode) -> None:
    ids, limits = node.prepare(), node.limits()
    for path in node.paths.checkpoint_dir.iterdir():
        path.unlink()

    (rebuilt,) = node.start()[0].ledger.prepared().values()

    assert list(rebuilt.shares()) == limits
    assert node.prepare() == ids
    (completed,) = node.start()[0].ledger.prepared().values()
    assert completed.is_complete


def test_a_record_truncated_at_any_byte_costs_nothing(node: BareNode) -> None:
    ids, limits = node.prepare(), node.limits()
    (record,) = node.paths.checkpoint_dir.iterdir()
    content = record.read_bytes()

    for length in range(0, len(content), 37):
        record.write_bytes(content[:length])
        assert node.prepare() == ids
        assert node.limits() == limits
    node.unprepare()
    assert [path.name for path in node.files()] == [f"{node.claim.uid}.json.damaged"]


def test_limits_that_a_crash_of_the_machine_zeroed_are_written_again(node: BareNode) -> None:
    node.prepare()
    limits = node.limits()
    path = node.paths.shares_dir / f"{node.claim.uid}-0" / "limits"
    for damaged in (b"", b"\0" * 4096, b"\0" * 100):
        path.write_bytes(damaged)

        node.prepare()

        assert node.limits() == limits


def test_books_that_a_crash_of_the_machine_zeroed_are_written_again(node: BareNode) -> None:
    node.prepare()
    share = node.paths.shares_dir / f"{node.claim.uid}-0"
    for damaged in (b"", b"\0" * 4096, b"\0" * (share / "books").stat().st_size):
        (share / "books").write_bytes(damaged)

        node.prepare()

        assert read_books(share).used_bytes == 0


def test_a_claim_that_another_instance_prepares_while_this_one_starts_is_left_alone(
    node: BareNode, monkeypatch: pytest.MonkeyPatch
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


def test_a_spec_of_a_claim_that_nobody_knows_is_removed_at_start(node: BareNode) -> None:
    node.start()
    spec = node.paths.cdi_dir / "vgpu.dra-driver.io-claim_unknown.json"
    spec.write_text("{}")

    node.start()

    assert not spec.exists()


def test_a_share_gets_its_former_limits_back_when_another_one_of_the_claim_cannot_be_changed(node: BareNode) -> None:
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
    assert [limit.memory_bytes for limit in node.limits()] == [GIB, GIB]
