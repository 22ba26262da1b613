"""Health of devices: what a driver (the stub's) tells, and what becomes of it."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api import kube
from api.errors import StateError
from api.kubefake import FakeKube
from dra_driver.cli import main
from kubeletplugin.agent import NodeAgent
from kubeletplugin.hardware import faultfiles
from kubeletplugin.hardware.devices import Device, MemoryRepairs
from kubeletplugin.hardware.discovery import FakeDiscovery
from kubeletplugin.hardware.driverroots import DriverRoot
from kubeletplugin.hardware.faultfiles import FaultFile, clear_fault
from kubeletplugin.hardware.faults import SETTLED_S, Faults, since_boot_s
from kubeletplugin.hardware.nvidia import NvidiaDiscovery, NvidiaOptions
from kubeletplugin.hardware.nvidiadevices import Machine
from kubeletplugin.hardware.nvidiasigns import Judge, Signs
from kubeletplugin.hardware.nvml import pynvml
from kubeletplugin.kubelet.healths import HealthBoard
from libvgpu.stub import StubGPU, change_settings, create_driver_root, inject_xid
from tests.unit.kubeletplugin.builders import discovery, gpu
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet

UUID = "GPU-11111111-1111-4111-8111-111111111111"
OTHER = "GPU-22222222-2222-4222-8222-222222222222"
A = gpu(0).name
GPUS = [StubGPU("Simulated GPU", 1 << 30, uuid) for uuid in (UUID, OTHER)]


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """A driver root with two cards."""
    create_driver_root(tmp_path / "driver", GPUS)
    return tmp_path / "driver"


@pytest.fixture
def open_backend(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., NvidiaDiscovery]]:
    """Opens backends one after the other, as agents of one node would."""
    monkeypatch.setenv("VGPU_STUB_DEV_DIR", "")
    opened: list[NvidiaDiscovery] = []

    def open_(*ignored_xids: int) -> NvidiaDiscovery:
        for backend in opened:
            backend.close()
        options = NvidiaOptions(
            ignored_xids=frozenset(ignored_xids),
            faults_file=tmp_path / "faults.json",
            seen_file=tmp_path / "seen.json",
        )
        opened.append(NvidiaDiscovery(DriverRoot(driver, driver), options))
        opened[-1].discover()
        return opened[-1]

    yield open_
    for backend in opened:
        backend.close()


def device(backend: NvidiaDiscovery, uuid: str = UUID) -> Device:
    return next(device for device in backend.discover().devices if device.uuid == uuid)


def tell(backend: NvidiaDiscovery, card: Path, xid: int) -> bool:
    """Let a card report an Xid; return whether the backend wants a new look at the devices."""
    backend.wait(0.01)  # events count from the moment that they are asked for
    inject_xid(card, xid)
    return backend.wait(60)


def test_a_fault_makes_its_device_unhealthy_at_once_and_no_other(
    open_backend: Callable[..., NvidiaDiscovery], driver: Path
) -> None:
    backend = open_backend()

    assert tell(backend, driver / "dev/nvidia0", 48)

    assert (device(backend).healthy, device(backend).reason) == (False, "Xid 48 was reported")
    assert device(backend, OTHER).healthy
    assert backend.faults() == {(UUID, "xid-48"): 1}


@pytest.mark.parametrize("xid", [13, 31, 63, 74])
def test_errors_of_programs_dealt_with_or_ignored_leave_the_device_healthy_and_are_counted(
    open_backend: Callable[..., NvidiaDiscovery], driver: Path, xid: int
) -> None:
    backend = open_backend(74)

    assert not tell(backend, driver / "dev/nvidia0", xid)

    assert device(backend).healthy
    assert backend.faults() == {(UUID, f"xid-{xid}"): 1}


def test_a_fault_outlives_the_agent_and_ends_with_a_reboot(
    open_backend: Callable[..., NvidiaDiscovery], driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The driver says nothing of what it wants done: as older ones.
    monkeypatch.setattr("kubeletplugin.hardware.nvidiasigns._RECOVERY_FIELD", None)
    tell(open_backend(), driver / "dev/nvidia0", 79)
    assert device(open_backend()).reason == "Xid 79 was reported"

    (tmp_path / "boot_id").write_text("another boot\n")
    monkeypatch.setattr(faultfiles, "BOOT_ID_FILE", tmp_path / "boot_id")
    assert device(open_backend()).healthy


def test_known_faults_that_cannot_be_read_are_told_and_forgotten(
    open_backend: Callable[..., NvidiaDiscovery], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "faults.json").write_text('{"bootID": ')
    assert device(open_backend()).healthy
    assert "known faults cannot be read" in [record.getMessage() for record in caplog.records]


def test_a_fault_ends_when_the_driver_wants_nothing_done_any_more() -> None:
    now = 1000.0
    found = Faults(clock=lambda: now)
    found.tell_xid(UUID, 95)
    found.settle(UUID)
    assert found.problem(UUID) == "Xid 95 was reported"  # it had no time to find out yet

    now += SETTLED_S
    found.settle(UUID)
    assert found.problem(UUID) == ""


def test_a_device_that_fell_off_the_bus_is_unhealthy_until_it_is_back(
    open_backend: Callable[..., NvidiaDiscovery], driver: Path
) -> None:
    backend = open_backend()

    change_settings(driver / "dev/nvidia0", lost=1)
    assert (device(backend).healthy, device(backend).reason) == (False, "it does not answer: GPU is lost")
    assert device(backend, OTHER).healthy

    change_settings(driver / "dev/nvidia0", lost=0)
    assert device(backend).healthy


def test_a_device_that_fell_off_the_bus_is_told_by_the_next_agent_too_until_a_reboot(
    open_backend: Callable[..., NvidiaDiscovery], driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_backend()
    change_settings(driver / "dev/nvidia0", lost=1)

    found = device(open_backend())

    assert (found.name, found.healthy, found.reason) == (
        UUID.lower(),
        False,
        "it does not answer: GPU is lost",
    )
    assert found.memory_bytes == 1 << 30
    (tmp_path / "boot_id").write_text("another boot\n")
    monkeypatch.setattr(faultfiles, "BOOT_ID_FILE", tmp_path / "boot_id")
    assert [one.uuid for one in open_backend().discover().devices] == [OTHER]


def test_a_link_that_went_down_is_told_by_the_next_agent_too(
    open_backend: Callable[..., NvidiaDiscovery], driver: Path
) -> None:
    change_settings(driver / "dev/nvidia0", links=4)
    open_backend()
    change_settings(driver / "dev/nvidia0", links_down=0b100)

    assert device(open_backend()).reason == "NVLink 2 went down"


def test_a_record_of_seen_devices_that_is_damaged_is_told_and_begun_anew(
    open_backend: Callable[..., NvidiaDiscovery], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "seen.json").write_text("{")

    assert device(open_backend()).healthy

    told = "devices that were seen cannot be read: they are known when they answer"
    assert told in [record.getMessage() for record in caplog.records]


def test_a_driver_that_fails_once_and_goes_on_has_the_faults_that_it_had(
    open_backend: Callable[..., NvidiaDiscovery], driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubeletplugin.hardware.nvidiasigns._RECOVERY_FIELD", None)
    backend = open_backend()
    tell(backend, driver / "dev/nvidia0", 79)

    def fail() -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)

    with monkeypatch.context() as patch:
        patch.setattr(pynvml, "nvmlDeviceGetCount", fail)
        with pytest.raises(StateError, match="devices cannot be counted: Unknown Error"):
            backend.discover()

    assert device(backend).reason == "Xid 79 was reported"
    assert device(open_backend()).reason == "Xid 79 was reported"


def test_faults_are_over_when_the_drivers_module_was_loaded_anew(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubeletplugin.hardware.nvidiasigns._RECOVERY_FIELD", None)
    monkeypatch.setenv("VGPU_STUB_DEV_DIR", "")
    module = tmp_path / "sys/module/nvidia"
    module.mkdir(parents=True)
    root = DriverRoot(driver, driver)
    backend = NvidiaDiscovery(root, machine=Machine(root, sysfs=tmp_path / "sys"))
    backend.discover()
    tell(backend, driver / "dev/nvidia0", 79)
    assert device(backend).reason == "Xid 79 was reported"

    module.rename(tmp_path / "unloaded")
    module.mkdir()

    assert device(backend).healthy
    backend.close()


def test_a_driver_that_is_updated_in_place_is_loaded_anew_and_its_faults_are_over(
    open_backend: Callable[..., NvidiaDiscovery], driver: Path
) -> None:
    backend = open_backend()
    tell(backend, driver / "dev/nvidia0", 48)

    create_driver_root(driver, [StubGPU("Simulated GPU", 1 << 30, UUID, driver_version="590.10.01")])

    (found,) = backend.discover().devices
    assert (found.driver_version, found.healthy) == ("590.10.01", True)


def test_a_card_that_is_added_while_the_agent_runs_is_found(
    open_backend: Callable[..., NvidiaDiscovery], driver: Path, tmp_path: Path
) -> None:
    new = "GPU-33333333-3333-4333-8333-333333333333"
    backend = open_backend()
    create_driver_root(tmp_path / "more", [*GPUS, StubGPU("Simulated GPU", 1 << 30, new)])

    (tmp_path / "more/dev/nvidia2").rename(driver / "dev/nvidia2")

    assert [found.uuid for found in backend.discover().devices] == [UUID, OTHER, new]


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"remap_failed": 1}, "remapping a row of its memory failed"),
        ({"recovery_action": 1}, "the driver asks for a reset of the device"),
        ({"links_down": 0b100}, "NVLink 2 went down"),
    ],
)
def test_signs_of_illness_are_found_at_a_look_and_so_is_recovery(
    open_backend: Callable[..., NvidiaDiscovery], driver: Path, setting: dict[str, int], reason: str
) -> None:
    card = driver / "dev/nvidia0"
    change_settings(card, links=4)
    backend = open_backend()

    change_settings(card, **setting)
    assert (device(backend).healthy, device(backend).reason) == (False, reason)

    change_settings(card, **dict.fromkeys(setting, 0))
    assert device(backend).healthy


def test_heat_counts_when_it_stays() -> None:
    judge = Judge()
    assert [judge.judge(Signs(too_hot=hot)) for hot in (True, True, False, True, True)] == [""] * 5
    assert judge.judge(Signs(too_hot=True)) == "its temperature holds its clocks down"
    assert judge.judge(Signs()) == ""


def test_a_link_that_never_was_up_is_not_missed() -> None:
    assert Judge().judge(Signs(links=(True, False))) == ""


def test_an_event_of_the_hardware_reaches_inventory_and_kubelet_without_waiting_for_a_heartbeat(
    start_agent: Callable[..., NodeAgent], backend: FakeDiscovery, client: FakeKube, kubelet: FakeKubelet
) -> None:
    start_agent(heartbeat_s=1000.0, health_interval_s=1000.0)
    kubelet.register()
    stream: Any = kubelet.healths()

    def next_health() -> tuple[int, str]:
        return next(
            (health.health, health.message) for health in next(stream).devices if health.device.device_name == A
        )

    assert next_health() == (1, "")
    listed = client.list(kube.NODE_INVENTORIES)["metadata"]["resourceVersion"]
    backend.found = discovery(gpu(0, healthy=False, reason="Xid 79 was reported"), gpu(1))
    backend.happen()

    assert next_health() == (2, "Xid 79 was reported")
    stream.cancel()
    stated = (event.object["status"]["devices"][0] for event in client.watch(kube.NODE_INVENTORIES, listed))
    assert next(facts["health"] for facts in stated if not facts["healthy"]) == "Xid 79 was reported"


def test_what_waits_for_a_reset_is_told_of_a_device_that_is_fit(
    open_backend: Callable[..., NvidiaDiscovery], driver: Path
) -> None:
    backend = open_backend()
    change_settings(driver / "dev/nvidia0", remap_pending=1, pages_pending=1)

    found = device(backend)
    board = HealthBoard()
    board.update([found])

    assert found.healthy
    assert [(health.healthy, health.message) for health in board.current()[1] or []] == [
        (True, "rows of its memory are remapped at the next reset; pages of its memory are retired at the next reset")
    ]
    repairs = {figures.uuid: figures.memory_repairs for figures in backend.figures()}
    assert repairs[UUID] == MemoryRepairs(0, 1, remap_pending=True, remap_failed=False, retirement_pending=True)
    assert repairs[OTHER] == MemoryRepairs(0, 0, remap_pending=False, remap_failed=False, retirement_pending=False)


def test_an_operator_clears_a_fault_and_the_log_says_who_and_why(
    open_backend: Callable[..., NvidiaDiscovery],
    driver: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("kubeletplugin.hardware.nvidiasigns._RECOVERY_FIELD", None)
    monkeypatch.setenv("SUDO_USER", "alice")
    backend = open_backend()
    for card in ("nvidia0", "nvidia1"):
        tell(backend, driver / "dev" / card, 79)

    command = ["fault", "clear", UUID[:8], "--reason", "a loose cable", "--state-dir", str(tmp_path)]
    assert main(command) == 0

    assert capsys.readouterr().out == f"{UUID}: Xid 79 cleared; the node agent offers the GPU again at its next look\n"
    assert device(backend).healthy
    assert device(backend, OTHER).reason == "Xid 79 was reported"
    (line,) = (r for r in caplog.records if r.getMessage() == "fault of the device cleared by hand")
    assert (vars(line)["device"], vars(line)["by"], vars(line)["reason"]) == (UUID, "alice", "a loose cable")
    assert main(["fault", "list", "--state-dir", str(tmp_path)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{OTHER}: Xid 79, ")
    assert second.startswith(f"{UUID}: Xid 79 cleared at ")
    assert second.endswith(" by alice: a loose cable")

    tell(backend, driver / "dev/nvidia0", 95)
    assert device(backend).reason == "Xid 95 was reported", "what comes after counts again"
    assert main(["fault", "list", "--state-dir", str(tmp_path)]) == 0
    assert "a loose cable" in capsys.readouterr().out


def test_a_fault_that_is_not_there_cannot_be_cleared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = Faults(file=tmp_path / "faults.json")
    found.tell_xid(UUID, 79)

    assert main(["fault", "clear", "GPU-9", "--reason", "none", "--state-dir", str(tmp_path)]) == 2

    assert capsys.readouterr().err == f"dra-driver: device 'GPU-9': found 0 with a fault, expected one of: {UUID}\n"


def test_two_agents_and_an_operator_do_not_undo_each_others_changes(tmp_path: Path) -> None:
    one, other = (Faults(file=tmp_path / "faults.json") for _ in range(2))
    one.tell_xid(UUID, 79)
    other.tell_xid(OTHER, 79)
    clear_fault(FaultFile(tmp_path / "faults.json"), UUID, "alice", "harmless")

    one.tell_xid(OTHER, 95)

    for agent in (one, other, Faults(file=tmp_path / "faults.json")):
        agent.refresh()
        assert (agent.problem(UUID), agent.problem(OTHER)) == ("", "Xid 95 was reported")


def test_a_fault_counts_though_the_disk_does_not_take_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = Faults(file=tmp_path / "gone" / "faults.json")

    assert found.tell_xid(UUID, 79)
    assert found.problem(UUID) == "Xid 79 was reported"
    assert "known faults cannot be stored" in [record.getMessage() for record in caplog.records]

    (tmp_path / "gone").mkdir()
    found.tell_xid(OTHER, 79)
    assert Faults(file=tmp_path / "gone" / "faults.json").problem(UUID) == "Xid 79 was reported"


def test_a_clock_that_is_set_by_hours_ends_no_fault_and_keeps_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for hours in (-5, 5):
        found = Faults(file=tmp_path / f"faults-{hours}.json")
        found.tell_xid(UUID, 95)
        set_to_s = time.time() + hours * 3600
        monkeypatch.setattr(time, "time", lambda now_s=set_to_s: now_s)
        found.settle(UUID)
        assert found.problem(UUID) == "Xid 95 was reported"
        later = Faults(file=tmp_path / f"faults-{hours}.json", clock=lambda: since_boot_s() + SETTLED_S)
        later.settle(UUID)
        assert later.problem(UUID) == ""


def test_the_fault_of_a_release_that_wrote_the_time_of_the_day_ends_as_well(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    boot_id = faultfiles.BOOT_ID_FILE.read_text().strip()
    path.write_text(json.dumps({"bootID": boot_id, "faults": {UUID: {"xid": 95, "at": time.time()}}}))
    now_s = 1000.0
    found = Faults(file=path, clock=lambda: now_s)
    assert found.problem(UUID) == "Xid 95 was reported"

    now_s += SETTLED_S
    found.settle(UUID)

    assert found.problem(UUID) == ""
