"""Steering shares by what they and the driver say, round by round."""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from typing_extensions import override

from api.vgpuconfig import Policy
from kubeletplugin.hardware.gputimes import FakeGpuTimes, GpuTimes, GpuTimeSource, NoGpuTimes
from kubeletplugin.monitoring.steering import Steering, SteeringPace
from libvgpu.layout import layout
from libvgpu.meters import ProcessKey, ShareMeter, Work
from libvgpu.shares import Limits, create_share, read_limits, update_limits

DEVICE = "GPU-1"


class Processes:
    """Each process id stands for the share of that place in the list."""

    def __init__(self, shares: list[str]) -> None:
        self.shares = shares
        self.kept: set[int] = set()

    def shares_of(self, pid: int) -> frozenset[str]:
        return frozenset({self.shares[pid]}) if pid < len(self.shares) else frozenset()

    def keep(self, pids: Iterable[int]) -> None:
        self.kept = set(pids)


class Node:
    """Shares of one device, whose books the test writes, at a time that the test tells."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folders: dict[str, Path] = {}
        self.times = FakeGpuTimes()
        self.owners = Processes([])
        self.steering = Steering(lambda: self.folders, self.times, self.owners)
        self.now_s = time.monotonic()

    def add(
        self, name: str, cores: int, policy: Policy = Policy.BURST, priority: int = 0, device: str = DEVICE
    ) -> Path:
        ceiling = cores if policy is Policy.FIXED else 100
        create_share(self.folder / name, Limits(name, device, 1 << 30, cores, ceiling, policy, priority))
        self.folders[name] = self.folder / name
        self.owners.shares.append(name)
        return self.folder / name

    def use(self, *names: str, predicted_ns: int = 0, drawn_ns: int = 0, slots: int = 1) -> None:
        """Let shares launch work; its GPU time is predicted by a process with id 1."""
        for name in names:
            path = self.folders[name] / "books"
            raw = bytearray(path.read_bytes())
            books = layout().books(raw)
            books.charged_ns += 1
            books.slots_high = slots
            books.slots[0].pid = 1
            books.slots[0].predicted_ns += predicted_ns
            books.slots[0].drawn_ns += drawn_ns
            path.write_bytes(raw)

    def round(self, passed_s: float = 0.1) -> None:
        self.now_s += passed_s
        self.steering.run_once(self.now_s)

    def granted(self, name: str) -> int:
        return read_limits(self.folders[name]).granted_percent

    def charge(self, name: str) -> int:
        return read_limits(self.folders[name]).charge_permille


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_burst_share_yields_at_the_next_look_and_gets_it_back_when_its_neighbour_is_idle(node: Node) -> None:
    node.add("burst", 20)
    node.add("fixed", 50, Policy.FIXED)
    node.round()
    node.use("burst")
    node.round()
    assert node.granted("burst") == 100
    node.use("fixed")
    node.round()
    assert node.granted("burst") == 50
    node.round(0.4)
    assert node.granted("burst") == 50  # it may only be waiting
    node.round(0.2)
    assert node.granted("burst") == 100


def test_a_share_of_low_priority_keeps_its_guarantee_only_while_one_of_high_priority_works(node: Node) -> None:
    node.add("low", 10)
    node.add("high", 20, priority=5)
    node.round()
    node.use("low", "high")
    node.round()
    assert (node.granted("low"), node.granted("high")) == (10, 90)


def test_charges_are_corrected_by_what_the_driver_counts(node: Node) -> None:
    node.add("a", 70, Policy.FIXED)
    node.add("b", 30, Policy.FIXED)
    node.round()
    for _ in range(8):
        node.use("a", predicted_ns=250_000_000)
        node.use("b", predicted_ns=75_000_000)
        node.times.next[DEVICE] = GpuTimes(node.now_s, node.now_s + 0.25, {0: 0.175, 1: 0.075})
        node.round(0.25)
    assert node.charge("a") == pytest.approx(700, abs=30)
    assert node.charge("b") == pytest.approx(1000, abs=30)
    assert time.monotonic_ns() - read_limits(node.folders["a"]).steered_at_ns < 10e9


def test_processes_of_one_device_are_remembered_while_another_is_measured(node: Node) -> None:
    node.add("a", 70, Policy.FIXED)
    node.add("b", 30, Policy.FIXED, device="GPU-2")
    node.round()
    node.use("a", "b")
    node.times.next[DEVICE] = GpuTimes(node.now_s, node.now_s + 0.25, {0: 0.1})
    node.times.next["GPU-2"] = GpuTimes(node.now_s, node.now_s + 0.25, {1: 0.1})
    node.round(0.25)

    assert node.owners.kept == {0, 1}


def test_what_was_charged_before_the_correction_was_known_is_settled(node: Node) -> None:
    node.add("a", 70, Policy.FIXED)
    node.round()
    for _ in range(8):
        node.use("a", predicted_ns=250_000_000, drawn_ns=250_000_000)
        node.times.next[DEVICE] = GpuTimes(node.now_s, node.now_s + 0.25, {0: 0.15})
        node.round(0.25)
    assert read_limits(node.folders["a"]).settled_ns == pytest.approx(8 * 100_000_000, rel=0.02)


def test_copies_that_no_share_predicts_are_charged_to_a_share_that_launches_work_too(node: Node) -> None:
    node.add("a", 70, Policy.FIXED)
    node.round()
    for _ in range(4):
        node.use("a", predicted_ns=1_000_000, drawn_ns=1_000_000)
        node.times.next[DEVICE] = GpuTimes(node.now_s, node.now_s + 0.25, {0: 0.2})
        node.round(0.25)
    assert read_limits(node.folders["a"]).settled_ns == pytest.approx(-4 * 199_000_000, rel=0.05)


def test_a_correction_is_said_again_while_the_share_works_and_not_while_it_is_idle(node: Node) -> None:
    folder = node.add("a", 70, Policy.FIXED)
    node.round()
    node.use("a")
    node.round()
    assert node.charge("a") == 1000
    said_ns = time.monotonic_ns() - 4_000_000_000
    update_limits(folder, replace(read_limits(folder), steered_at_ns=said_ns))
    node.round(1.1)  # idle
    assert read_limits(folder).steered_at_ns == said_ns
    node.use("a")
    node.round()
    assert read_limits(folder).steered_at_ns > said_ns


def test_limits_are_written_only_when_something_changes(node: Node) -> None:
    folder = node.add("a", 20)
    node.add("b", 20)
    node.round()
    node.use("a", "b")
    node.round()
    before = (folder / "limits").read_bytes()
    for _ in range(20):
        node.use("a", "b")
        node.round(0.05)
    assert (folder / "limits").read_bytes() == before


def test_grants_leave_limits_alone_that_were_changed_meanwhile(node: Node) -> None:
    folder = node.add("burst", 20)
    node.round()
    update_limits(folder, replace(read_limits(folder), memory_bytes=1 << 20, suspended=True))
    node.use("burst")
    node.round(0.1)
    after = read_limits(folder)
    assert (after.memory_bytes, after.suspended, after.granted_percent) == (1 << 20, True, 100)


def test_shares_that_come_go_or_are_damaged_disturb_nobody(node: Node) -> None:
    node.add("good", 20)
    damaged = node.add("damaged", 20)
    gone = node.add("gone", 20)
    node.round()
    (damaged / "books").write_bytes(b"short")
    (gone / "books").unlink()
    (gone / "limits").unlink()
    node.use("good")
    node.round(1.1)
    assert node.granted("good") == 100
    del node.folders["gone"]
    node.add("new", 30)
    node.round(1.1)
    node.use("new", "good")
    node.round()
    assert (node.granted("good"), node.granted("new")) == (45, 55)


def test_devices_in_use_are_looked_at_in_the_pace_that_is_set_and_nothing_more_often() -> None:
    assert SteeringPace.of(0.05) == SteeringPace()
    slow = SteeringPace.of(1.0)
    assert (slow.busy_s, slow.idle_s, slow.measure_s, slow.list_s, slow.linger_s) == (1.0, 1.0, 1.0, 1.0, 2.0)
    rounds: list[float] = []

    class Stopping(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            rounds.append(timeout or 0.0)
            return len(rounds) == 2

    Steering(dict, NoGpuTimes(), Processes([]), pace=slow).run(Stopping())

    assert rounds == [1.0, 1.0]


def _crowd(node: Node, name: str, processes: int) -> None:
    """Let a share say that it has very many processes, which all work."""
    path = node.folders[name] / "books"
    raw = bytearray(path.read_bytes())
    books = layout().books(raw)
    books.charged_ns += 1
    books.slots_high = processes
    for number in range(processes):
        books.slots[number].pid = number + 1
        books.slots[number].predicted_ns += 1000
    path.write_bytes(raw)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The shares whose processes were looked at, each time with how many slots."""
    found: list[tuple[str, int]] = []
    work = ShareMeter.work

    def note(meter: ShareMeter, charge_permille: int) -> dict[ProcessKey, Work]:
        done = work(meter, charge_permille)
        found.append((Path(meter._path).parent.name, max(len(done), 1)))
        return done

    monkeypatch.setattr(ShareMeter, "work", note)
    return found


def test_tenants_with_very_many_processes_cost_the_node_no_more_than_others_and_hold_up_nobody(
    node: Node, looked_at: list[tuple[str, int]]
) -> None:
    crowded = [f"crowded-{number}" for number in range(3)]
    for name in ("usual", *crowded):
        node.add(name, 10)
    for name in crowded:
        _crowd(node, name, 1024)
    node.round()
    looked_at.clear()

    rounds, passed_s = 80, 0.05
    for _ in range(rounds):
        node.use("usual", *crowded, slots=1024)
        node.round(passed_s)

    assert sum(slots for _, slots in looked_at) <= 10_000 * rounds * passed_s + 1024 * len(crowded)
    assert sum(name == "usual" for name, _ in looked_at) == rounds
    assert {name for name, _ in looked_at} == {"usual", *crowded}


def test_a_share_that_is_looked_at_less_often_is_corrected_all_the_same(node: Node) -> None:
    node.add("crowded", 70, Policy.FIXED)
    node.add("usual", 20, Policy.FIXED)
    _crowd(node, "crowded", 1024)
    node.round()
    for _ in range(24):
        node.use("crowded", predicted_ns=250_000_000, slots=1024)
        node.use("usual", predicted_ns=50_000_000)
        node.times.next[DEVICE] = GpuTimes(node.now_s, node.now_s + 0.25, {0: 0.175, 1: 0.05})
        node.round(0.25)

    assert node.charge("crowded") == pytest.approx(700, abs=40)
    assert node.charge("usual") == pytest.approx(1000, abs=30)


class Counted(GpuTimeSource):
    """What processes had on one device since the last call, as the test tells it."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._from_s = now()
        self._seconds: dict[int, float] = {}

    def add(self, pid: int, seconds: float) -> None:
        self._seconds[pid] = self._seconds.get(pid, 0.0) + seconds

    @override
    def read(self, device_uuid: str) -> GpuTimes | None:
        found = GpuTimes(self._from_s, self._now(), self._seconds)
        self._from_s, self._seconds = self._now(), {}
        return found if found.to_s - found.from_s <= 2.0 else None  # as a driver that keeps its samples no longer


def _work_in_bursts(node: Node, processes: int, pause_s: float) -> tuple[float, float]:
    """Let a tenant have twice the GPU time that it says, a quarter of a second at a time.

    Returns:
        How its work is charged, and what was settled, in seconds.
    """
    node.add("tenant", 70, Policy.FIXED)
    _crowd(node, "tenant", processes)
    times = Counted(lambda: node.now_s)
    node.steering = Steering(lambda: node.folders, times, node.owners)
    node.round()
    for _ in range(12):
        for _ in range(5):
            node.use("tenant", predicted_ns=20_000_000, drawn_ns=20_000_000, slots=processes)
            times.add(0, 0.04)
            node.round(0.05)
        for _ in range(round(pause_s / 0.05)):
            node.round(0.05)
    for _ in range(60):  # what is owed at the end
        node.round(0.05)
    return node.charge("tenant") / 1000, read_limits(node.folders["tenant"]).settled_ns / 1e9


@pytest.mark.parametrize("pause_s", [0.7, 1.0, 3.0])
def test_a_tenant_that_stops_before_it_was_looked_at_again_and_again_is_corrected_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause_s: float
) -> None:
    """With its many processes a look is so dear that there is one each second."""
    monkeypatch.setattr("kubeletplugin.monitoring.steering._SLOTS_A_SECOND", 1000)
    usual_charge, usual_s = _work_in_bursts(Node(tmp_path / "usual"), 1, pause_s)

    charge, settled_s = _work_in_bursts(Node(tmp_path / "crowded"), 1024, pause_s)

    assert usual_charge > 1.5
    assert charge == pytest.approx(usual_charge, rel=0.1)
    assert settled_s == pytest.approx(usual_s, rel=0.15)
    assert settled_s < -0.5


def test_a_share_that_is_idle_is_looked_at_no_more_once_all_it_did_was_seen(
    node: Node, looked_at: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubeletplugin.monitoring.steering._SLOTS_A_SECOND", 1000)
    node.add("crowded", 70, Policy.FIXED)
    _crowd(node, "crowded", 1024)
    node.steering = Steering(lambda: node.folders, Counted(lambda: node.now_s), node.owners)
    node.round()
    node.use("crowded", slots=1024)
    for _ in range(60):
        node.round(0.05)
    looked_at.clear()

    for _ in range(60):
        node.round(0.05)

    assert looked_at == []


def test_a_driver_that_does_not_count_is_not_waited_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubeletplugin.monitoring.steering._SLOTS_A_SECOND", 1000)
    node.add("crowded", 70, Policy.FIXED)
    _crowd(node, "crowded", 1024)
    node.round()
    asked: list[str] = []
    monkeypatch.setattr(node.times, "read", asked.append)
    node.use("crowded", slots=1024)
    node.round()
    assert asked == [DEVICE]
    node.round(130.0)
    asked.clear()

    node.round(130.0)

    assert asked == []
