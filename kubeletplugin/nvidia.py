"""NVIDIA devices, as NVML describes them. Called by the agent through DiscoveryBackend.

NVML comes from the driver root: the library is loaded by its full path first, so that the binding's own look-up by
name finds that one. Source: NVML API reference (nvml.h); the files that compute work needs, by the names that the
driver installs.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml as _pynvml
from typing_extensions import override

from api import names
from api.errors import StateError
from kubeletplugin.devices import Device, Discovery, Driver
from kubeletplugin.discovery import DiscoveryBackend
from kubeletplugin.driverroots import LIBRARY_FOLDERS, DriverRoot

pynvml: Any = _pynvml  # ships no types

VENDOR = "nvidia"
_NVML = "libnvidia-ml.so.1"
_LIBRARIES = (
    "libcuda.so.1",
    _NVML,
    "libcudadebugger.so.1",
    "libnvidia-cfg.so.1",
    "libnvidia-gpucomp.so.*",
    "libnvidia-nvvm.so.4",
    "libnvidia-nvvm70.so.4",
    "libnvidia-opencl.so.1",
    "libnvidia-ptxjitcompiler.so.1",
)
_PROGRAMS = ("nvidia-smi",)
_CONTROL_NODES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
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


class NvidiaDiscovery(DiscoveryBackend):
    """Asks NVML of one driver root. One per process: the binding keeps one library."""

    def __init__(self, root: DriverRoot, sysfs: Path = Path("/sys")) -> None:
        self._root = root
        self._sysfs = sysfs
        self._loaded = False

    @override
    def discover(self) -> Discovery:
        self._load()
        try:
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            self.close()  # it answers for the driver that it was initialised with, which may be another one by now
            raise StateError(f"NVML of {self._root.path}: devices cannot be counted: {error}") from error
        driver_version = _ask(pynvml.nvmlSystemGetDriverVersion) or ""
        runtime_version = _cuda_version(_ask(pynvml.nvmlSystemGetCudaDriverVersion_v2))
        devices: list[Device] = []
        problems: list[str] = []
        for index in range(count):
            try:
                devices.append(self._describe(index, driver_version, runtime_version))
            except pynvml.NVMLError as error:
                # Without a UUID there is no name to state it under.
                problems.append(f"device {index}: {error}")
        driver_files = (
            *self._root.device_files(_CONTROL_NODES),
            *self._root.libraries(_LIBRARIES),
            *self._root.binaries(_PROGRAMS),
        )
        return Discovery(tuple(devices), Driver(driver_files), "; ".join(problems))

    @override
    def close(self) -> None:
        if self._loaded:
            self._loaded = False
            _ask(pynvml.nvmlShutdown)

    def _load(self) -> None:
        if self._loaded:
            return
        library = self._root.find_library(_NVML)
        if library is None:
            raise StateError(
                f"driver root {self._root.path}: found no {_NVML}, expected it in one of {', '.join(LIBRARY_FOLDERS)}"
            )
        devices = self._root.path / "dev"
        if self._root.path != Path("/") and devices.is_dir():
            os.environ[names.ENV_STUB_DEVICE_DIR] = str(devices)
        try:
            ctypes.CDLL(str(self._root.resolve(library)), mode=ctypes.RTLD_GLOBAL)
            pynvml.nvmlInit()
        except (OSError, pynvml.NVMLError) as error:
            raise StateError(f"{library}: cannot be used: {error}") from error
        self._loaded = True

    def _describe(self, index: int, driver_version: str, runtime_version: str) -> Device:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        minor = _ask(pynvml.nvmlDeviceGetMinorNumber, handle)
        bus_id = _bus_id(_ask(pynvml.nvmlDeviceGetPciInfo, handle))
        capability = _ask(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
        memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
        files = tuple(self._root.device_files((f"nvidia{index if minor is None else minor}",)))
        memory_bytes = int(memory.total) if memory is not None else 0
        reason = _unshareable(handle, memory_bytes, has_files=bool(files))
        return Device(
            vendor=VENDOR,
            uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
            index=index,
            product_name=str(_ask(pynvml.nvmlDeviceGetName, handle) or ""),
            memory_bytes=memory_bytes,
            architecture=_ARCHITECTURES.get(_ask(pynvml.nvmlDeviceGetArchitecture, handle), ""),
            compute_capability=f"{capability[0]}.{capability[1]}" if capability else "",
            driver_version=driver_version,
            runtime_version=runtime_version,
            pci_bus_id=bus_id,
            pcie_root=self._pcie_root(bus_id),
            numa_node=self._numa_node(bus_id),
            files=files,
            shareable=not reason,
            reason=reason,
        )

    def _pcie_root(self, bus_id: str) -> str:
        path = self._sysfs / "bus/pci/devices" / bus_id
        if not bus_id or not path.exists():
            return ""
        return next((part for part in path.resolve().parts if part.startswith("pci0")), "")

    def _numa_node(self, bus_id: str) -> int | None:
        try:
            node = int((self._sysfs / "bus/pci/devices" / bus_id / "numa_node").read_text())
        except (OSError, ValueError):
            return None
        return node if node >= 0 else None  # the kernel says -1 where there is none


def _unshareable(handle: Any, memory_bytes: int, *, has_files: bool) -> str:
    """Return why a device cannot be offered in fractions, empty if it can."""
    if (_ask(pynvml.nvmlDeviceGetMigMode, handle) or (0,))[0] == pynvml.NVML_DEVICE_MIG_ENABLE:
        return "MIG mode is enabled: the device is divided by its hardware"
    if not memory_bytes:
        return "the driver does not say how much memory the device has"
    if not has_files:
        return "its device node is missing: the driver does not serve it now"
    return ""


def _ask(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what NVML answers, None where this device or driver has no answer."""
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None


def _bus_id(info: Any) -> str:
    """Return the address as sysfs writes it: a domain of 4 digits, lower case (NVML gives 8)."""
    if info is None:
        return ""
    domain, _, rest = str(info.busId).lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}" if rest else ""


def _cuda_version(version: int | None) -> str:
    return f"{version // 1000}.{version % 1000 // 10}" if version else ""
