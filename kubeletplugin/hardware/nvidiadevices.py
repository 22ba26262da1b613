"""Describes NVIDIA devices: what NVML and sysfs say of a GPU, of its MIG devices, and of cards that NVML cannot see.

Called by the NVIDIA backend. Source: NVML API reference; MIG user guide (capability files); the files that compute
work needs, by the names that the driver installs.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from api import names
from kubeletplugin.hardware.devices import Device, DeviceFile
from kubeletplugin.hardware.driverroots import DriverRoot
from kubeletplugin.hardware.linkislands import nvlinks
from kubeletplugin.hardware.nvml import ask, pci_devices, pynvml

VENDOR = "nvidia"
_VFIO_DRIVERS = {"vfio-pci", "nvgrace_gpu_vfio_pci", "pci-stub"}
_ARCHITECTURES = {
    pynvml.NVML_DEVICE_ARCH_KEPLER: "Kepler",
    pynvml.NVML_DEVICE_ARCH_MAXWELL: "Maxwell",
    pynvml.NVML_DEVICE_ARCH_PASCAL: "Pascal",
    pynvml.NVML_DEVICE_ARCH_VOLTA: "Volta",
    pynvml.NVML_DEVICE_ARCH_TURING: "Turing",
    pynvml.NVML_DEVICE_ARCH_AMPERE: "Ampere",
    pynvml.NVML_DEVICE_ARCH_ADA: "Ada Lovelace",
    pynvml.NVML_DEVICE_ARCH_HOPPER: "Hopper",
    pynvml.NVML_DEVICE_ARCH_BLACKWELL: "Blackwell",
}
_NODES_OF_A_TEGRA = ("nvgpu/igpu0/*", "nvhost-*gpu")
"""Of the GPU in the chip, which has no node of its own name. Source: device nodes that the container toolkit lists for
Jetson Linux."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?")
"""What can name a device in a ResourceSlice and in CDI, and stand as UUID in limits (47 bytes)."""
_MOST_MEMORY_BYTES = 1 << 50
"""Above that it is what registers say that nobody answers for (all ones), and no API server would take it."""
_HOST_MEMORY_PARTS = 7, 8
"""Of the host's memory, what a device without memory of its own counts as: the rest is for the system itself."""


@dataclass(frozen=True)
class Machine:
    """Where facts about devices are found beside NVML."""

    root: DriverRoot
    sysfs: Path = Path("/sys")
    proc: Path = Path("/proc")

    def host_memory_bytes(self) -> int:
        """Return the memory of the host; 0 if it cannot be read."""
        try:
            lines = (self.proc / "meminfo").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:"))
        except (OSError, ValueError, StopIteration):
            return 0


@dataclass(frozen=True)
class Versions:
    """Of the driver as a whole."""

    driver: str
    runtime: str


def describe(machine: Machine, handle: Any, index: int, versions: Versions) -> list[Device]:
    """Return a GPU, and behind it its MIG devices.

    Raises:
        NVMLError: the device does not answer.
    """
    gpu = _describe_gpu(machine, handle, index, versions)
    if not _has_mig(handle):
        return [gpu]
    return [gpu, *_describe_parts(machine, handle, gpu)]


def without_a_name(devices: Iterable[Device]) -> Iterator[tuple[Device, str]]:
    """Yield the devices that cannot be stated, and why: one of them would have all of a node refused.

    Their UUIDs are no names (hardware that fails answers anything; drivers before 470 have slashes in those of MIG
    devices), or those of other devices.
    """
    seen: dict[str, Device] = {}
    for device in devices:
        first = seen.setdefault(device.name, device)
        if not _NAME.fullmatch(device.name):
            yield device, f"found UUID {device.uuid!r}, expected letters, digits and dashes, 47 at most"
        elif first is not device:
            yield device, f"found UUID {device.uuid}, which device {first.index} has, expected one of its own"


def unseen(machine: Machine) -> Iterator[Device]:
    """Yield the GPUs that the driver cannot see since they are handed to virtual machines."""
    for address, driver in pci_devices(machine.sysfs):
        if driver in _VFIO_DRIVERS:
            yield Device(
                vendor=VENDOR,
                uuid=f"PCI-{address.replace(':', '-').replace('.', '-')}",
                index=0,
                product_name=f"PCI device {_pci_id(machine, address)}",
                pci_bus_id=address,
                pcie_root=_pcie_root(machine, address),
                numa_node=_numa_node(machine, address),
                shareable=False,
                offered=False,
                reason=f"bound to the kernel driver {driver}: it is kept for virtual machines",
            )


def _describe_gpu(machine: Machine, handle: Any, index: int, versions: Versions) -> Device:
    minor = ask(pynvml.nvmlDeviceGetMinorNumber, handle)
    bus_id = _bus_id(ask(pynvml.nvmlDeviceGetPciInfo, handle))
    capability = ask(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    memory_bytes = _memory_bytes(machine, handle)
    files = tuple(machine.root.device_files((f"nvidia{index if minor is None else minor}",))) or tuple(
        machine.root.device_files(_NODES_OF_A_TEGRA)
    )
    reason = _unshareable(handle, memory_bytes, has_files=bool(files))
    return Device(
        vendor=VENDOR,
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        index=index,
        product_name=str(ask(pynvml.nvmlDeviceGetName, handle) or ""),
        memory_bytes=memory_bytes,
        architecture=_ARCHITECTURES.get(ask(pynvml.nvmlDeviceGetArchitecture, handle), ""),
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else "",
        driver_version=versions.driver,
        runtime_version=versions.runtime,
        pci_bus_id=bus_id,
        pcie_root=_pcie_root(machine, bus_id),
        numa_node=_numa_node(machine, bus_id),
        links=nvlinks(handle, _bus_id),
        mig_capable=ask(pynvml.nvmlDeviceGetMigMode, handle) is not None,
        files=files,
        shareable=not reason,
        reason=reason,
    )


def _memory_bytes(machine: Machine, handle: Any) -> int:
    try:
        found_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
        return found_bytes if found_bytes <= _MOST_MEMORY_BYTES else 0
    except pynvml.NVMLError as error:
        if getattr(error, "value", None) != pynvml.NVML_ERROR_NOT_SUPPORTED:
            raise
    # No memory of its own (GB10, Jetson): it works in the host's.
    part, whole = _HOST_MEMORY_PARTS
    usable_bytes = machine.host_memory_bytes() * part // whole
    return usable_bytes - usable_bytes % names.MEMORY_STEP_BYTES


def _has_mig(handle: Any) -> bool:
    return bool((ask(pynvml.nvmlDeviceGetMigMode, handle) or (0,))[0] == pynvml.NVML_DEVICE_MIG_ENABLE)


def _unshareable(handle: Any, memory_bytes: int, *, has_files: bool) -> str:
    """Return why a device cannot be offered in fractions, empty if it can."""
    if _has_mig(handle):
        return "MIG mode is enabled: the device is divided by its hardware"
    if not memory_bytes:
        return "the driver does not say how much memory the device has"
    if not has_files:
        return "its device node is missing: the driver does not serve it now"
    return ""


def _describe_parts(machine: Machine, handle: Any, gpu: Device) -> Iterator[Device]:
    for number in range(ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        part = ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        uuid = ask(pynvml.nvmlDeviceGetUUID, part) if part is not None else None
        if not uuid:
            continue  # fewer were made than there could be
        facts = ask(pynvml.nvmlDeviceGetAttributes, part)
        capabilities = _capability_files(machine, gpu, part)
        yield replace(
            gpu,
            uuid=str(uuid),
            type=names.DEVICE_TYPE_MIG,
            profile=_profile(str(ask(pynvml.nvmlDeviceGetName, part) or ""), facts),
            parent_uuid=gpu.uuid,
            memory_bytes=int(facts.memorySizeMB) << 20 if facts else 0,
            files=(*gpu.files, *capabilities),
            shareable=False,
            offered=bool(capabilities),
            reason="" if capabilities else "its capability files are missing: it cannot be given to a container",
        )


def _profile(name: str, facts: Any) -> str:
    """Return a MIG profile such as 1g.10gb, from the device's name or else from its size."""
    _, found, profile = name.partition(" MIG ")
    if found:
        return profile.strip()
    return f"{facts.gpuInstanceSliceCount}g.{facts.memorySizeMB // 1024}gb" if facts else ""


def _capability_files(machine: Machine, gpu: Device, part: Any) -> tuple[DeviceFile, ...]:
    """Return the nodes that open a GPU instance and its compute instance, empty if one is missing."""
    minor = next((file.container_path.name.removeprefix("nvidia") for file in gpu.files), "")
    instance, compute = (
        ask(pynvml.nvmlDeviceGetGpuInstanceId, part),
        ask(pynvml.nvmlDeviceGetComputeInstanceId, part),
    )
    folder = machine.proc / f"driver/nvidia/capabilities/gpu{minor}/mig/gi{instance}"
    nodes: list[str] = []
    for path in (folder / "access", folder / f"ci{compute}/access"):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            return ()
        nodes += [f"nvidia-caps/nvidia-cap{line.split()[1]}" for line in lines if line.startswith("DeviceFileMinor:")]
    files = tuple(machine.root.device_files(nodes))
    return files if len(files) == 2 else ()


def _pci_id(machine: Machine, address: str) -> str:
    folder = machine.sysfs / "bus/pci/devices" / address
    try:
        return ":".join((folder / name).read_text().strip().removeprefix("0x") for name in ("vendor", "device"))
    except OSError:
        return "unknown"


def _pcie_root(machine: Machine, bus_id: str) -> str:
    path = machine.sysfs / "bus/pci/devices" / bus_id
    if not bus_id or not path.exists():
        return ""
    return next((part for part in path.resolve().parts if part.startswith("pci0")), "")


def _numa_node(machine: Machine, bus_id: str) -> int | None:
    try:
        node = int((machine.sysfs / "bus/pci/devices" / bus_id / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None  # the kernel says -1 where there is none


def _bus_id(info: Any) -> str:
    """Return the address as sysfs writes it: a domain of 4 digits, lower case (NVML gives 8)."""
    if info is None:
        return ""
    domain, _, rest = str(info.busId).lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}" if rest else ""
