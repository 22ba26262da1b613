"""A wall clock that is set forward or back by hours, while claims come and go: no grace ends early, nothing is lost."""

import time
from pathlib import Path

import pytest

from kubeletplugin.claims.claimreading import ClaimReader
from kubeletplugin.claims.collecting import Collector
from kubeletplugin.state.libraries import install_library, remove_old_libraries
from tests.unit.kubeletplugin.barenode import BareNode
from tests.unit.kubeletplugin.builders import CLAIMS

_HOUR_S = 3600.0


class Clock:
    """The wall clock, which a test sets; the monotonic one goes as it goes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.off_s = 0.0
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.off_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("hours", [-48, 48])
def test_a_claim_that_is_gone_keeps_its_grace_whatever_the_clock_says(
    tmp_path: Path, clock: Clock, hours: float
) -> None:
    node, passed_s = BareNode(tmp_path), 0.0
    state, preparer, _ = node.start()
    preparer.prepare(node.claim)
    collector = Collector(state, ClaimReader(node.client), "vgpu.dra-driver.io", lambda: passed_s)
    node.client.delete(CLAIMS, {"metadata": {"namespace": "default", "name": "train"}})
    collector.run_once()

    clock.off_s = hours * _HOUR_S
    collector.run_once()
    assert len(node.limits()) == 2

    passed_s = 700.0
    collector.run_once()
    assert node.files() == []


def test_a_write_that_is_under_way_is_left_alone_by_a_clock_that_is_set_forward(tmp_path: Path, clock: Clock) -> None:
    node, passed_s = BareNode(tmp_path), 0.0
    state, _, _ = node.start()
    collector = Collector(state, ClaimReader(node.client), "vgpu.dra-driver.io", lambda: passed_s)
    written = node.paths.checkpoint_dir / ".someone.json.tmp"
    written.touch()

    clock.off_s = 48 * _HOUR_S
    collector.run_once()
    assert written.exists()

    passed_s = 400.0
    collector.run_once()
    assert not written.exists()


@pytest.mark.parametrize("hours", [-48, 48])
def test_a_library_that_somebody_needs_stays_whatever_the_clock_says(
    tmp_path: Path, clock: Clock, hours: float
) -> None:
    def install(content: bytes) -> Path:
        (tmp_path / "libvgpu.so").write_bytes(content)
        return install_library(tmp_path / "libvgpu.so", tmp_path / "lib").path

    named = install(b"named by a spec")
    (tmp_path / "libvgpu.so").write_bytes(b"of the agent beside us")
    beside = install_library(tmp_path / "libvgpu.so", tmp_path / "lib")
    (tmp_path / "libvgpu.so").write_bytes(b"ours")
    current = install_library(tmp_path / "libvgpu.so", tmp_path / "lib")

    clock.off_s = hours * _HOUR_S

    assert remove_old_libraries(current, {named}) == []
    assert all(path.exists() for path in (named, beside.path, current.path))


@pytest.mark.parametrize("hours", [-48, 48])
def test_claims_are_prepared_again_and_undone_whatever_the_clock_says(
    tmp_path: Path, clock: Clock, hours: float
) -> None:
    node = BareNode(tmp_path)
    ids, limits = node.prepare(), node.limits()

    clock.off_s = hours * _HOUR_S

    assert node.prepare() == ids
    assert node.limits() == limits
    node.unprepare()
    assert node.files() == []
