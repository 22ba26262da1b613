"""A driver that hangs while it is asked for GPU times: what is granted follows the shares all the same."""

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from api.kubefake import FakeKube
from kubeletplugin.agent import NodeAgent
from kubeletplugin.hardware import patienttimes
from kubeletplugin.hardware.discovery import FakeDiscovery
from kubeletplugin.hardware.gputimes import GpuTimes, GpuTimeSource
from kubeletplugin.hardware.patienttimes import PatientTimes
from libvgpu.layout import layout
from libvgpu.shares import read_limits
from tests.unit.kubeletplugin.builders import add_claim, discovery, gpu, parameters, result
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet

A, B = gpu(0), gpu(1)
TIMES = GpuTimes(1.0, 2.0, {7: 0.5})


class HangingTimes(GpuTimeSource):
    """A driver that answers for other devices, and for A as long as it is let."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.asked = threading.Event()

    def read(self, device_uuid: str) -> GpuTimes | None:
        if device_uuid == A.uuid:
            self.asked.set()
            self.answers.wait()
        return TIMES


@pytest.fixture
def driver() -> Iterator[HangingTimes]:
    driver = HangingTimes()
    yield driver
    driver.answers.set()


@pytest.fixture
def backend(driver: HangingTimes, monkeypatch: pytest.MonkeyPatch) -> FakeDiscovery:
    backend = FakeDiscovery(discovery(A))
    monkeypatch.setattr(backend, "gpu_times", lambda: driver)
    return backend


def test_an_answer_that_comes_in_time_is_that_of_the_call(
    driver: HangingTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patienttimes, "_PATIENCE_S", 60.0)
    times = PatientTimes(driver)
    assert times.read(B.uuid) == TIMES
    times.close()


def test_a_device_that_does_not_answer_is_told_once_and_keeps_no_other_from_it(
    driver: HangingTimes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = [0.0]
    times = PatientTimes(driver, clock=lambda: now_s[0])
    monkeypatch.setattr(patienttimes, "_PATIENCE_S", 0.01)
    caplog.set_level(logging.INFO, "kubeletplugin.hardware.patienttimes")

    for _ in range(4):
        assert times.read(A.uuid) is None
        now_s[0] += 3.0
    monkeypatch.setattr(patienttimes, "_PATIENCE_S", 60.0)
    assert times.read(B.uuid) == TIMES
    driver.answers.set()
    while times.read(A.uuid) is None:
        assert not threading.Event().wait(0.001)

    assert [record.getMessage() for record in caplog.records] == [
        "the driver does not tell GPU times: charges are not corrected",
        "the driver tells GPU times again",
    ]
    times.close()


def test_while_the_driver_hangs_shares_are_steered_monitored_and_the_agent_is_well(
    start_agent: Callable[..., NodeAgent],
    driver: HangingTimes,
    kubelet: FakeKubelet,
    client: FakeKube,
    root: Path,
) -> None:
    registry = CollectorRegistry()
    agent = start_agent(registry=registry, monitor_interval_s=0.01, driver_interval_s=0.01, steering_interval_s=0.01)
    kubelet.register()
    burst = [parameters(policy="Burst")]
    first, second = (add_claim(client, name, result(A, "1Gi", "25"), configs=burst) for name in ("first", "second"))
    kubelet.prepare(first, second)

    def granted(claim: str, *working: str) -> int:
        for uid in working:
            with (root / "state" / "shares" / f"{uid}-0" / "books").open("r+b") as file:
                raw = bytearray(file.read())
                layout().books(raw).charged_ns += 1
                file.seek(0)
                file.write(raw)
        return read_limits(root / "state" / "shares" / f"{claim}-0").granted_percent

    while not driver.asked.is_set():
        granted(first.uid, first.uid)
    while granted(first.uid, first.uid, second.uid) != 50:  # what idles is halved
        assert not threading.Event().wait(0.01)

    later = add_claim(client, "later", result(A, "1Gi", "25"))
    kubelet.prepare(later)
    labels = {"share": f"{later.uid}-0", "namespace": "default", "claim": "later", "device": A.uuid}
    while registry.get_sample_value("vgpu_share_memory_limit_bytes", labels) is None:
        assert not threading.Event().wait(0.01)
    assert (agent.alive(), agent.ready()) == ("", "")
