"""A disk that is full or fails, at each thing that it is asked for in turn: what is right then, and when it is well."""

import errno
from pathlib import Path

import pytest

from api.errors import VGPUError
from kubeletplugin.claims.preparing import Preparer
from kubeletplugin.claims.unpreparing import Unpreparer
from kubeletplugin.state.nodestates import NodeState
from tests.unit.kubeletplugin.barenode import A, BareNode
from tests.unit.kubeletplugin.builders import result
from tests.unit.kubeletplugin.faults import Disk, in_child

_MOST = 60


@pytest.fixture
def node(tmp_path: Path) -> BareNode:
    return BareNode(tmp_path)


def _fails(node: BareNode, preparer: Preparer) -> bool:
    try:
        preparer.prepare(node.claim)
    except (OSError, VGPUError):
        return True
    return False


@pytest.mark.parametrize(
    ("lasting", "error"), [(False, errno.ENOSPC), (True, errno.EDQUOT)], ids=["for-a-moment", "for-long"]
)
def test_a_claim_that_cannot_be_prepared_leaves_nothing_and_is_prepared_when_there_is_space(
    node: BareNode, lasting: bool, error: int
) -> None:
    ids, limits = node.prepare(), node.limits()
    node.unprepare()

    def each_in_turn() -> None:
        state, preparer, unpreparer = node.start()
        disk = Disk(error)
        for number in range(_MOST):
            with disk.full_from(number, lasting=lasting):
                failed = _fails(node, preparer)
            if not disk.refused:
                assert number > 5, number  # or the disk refuses nothing
                return
            assert not failed or node.files() == [], number
            assert [state.cdi_ids(device) for device in preparer.prepare(node.claim).devices] == ids, number
            assert node.limits() == limits, number
            unpreparer.unprepare(node.claim.uid)
        raise AssertionError(f"more than {_MOST} changes")

    in_child(each_in_turn)


@pytest.mark.parametrize(
    ("lasting", "error"), [(False, errno.EIO), (True, errno.EROFS)], ids=["for-a-moment", "for-long"]
)
def test_a_disk_that_fails_at_any_change_costs_no_claim_once_it_is_well(
    node: BareNode, lasting: bool, error: int
) -> None:
    ids, limits = node.prepare(), node.limits()
    node.unprepare()

    def each_in_turn() -> None:
        state, preparer, unpreparer = node.start()
        disk = Disk(error)
        for number in range(_MOST):
            with disk.full_from(number, lasting=lasting):
                failed = _fails(node, preparer)
            refused = disk.refused
            assert failed or not refused or not lasting, number
            node.check_that_no_share_is_unlimited()
            assert [state.cdi_ids(device) for device in preparer.prepare(node.claim).devices] == ids, number
            assert node.limits() == limits, number
            with disk.full_from(number, lasting=lasting):
                try:
                    unpreparer.unprepare(node.claim.uid)
                except (OSError, VGPUError):
                    assert state.ledger.prepared() or node.files() == [], number  # nobody else would see to it
            unpreparer.unprepare(node.claim.uid)
            assert node.files() == [], number
            assert node.start()[0].ledger.prepared() == {}, number
            if not refused:
                assert number > 10, number  # or the disk refuses nothing
                return
        raise AssertionError(f"more than {_MOST} changes")

    in_child(each_in_turn)


def test_claims_are_undone_on_a_full_disk(node: BareNode) -> None:
    node.prepare()

    def undo() -> None:
        _, _, unpreparer = node.start()
        with Disk().full_from(0, lasting=True):
            unpreparer.unprepare(node.claim.uid)

    in_child(undo)

    assert node.files() == []


def test_claims_that_are_prepared_are_answered_on_a_full_disk(node: BareNode) -> None:
    ids = node.prepare()

    def prepare_again() -> None:
        state, preparer, _ = node.start()
        preparer.prepare(node.claim)  # makes sure that the record of the former instance is on disk
        with Disk().full_from(0, lasting=True):
            assert [state.cdi_ids(device) for device in preparer.prepare(node.claim).devices] == ids

    in_child(prepare_again)


def test_a_claim_whose_change_fails_on_a_full_disk_keeps_its_former_limits(node: BareNode) -> None:
    node.prepare()
    former = node.limits()
    node.reallocate(result(A, "1Gi", request="a"), result(A, "4Gi", request="b"))

    def each_in_turn() -> None:
        _, preparer, _ = node.start()
        disk = Disk()
        for number in range(_MOST):
            with disk.full_from(number, lasting=True):
                failed = _fails(node, preparer)
            if not disk.refused:
                return
            assert failed, number
            assert node.limits() == former, number
        raise AssertionError(f"more than {_MOST} changes")

    in_child(each_in_turn)

    assert node.limits() != former


def test_an_agent_that_starts_on_a_full_disk_serves_what_is_recorded(node: BareNode) -> None:
    node.prepare()
    (record,) = node.paths.checkpoint_dir.glob("*.json")
    record.write_bytes(b"damaged")
    (node.paths.state_dir / "boot").write_text("of another boot of the machine")
    started: list[tuple[NodeState, Preparer, Unpreparer]] = []

    def start_and_undo() -> None:
        with Disk().full_from(0, lasting=True):
            started.append(node.start())
            (rebuilt,) = started[0][0].ledger.prepared().values()
            assert list(rebuilt.shares()) == node.limits()
            started[0][2].unprepare(node.claim.uid)

    in_child(start_and_undo)

    assert node.files() == []
