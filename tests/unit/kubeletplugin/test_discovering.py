"""A driver that is slow, hangs, or is not there: what the agent does all the same."""

import logging
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from api import kube
from api.kubefake import FakeKube
from kubeletplugin.agent import NodeAgent
from kubeletplugin.hardware import discovering, nvml
from kubeletplugin.hardware.devices import DeviceFigures, Discovery
from kubeletplugin.hardware.discovery import FakeDiscovery
from kubeletplugin.hardware.driverroots import DriverRoot
from kubeletplugin.hardware.nvidia import NvidiaDiscovery
from kubeletplugin.hardware.nvml import pynvml
from libvgpu.stub import StubGPU, create_driver_root
from tests.unit.kubeletplugin.builders import add_claim, discovery, gpu, result, settings
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet, PrepareError

A = gpu(0)


class HangingDiscovery(FakeDiscovery):
    """A driver that answers nothing while it hangs, in none of its functions."""

    def __init__(self) -> None:
        super().__init__(discovery(A))
        self.answers = threading.Event()
        self.asked = threading.Event()
        """Somebody waits, or has waited, for figures."""

    def discover(self) -> Discovery:
        self.answers.wait()
        return super().discover()

    def figures(self) -> tuple[DeviceFigures, ...]:
        self.asked.set()
        self.answers.wait()
        return super().figures()

    def close(self) -> None:
        self.answers.set()  # so that no test waits for its agent
        super().close()


@pytest.fixture
def backend() -> Iterator[HangingDiscovery]:
    backend = HangingDiscovery()
    yield backend
    backend.answers.set()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovering, "_PATIENCE_S", 0.0)


@pytest.mark.usefixtures("impatient")
def test_while_the_driver_hangs_claims_are_undone_and_new_ones_told_to_try_again(
    start_agent: Callable[..., NodeAgent], backend: HangingDiscovery, kubelet: FakeKubelet, client: FakeKube, root: Path
) -> None:
    backend.answers.set()
    former = start_agent()
    kubelet.register()
    old = add_claim(client, "old", result(A))
    while True:  # with no patience it has to be tried until the first look has ended
        try:
            kubelet.prepare(old)
            break
        except PrepareError:
            continue
    former.stop()
    backend.answers.clear()

    agent = start_agent()
    kubelet.restart()

    assert (agent.ready(), agent.alive()) == ("", "")
    assert kubelet.unprepare(old) == {old.uid: ""}
    assert list((root / "state" / "shares").iterdir()) == []
    with pytest.raises(PrepareError) as caught:
        kubelet.prepare(add_claim(client, "new", result(A)))
    assert re.sub(r"\d+ s after", "some s after", str(caught.value)) == (
        "node node-1: its devices are not known some s after the start of the agent, expected them within seconds: the "
        "driver has not answered since the agent started"
    )


def test_a_claim_that_comes_before_the_first_look_waits_for_it(
    start_agent: Callable[..., NodeAgent], backend: HangingDiscovery, kubelet: FakeKubelet, client: FakeKube
) -> None:
    start_agent()
    kubelet.register()
    claim = add_claim(client, "early", result(A))
    late = threading.Timer(0.05, backend.answers.set)
    late.start()

    assert [device.device_name for device in kubelet.prepare(claim)[claim.uid]] == [A.name]
    late.join()


def test_the_kubelet_is_told_no_health_before_the_first_look(
    start_agent: Callable[..., NodeAgent], backend: HangingDiscovery, kubelet: FakeKubelet
) -> None:
    start_agent(health_interval_s=0.01)
    kubelet.register()
    stream = kubelet.healths()
    late = threading.Timer(0.1, backend.answers.set)
    late.start()

    first = next(stream)

    assert [(health.device.device_name, health.health) for health in first.devices] == [(A.name, 1)]
    stream.cancel()  # type: ignore[attr-defined]
    late.join()


def test_a_driver_that_hangs_later_does_not_keep_the_books_from_being_read(
    start_agent: Callable[..., NodeAgent], backend: HangingDiscovery, kubelet: FakeKubelet, client: FakeKube
) -> None:
    backend.answers.set()
    registry = CollectorRegistry()
    agent = start_agent(registry=registry, monitor_interval_s=0.01, driver_interval_s=0.01, heartbeat_s=1000.0)
    kubelet.register()
    claim = add_claim(client, "train", result(A))
    kubelet.prepare(claim)
    backend.answers.clear()
    backend.asked.clear()
    assert backend.asked.wait(60)

    later = add_claim(client, "later", result(A))
    kubelet.prepare(later)
    labels = {"share": f"{later.uid}-0", "namespace": "default", "claim": "later", "device": A.uuid}
    while registry.get_sample_value("vgpu_share_memory_limit_bytes", labels) is None:
        assert not threading.Event().wait(0.01)

    assert agent.alive() == ""


def test_nobody_waits_for_an_nvml_that_takes_long_to_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGPU_STUB_DEV_DIR", "")
    create_driver_root(tmp_path, [StubGPU("Simulated GPU", 1 << 30, A.uuid)])
    begun, goes_on = threading.Event(), threading.Event()
    begin = pynvml.nvmlInit

    def slow() -> None:
        begun.set()
        goes_on.wait()
        begin()

    monkeypatch.setattr(pynvml, "nvmlInit", slow)
    backend = NvidiaDiscovery(DriverRoot(tmp_path, tmp_path))
    looking = threading.Thread(target=backend.discover)
    looking.start()
    assert begun.wait(60)

    asked = threading.Thread(target=lambda: figures.append(backend.figures()))
    figures: list[tuple[DeviceFigures, ...]] = []
    asked.start()
    asked.join(60)

    assert figures == [()]
    goes_on.set()
    looking.join()
    assert [device.uuid for device in backend.figures()] == [A.uuid]
    backend.close()


@pytest.mark.parametrize("closed", [False, True])
def test_a_call_of_nvml_that_never_ends_keeps_the_devices_from_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, closed: bool
) -> None:
    monkeypatch.setenv("VGPU_STUB_DEV_DIR", "")
    monkeypatch.setattr(nvml, "_CALLS_S", 0.01)
    create_driver_root(tmp_path, [StubGPU("Simulated GPU", 1 << 30, A.uuid)])
    backend = NvidiaDiscovery(DriverRoot(tmp_path, tmp_path))
    backend.discover()
    asked, goes_on = threading.Event(), threading.Event()

    def hang(*_: object) -> list[object]:
        asked.set()
        goes_on.wait()
        return []

    monkeypatch.setattr(pynvml, "nvmlDeviceGetProcessUtilization", hang)
    times = backend.gpu_times()
    times.read(A.uuid)
    stuck = threading.Thread(target=times.read, args=(A.uuid,))
    stuck.start()
    try:
        assert asked.wait(60)
        if closed:
            backend.close()
        else:
            (tmp_path / "dev/nvidia7").touch()  # devices came: a reason to begin anew

        found = [backend.discover() for _ in range(2)]

        assert [[device.uuid for device in one.devices if device.healthy] for one in found] == [[A.uuid]] * 2
        assert [one.uuid for one in backend.figures()] == [A.uuid]
        told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert told == ["NVML not begun anew: a call of it does not end; if that lasts, the node needs a reboot"]
    finally:
        goes_on.set()
        stuck.join()
        backend.close()


def test_a_node_without_a_driver_is_ready_and_tells_by_metrics_that_it_has_no_devices(
    client: FakeKube, kubelet: FakeKubelet, root: Path
) -> None:
    (root / "driver").mkdir()
    registry = CollectorRegistry()
    agent = NodeAgent(client, settings(root, driver_root=root / "driver"), None, registry)
    agent.start()
    try:
        assert agent.ready() == "the kubelet has not registered the plugin yet"

        kubelet.register()

        assert agent.ready() == ""
        assert registry.get_sample_value("vgpu_discovery_failed") == 1
    finally:
        agent.stop()


def test_a_driver_root_that_is_gone_is_told_by_inventory_and_metrics(
    start_agent: Callable[..., NodeAgent], client: FakeKube, backend: HangingDiscovery
) -> None:
    registry = CollectorRegistry()
    backend.answers.set()
    start_agent(registry, heartbeat_s=0.02)
    backend.found = FileNotFoundError(2, "No such file or directory", "/run/nvidia/driver/dev")

    stated = (event.object.get("status", {}).get("message") for event in client.watch(kube.NODE_INVENTORIES, "0"))
    assert "[Errno 2] No such file or directory: '/run/nvidia/driver/dev'" in stated

    assert registry.get_sample_value("vgpu_discovery_failed") == 1
    assert 0 <= (registry.get_sample_value("vgpu_inventory_age_seconds") or 0.0) < 60
