"""NVIDIA devices from an NVML that a test makes up: what is stated, and what is kept out with which reason."""

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

import kubeletplugin.hardware.nvml
from api.errors import ConfigError, StateError
from kubeletplugin.hardware import linkislands, nvidia, nvidiadevices, nvidiasigns
from kubeletplugin.hardware.devices import Device, DeviceFile, Discovery
from kubeletplugin.hardware.driverroots import DriverRoot
from kubeletplugin.hardware.holdingback import Filter
from kubeletplugin.hardware.nvidia import NvidiaDiscovery, NvidiaOptions
from kubeletplugin.hardware.nvidiadevices import Machine

GIB = 1 << 30


def _nvml_error(code: int) -> Exception:
    error: Exception = pynvml.NVMLError(code)  # type: ignore[no-untyped-call] # of a package without types
    return error


class FakeNVML:
    """Answers for cards that are dictionaries; a missing answer is "not supported"."""

    def __init__(self, *cards: dict[str, Any]) -> None:
        self.cards = list(cards)
        self.driver = "driver"
        self.initialised_with = ""
        self._nvmlGetFunctionPointer_cache: dict[str, Any] = {}

    def _initialise(self) -> None:
        self.initialised_with = self.driver

    def _count(self) -> int:
        if self.initialised_with != self.driver:
            raise _nvml_error(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        return len(self.cards)

    def __getattr__(self, name: str) -> Any:
        """Return the function of this name: NVML's own are not Python's style, so they stand here as texts."""
        if not callable(getattr(pynvml, name)) or name == "NVMLError":
            return getattr(pynvml, name)
        system = {
            "nvmlShutdown": None,
            "nvmlSystemGetDriverVersion": "570.124.06",
            "nvmlSystemGetCudaDriverVersion_v2": 12080,
        }
        if name in system:
            return lambda: system[name]
        if name in {"nvmlInit", "nvmlDeviceGetCount"}:
            return self._initialise if name == "nvmlInit" else self._count
        return self._handle if name == "nvmlDeviceGetHandleByIndex" else self._fact(name.removeprefix("nvmlDeviceGet"))

    def _handle(self, index: int) -> dict[str, Any]:
        if self.cards[index].get("lost"):
            raise _nvml_error(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.cards[index]

    def _fact(self, key: str) -> Any:
        def answer(card: dict[str, Any], *arguments: Any) -> Any:
            if key not in card or (key == "MigDeviceHandleByIndex" and arguments[0] >= len(card[key])):
                raise _nvml_error(pynvml.NVML_ERROR_NOT_SUPPORTED)
            if isinstance(card[key], Exception):
                raise card[key]
            return card[key][arguments[0]] if key == "MigDeviceHandleByIndex" else card[key]

        return answer


def card(number: int, **answers: Any) -> dict[str, Any]:
    return {
        "UUID": f"GPU-0000000{number}-0000-0000-0000-000000000000",
        "Name": "NVIDIA H100 80GB HBM3",
        "MemoryInfo": SimpleNamespace(total=80 * GIB),
        "MinorNumber": number,
        "Architecture": pynvml.NVML_DEVICE_ARCH_HOPPER,
        "CudaComputeCapability": (9, 0),
        "PciInfo": SimpleNamespace(busId=f"0000000{number}:65:00.0"),
        **answers,
    }


def without(answers: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in answers.items() if key not in keys}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A driver root with the libraries of a driver and two (simulated) cards."""
    libraries = tmp_path / "usr/lib/x86_64-linux-gnu"
    libraries.mkdir(parents=True)
    (libraries / "libcuda.so.570.124.06").touch()
    (libraries / "libcuda.so.1").symlink_to("libcuda.so.570.124.06")
    (libraries / "libnvidia-ml.so.1").touch()
    (tmp_path / "usr/bin").mkdir()
    (tmp_path / "usr/bin/nvidia-smi").touch()
    (tmp_path / "dev").mkdir()
    for number in (0, 1):
        (tmp_path / f"dev/nvidia{number}").touch()
    return tmp_path


def backend_of(
    monkeypatch: pytest.MonkeyPatch,
    nvml: FakeNVML,
    root: Path,
    on_host: Path | None = None,
    options: NvidiaOptions | None = None,
) -> NvidiaDiscovery:
    for module in (kubeletplugin.hardware.nvml, linkislands, nvidia, nvidiadevices, nvidiasigns):
        monkeypatch.setattr(module, "pynvml", nvml)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_arguments, **_options: None)
    monkeypatch.setenv("VGPU_STUB_DEV_DIR", "")
    driver_root = DriverRoot(root, on_host or root)
    machine = Machine(driver_root, sysfs=root / "sys", proc=root / "proc")
    return NvidiaDiscovery(driver_root, options or NvidiaOptions(), machine)


def discover(
    monkeypatch: pytest.MonkeyPatch, root: Path, *cards: dict[str, Any], on_host: Path | None = None
) -> Discovery:
    backend = backend_of(monkeypatch, FakeNVML(*cards), root, on_host)
    found = backend.discover()
    backend.close()
    return found


def only_device(monkeypatch: pytest.MonkeyPatch, root: Path, answers: dict[str, Any]) -> Device:
    (device,) = discover(monkeypatch, root, answers).devices
    return device


def test_a_device_is_stated_with_all_that_the_driver_says(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    where = root / "sys/devices/pci0000:64/0000:64:01.0/0001:65:00.0"
    where.mkdir(parents=True)
    (where / "numa_node").write_text("1\n")
    (root / "sys/bus/pci/devices").mkdir(parents=True)
    (root / "sys/bus/pci/devices/0001:65:00.0").symlink_to(where)

    assert only_device(monkeypatch, root, card(1)) == Device(
        vendor="nvidia",
        uuid="GPU-00000001-0000-0000-0000-000000000000",
        index=0,
        product_name="NVIDIA H100 80GB HBM3",
        memory_bytes=80 * GIB,
        architecture="Hopper",
        compute_capability="9.0",
        driver_version="570.124.06",
        runtime_version="12.8",
        pci_bus_id="0001:65:00.0",
        pcie_root="pci0000:64",
        numa_node=1,
        mig_capable=False,
        files=(DeviceFile(root / "dev/nvidia1", Path("/dev/nvidia1")),),
    )


def test_a_device_that_says_little_is_stated_with_that(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    little = without(card(0), "MinorNumber", "Architecture", "CudaComputeCapability", "PciInfo", "Name")

    device = only_device(monkeypatch, root, little)

    assert (device.architecture, device.pci_bus_id, device.numa_node, device.product_name) == ("", "", None, "")
    assert device.shareable


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (card(0, MigMode=(1, 1)), "MIG mode is enabled: the device is divided by its hardware"),
        (without(card(0), "MemoryInfo"), "the driver does not say how much memory the device has"),  # no meminfo here
        (card(7), "its device node is missing: the driver does not serve it now"),
    ],
)
def test_a_device_that_cannot_be_divided_is_stated_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, root: Path, answers: dict[str, Any], reason: str
) -> None:
    device = only_device(monkeypatch, root, answers)

    assert (device.shareable, device.reason) == (False, reason)


def test_a_device_without_a_name_is_told_and_hides_no_other(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    found = discover(monkeypatch, root, {"lost": True}, card(1))

    assert [device.index for device in found.devices] == [1]
    assert found.message == "device 0: GPU is lost"


def test_a_device_that_fell_off_the_bus_stays_stated_with_its_error(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    nvml = FakeNVML(card(0), card(1))
    backend = backend_of(monkeypatch, nvml, root)
    backend.discover()

    nvml.cards[0] = {"lost": True}
    found = backend.discover()

    states = {device.index: (device.healthy, device.reason) for device in found.devices}
    assert states == {0: (False, "it does not answer: GPU is lost"), 1: (True, "")}
    assert found.message == ""
    nvml.cards[0] = card(0)
    assert all(device.healthy for device in backend.discover().devices)
    backend.close()


def test_a_device_that_was_taken_away_is_stated_no_more_and_a_new_one_is(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    nvml = FakeNVML(card(0), card(1))
    backend = backend_of(monkeypatch, nvml, root)
    backend.discover()

    (root / "dev/nvidia1").unlink()
    del nvml.cards[1]
    assert [device.index for device in backend.discover().devices] == [0]

    (root / "dev/nvidia1").touch()
    nvml.cards.append(card(1))
    assert [device.index for device in backend.discover().devices] == [0, 1]
    backend.close()


def test_a_device_without_memory_of_its_own_has_seven_eighths_of_the_hosts(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text("MemTotal:       125829120 kB\nMemFree: 1 kB\n")

    device = only_device(monkeypatch, root, without(card(0, Name="NVIDIA GB10"), "MemoryInfo"))

    assert (device.memory_bytes, device.shareable) == (105 * GIB, True)


def test_the_gpu_of_a_tegra_chip_has_its_nodes_and_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    libraries = tmp_path / "usr/lib/x86_64-linux-gnu/tegra"
    libraries.mkdir(parents=True)
    for name in ("libcuda.so.1.1", "libnvidia-ml.so.1", "libnvrm_gpu.so", "libnvos.so"):
        (libraries / name).touch()
    (libraries / "libcuda.so.1").symlink_to("libcuda.so.1.1")
    (tmp_path / "dev/nvgpu/igpu0").mkdir(parents=True)
    nodes = {"nvgpu/igpu0/as", "nvgpu/igpu0/channel", "nvhost-ctrl-gpu", "nvhost-ctrl", "nvmap"}
    for node in nodes:
        (tmp_path / "dev" / node).touch()
    (tmp_path / "dev/nvme0").touch()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:       8388608 kB\n")

    nvml = FakeNVML(without(card(0, Name="Orin (nvgpu)"), "MemoryInfo", "MinorNumber"))
    found = backend_of(monkeypatch, nvml, tmp_path).discover()

    (device,) = found.devices
    assert (device.memory_bytes, device.shareable) == (7 * GIB, True)
    files = {str(file.container_path) for file in (*device.files, *found.driver.files)}
    assert {file.removeprefix("/dev/") for file in files if file.startswith("/dev/")} == nodes
    folder = "/usr/lib/x86_64-linux-gnu/"
    assert {folder + name for name in ("libcuda.so.1", "libnvrm_gpu.so", "libnvos.so")} <= files


def test_mig_devices_are_stated_whole_with_their_profile_and_capability_files(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    part = {
        "UUID": "MIG-00000000-0000-0000-0000-000000000001",
        "Name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "Attributes": SimpleNamespace(memorySizeMB=9984, gpuInstanceSliceCount=1),
        "GpuInstanceId": 7,
        "ComputeInstanceId": 0,
    }
    capabilities = root / "proc/driver/nvidia/capabilities/gpu0/mig/gi7"
    (capabilities / "ci0").mkdir(parents=True)
    (capabilities / "access").write_text("DeviceFileMinor: 66\nDeviceFileMode: 292\n")
    (capabilities / "ci0/access").write_text("DeviceFileMinor: 67\nDeviceFileMode: 292\n")
    (root / "dev/nvidia-caps").mkdir()
    for minor in (66, 67):
        (root / f"dev/nvidia-caps/nvidia-cap{minor}").touch()

    gpu, mig = discover(
        monkeypatch, root, card(0, MigMode=(1, 1), MaxMigDeviceCount=7, MigDeviceHandleByIndex=[part])
    ).devices

    assert (gpu.type, gpu.shareable, gpu.reason) == (
        "gpu",
        False,
        "MIG mode is enabled: the device is divided by its hardware",
    )
    assert (mig.type, mig.profile, mig.memory_bytes) == ("mig", "1g.10gb", 9984 << 20)
    assert (mig.parent_uuid, mig.shareable, mig.offered, mig.healthy) == (gpu.uuid, False, True, True)
    assert [str(file.container_path) for file in mig.files] == [
        "/dev/nvidia0",
        "/dev/nvidia-caps/nvidia-cap66",
        "/dev/nvidia-caps/nvidia-cap67",
    ]


def test_a_card_that_is_bound_to_vfio_is_stated_and_not_offered(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    where = root / "sys/bus/pci/devices/0000:17:00.0"
    where.mkdir(parents=True)
    for name, content in (("vendor", "0x10de"), ("class", "0x030200"), ("device", "0x2330")):
        (where / name).write_text(f"{content}\n")
    (root / "sys/bus/pci/drivers/vfio-pci").mkdir(parents=True)
    (where / "driver").symlink_to(root / "sys/bus/pci/drivers/vfio-pci")

    found = discover(monkeypatch, root, card(0))

    bound = found.devices[1]
    assert (bound.name, bound.product_name) == ("pci-0000-17-00-0", "PCI device 10de:2330")
    assert (bound.offered, bound.reason) == (
        False,
        "bound to the kernel driver vfio-pci: it is kept for virtual machines",
    )


@pytest.mark.parametrize("term", ["gpu-00000000-0000-0000-0000-000000000000", "0", "model:*h100*"])
def test_a_device_that_the_operator_holds_back_is_stated_with_the_term_that_does(
    monkeypatch: pytest.MonkeyPatch, root: Path, term: str
) -> None:
    other = card(1, Name="NVIDIA L4")
    options = NvidiaOptions(hold_back=Filter.parse([term]))
    backend = backend_of(monkeypatch, FakeNVML(card(0), other), root, options=options)

    held, free = backend.discover().devices
    backend.close()

    assert (held.offered, held.reason) == (False, f"held back by the setting hold_back: {term}")
    assert free.offered


def test_a_filter_that_means_nothing_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Filter.parse(["GPU-1", "H100"])
    assert str(caught.value) == ("hold_back: found 'H100', expected a UUID, an index, or model:NAME such as model:*T4*")


def test_a_driver_that_was_loaded_anew_is_asked_anew(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    # NVML answers for the driver that was there when it was initialised.
    nvml = FakeNVML(card(0))
    backend = backend_of(monkeypatch, nvml, root)
    backend.discover()

    nvml.driver = "another driver"
    with pytest.raises(StateError, match="devices cannot be counted: Driver Not Loaded"):
        backend.discover()

    assert len(backend.discover().devices) == 1
    backend.close()


def test_the_driver_brings_its_libraries_to_where_loaders_look(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    found = discover(monkeypatch, root, card(0))

    real = root / "usr/lib/x86_64-linux-gnu/libcuda.so.570.124.06"
    assert DeviceFile(real, Path("/usr/lib/x86_64-linux-gnu/libcuda.so.1")) in found.driver.files
    assert DeviceFile(real, Path("/usr/lib64/libcuda.so.1")) in found.driver.files
    assert DeviceFile(root / "usr/bin/nvidia-smi", Path("/usr/bin/nvidia-smi")) in found.driver.files


def test_files_are_named_as_the_host_sees_them(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    found = discover(monkeypatch, root, card(0), on_host=Path("/"))

    assert found.devices[0].files[0].host_path == Path("/dev/nvidia0")
    assert Path("/usr/bin/nvidia-smi") in {file.host_path for file in found.driver.files}


def test_a_root_without_a_driver_is_refused_with_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(StateError) as caught:
        NvidiaDiscovery(DriverRoot(tmp_path, tmp_path)).discover()

    assert str(caught.value) == (
        f"driver root {tmp_path}: found no libnvidia-ml.so.1, expected it in one of usr/lib/x86_64-linux-gnu, "
        "usr/lib64, lib/x86_64-linux-gnu, lib64, usr/lib, "
        "usr/lib/x86_64-linux-gnu/nvidia, usr/lib/x86_64-linux-gnu/tegra"
    )


def test_an_absolute_link_stays_inside_the_root(root: Path) -> None:
    link = root / "usr/lib/x86_64-linux-gnu/libnvidia-nvvm.so.4"
    link.symlink_to("/opt/nvvm.so")
    (root / "opt").mkdir()
    (root / "opt/nvvm.so").touch()

    found = list(DriverRoot(root, Path("/")).libraries(["libnvidia-nvvm.so.4"]))

    assert [file.host_path for file in found] == [Path("/opt/nvvm.so"), Path("/opt/nvvm.so")]


def test_a_character_device_becomes_a_node_and_a_file_a_mount(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    (tmp_path / "dev/nvidiactl").symlink_to("/dev/null")

    found = {
        file.container_path.name: file for file in DriverRoot(tmp_path, tmp_path).device_files(["nvidia0", "nvidiactl"])
    }

    assert not found["nvidia0"].is_device
    assert found["nvidiactl"].is_device


_NO_TEXT = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


@pytest.mark.parametrize(
    ("uuid", "problem"),
    [
        ("GPU-\x01/..", r"found UUID 'GPU-\x01/..', expected letters, digits and dashes, 47 at most"),
        ("", "found UUID '', expected letters, digits and dashes, 47 at most"),
        ("G" * 48, f"found UUID '{'G' * 48}', expected letters, digits and dashes, 47 at most"),
        (card(0)["UUID"], f"found UUID {card(0)['UUID']}, which device 0 has, expected one of its own"),
        (_NO_TEXT, "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
)
def test_a_device_whose_uuid_names_nothing_is_told_and_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, root: Path, uuid: str | Exception, problem: str
) -> None:
    found = discover(monkeypatch, root, card(0), card(1, UUID=uuid))

    assert [device.uuid for device in found.devices] == [card(0)["UUID"]]
    assert found.message == f"device 1: {problem}"


def test_what_a_failing_device_says_of_its_memory_and_name_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    found = only_device(monkeypatch, root, card(0, MemoryInfo=SimpleNamespace(total=2**64 - 1), Name=_NO_TEXT))

    assert (found.memory_bytes, found.product_name, found.shareable) == (0, "", False)
    assert found.reason == "the driver does not say how much memory the device has"
