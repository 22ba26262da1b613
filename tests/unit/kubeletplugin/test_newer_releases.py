"""What a newer release has prepared, after a step back to this one: shares go on as they are, and can be undone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kubeletplugin.claims.preparing import Preparer
from kubeletplugin.state.nodestates import NodeState
from libvgpu.layout import layout
from libvgpu.shares import change_limits, read_limits
from tests.unit.kubeletplugin.barenode import A, BareNode
from tests.unit.kubeletplugin.builders import result

_ELASTIC = 3
"""A policy that this release does not know, in a limits file."""


@pytest.fixture
def node(tmp_path: Path) -> BareNode:
    """Return a node whose claim was prepared by the next release."""
    node = BareNode(tmp_path)
    node.prepare()
    fields = record(node)
    fields["version"], fields["tier"] = 2, "gold"
    limits = fields["devices"][0]["limits"]
    limits["policy"], limits["bandwidthPercent"] = "Elastic", 40
    _record_file(node).write_text(json.dumps(fields))
    for copy in node.paths.shares_dir.glob("*/claim.json"):
        copy.write_text(json.dumps(fields))
    raw = bytearray(_limits_file(node).read_bytes())
    view = layout().limits(raw)
    view.policy, view.size, view.flags = _ELASTIC, view.size + 8, view.flags | 1 << 20
    view.reserved1[0] = 40
    _limits_file(node).write_bytes(raw)
    return node


def record(node: BareNode) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_record_file(node).read_text())
    return found


def _record_file(node: BareNode) -> Path:
    return node.paths.checkpoint_dir / f"{node.claim.uid}.json"


def _limits_file(node: BareNode, index: int = 0) -> Path:
    return node.paths.shares_dir / f"{node.claim.uid}-{index}" / "limits"


def _start(node: BareNode) -> tuple[NodeState, Preparer]:
    state, preparer, _ = node.start()
    return state, preparer


def test_a_record_with_an_unknown_policy_is_not_damaged_and_stays_as_it_is(node: BareNode) -> None:
    before, limits = record(node), _limits_file(node).read_bytes()

    state, preparer = _start(node)
    prepared = preparer.prepare(node.claim)

    assert [len(state.cdi_ids(device)) for device in prepared.devices] == [2, 2]
    assert record(node) == before
    assert _limits_file(node).read_bytes() == limits
    assert not list(node.paths.checkpoint_dir.glob("*.damaged"))


def test_such_a_claim_counts_as_a_holder_of_its_device(node: BareNode) -> None:
    state, _ = _start(node)

    (claim,) = state.ledger.prepared().values()
    assert [limits.memory_bytes >> 30 for limits in claim.shares()] == [2, 3]


def test_a_reboot_brings_back_the_cdi_spec_and_leaves_the_limits(node: BareNode) -> None:
    limits = _limits_file(node).read_bytes()
    (spec,) = node.paths.cdi_dir.glob("*claim*")
    content = spec.read_bytes()
    spec.unlink()

    _start(node)

    assert spec.read_bytes() == content
    assert _limits_file(node).read_bytes() == limits


def test_limits_that_are_gone_come_back_as_strict_as_can_be(node: BareNode) -> None:
    _limits_file(node).unlink()

    _start(node)

    limits = read_limits(_limits_file(node).parent)
    assert (limits.memory_bytes >> 30, limits.ceiling_percent, limits.policy.value) == (
        2,
        limits.cores_percent,
        "Fixed",
    )


def test_such_a_claim_is_undone(node: BareNode) -> None:
    node.unprepare()

    assert node.files() == []


def test_another_allocation_of_the_claim_is_prepared_as_this_release_does(node: BareNode) -> None:
    node.reallocate(result(A, "1Gi", request="a"), result(A, "4Gi", request="b"))
    for copy in node.paths.shares_dir.glob("*/limits"):
        copy.unlink()

    _start(node)[1].prepare(node.claim)

    assert [limits.memory_bytes >> 30 for limits in node.limits()] == [1, 4]


def test_changed_limits_keep_what_only_a_newer_release_knows(node: BareNode) -> None:
    raw = bytearray(_limits_file(node).read_bytes())
    layout().limits(raw).policy = layout().constants.VGPU_POLICY_BURST
    _limits_file(node).write_bytes(raw)
    known = layout().limits(raw)

    change_limits(_limits_file(node).parent, lambda present: replace(present, suspended=True))

    view = layout().limits(_limits_file(node).read_bytes())
    assert (view.size, view.flags, view.reserved1[0]) == (known.size, 1 << 20 | 1, 40)
