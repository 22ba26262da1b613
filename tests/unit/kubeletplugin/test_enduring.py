"""What nobody expected, in any of the agent's threads: it costs a round, and nothing else."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from typing_extensions import override

from api.kubefake import FakeKube
from kubeletplugin import enduring
from kubeletplugin.agent import NodeAgent
from kubeletplugin.claims.claimfollowing import ClaimFollower
from kubeletplugin.claims.collecting import Collector
from kubeletplugin.claims.eventing import EventWriter
from kubeletplugin.enduring import endure
from kubeletplugin.hardware import patienttimes
from kubeletplugin.hardware.discovery import FakeDiscovery
from kubeletplugin.hardware.gputimes import GpuTimes, GpuTimeSource
from kubeletplugin.hardware.patienttimes import PatientTimes
from kubeletplugin.monitoring.bookreading import Monitor
from kubeletplugin.monitoring.steering import Steering
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet


@pytest.mark.parametrize(
    "failing",
    [
        (FakeDiscovery, "discover", "heartbeat"),
        (Monitor, "run_once", "monitor"),
        (FakeDiscovery, "figures", "driver"),
        (Steering, "run_once", "steering"),
        (Collector, "run_once", "collector"),
        (FakeDiscovery, "wait", "events"),
        (ClaimFollower, "_claims", "claims"),
    ],
)
def test_no_thread_of_the_agent_ends_by_what_nobody_expected(
    failing: tuple[Any, str, str],
    start_agent: Callable[..., NodeAgent],
    kubelet: FakeKubelet,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    part, method, thread = failing
    monkeypatch.setattr(enduring, "_AGAIN_S", 0.01)
    usual, calls, went_on = getattr(part, method), iter(range(1_000_000)), threading.Event()

    def fail_at_first(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 0:
            raise RecursionError("too deep")
        went_on.set()
        return usual(*args, **kwargs)

    monkeypatch.setattr(part, method, fail_at_first)
    often = ("monitor_interval_s", "driver_interval_s", "annotation_interval_s", "collect_interval_s")
    agent = start_agent(steering_interval_s=0.01, **dict.fromkeys(often, 0.01))
    kubelet.register()

    assert went_on.wait(60)
    assert agent.alive() == ""
    told = [record for record in caplog.records if record.message == "unexpected error; the thread goes on"]
    assert [(record.__dict__["part"], record.__dict__["error"]) for record in told] == [
        (thread, "RecursionError('too deep')")
    ]


def test_an_error_of_each_round_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(enduring, "_AGAIN_S", 0.0)
    tries = iter([ValueError("a"), ValueError("a"), ValueError("b"), None])

    def body() -> None:
        error = next(tries)
        if error is not None:
            raise error

    with caplog.at_level(logging.ERROR):
        endure(body, "monitor", threading.Event())

    assert [record.__dict__["error"] for record in caplog.records] == ["ValueError('a')", "ValueError('b')"]


def test_gpu_times_are_asked_for_again_after_a_driver_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    class Times(GpuTimeSource):
        def __init__(self) -> None:
            self.asked = 0

        @override
        def read(self, device_uuid: str) -> GpuTimes | None:
            self.asked += 1
            if self.asked == 1:
                raise ValueError("odd")
            return GpuTimes(1.0, 2.0, {})

    monkeypatch.setattr(patienttimes, "_PATIENCE_S", 60.0)
    times = PatientTimes(Times())

    assert [times.read("GPU-1"), times.read("GPU-1")] == [None, GpuTimes(1.0, 2.0, {})]
    times.close()


def test_an_event_that_cannot_be_written_costs_no_other_and_is_in_the_log(
    client: FakeKube, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usual, written = client.create, []

    def create(kind: Any, event: Any) -> Any:
        if event["reason"] == "First":
            raise ValueError("odd")
        written.append(event["reason"])
        return usual(kind, event)

    monkeypatch.setattr(client, "create", create)
    events = EventWriter(client, "node-1")
    events.start()

    events.tell_of_node("First", "lost")
    events.tell_of_node("Second", "told")
    events.stop(60)

    assert written == ["Second"]
    (lost,) = (record.__dict__ for record in caplog.records)
    assert (lost["about"], lost["reason"], lost["note"], lost["error"]) == ("Node node-1", "First", "lost", "odd")
