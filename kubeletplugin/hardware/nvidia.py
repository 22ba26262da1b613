"""NVIDIA devices, as NVML describes them. Called by the agent through DiscoveryBackend.

NVML comes from the driver root. What it says of a device is read by `nvidiadevices`, its health by `nvidiasigns`; here
is what needs memory: which devices there were, which faults were told, when to begin anew.
"""

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from api import names
from api.errors import StateError
from kubeletplugin.hardware.ctkspecs import find_spec
from kubeletplugin.hardware.devices import Device, DeviceFigures, Discovery, DriverProcess
from kubeletplugin.hardware.discovery import DiscoveryBackend
from kubeletplugin.hardware.driverroots import DriverRoot
from kubeletplugin.hardware.faults import Faults
from kubeletplugin.hardware.holdingback import Filter
from kubeletplugin.hardware.keptfiles import KeptFiles
from kubeletplugin.hardware.nvidiadevices import Machine, Versions, describe, unseen, without_a_name
from kubeletplugin.hardware.nvidiafiles import driver_of, with_edits
from kubeletplugin.hardware.nvidiasigns import Judge, is_settled, read_ecc, read_repairs, read_signs
from kubeletplugin.hardware.nvidiatimes import NvmlGpuTimes
from kubeletplugin.hardware.nvml import (
    NvmlSession,
    Opened,
    ask,
    error_code,
    pynvml,
    tells_of_another_driver,
)
from kubeletplugin.hardware.seendevices import SeenDevices

_EVENTS = pynvml.nvmlEventTypeXidCriticalError | pynvml.nvmlEventTypeDoubleBitEccError
_WAIT_MS = 1000
"""NVML cannot be begun anew while somebody waits for its events."""


@dataclass(frozen=True)
class NvidiaOptions:
    """What an operator can set."""

    hold_back: Filter = field(default_factory=Filter)
    ignored_xids: frozenset[int] = frozenset()
    cdi_dir: Path = Path(names.CDI_DIR)
    """Where other tools may have written CDI specs."""
    faults_file: Path | None = None
    """Where faults are kept for the agent that comes after this one."""
    seen_file: Path | None = None
    """Where GPUs and their links are kept for it."""
    uncounted_apis: bool = False
    """Give containers what programs of APIs need that no share counts: OpenCL, and graphics from a toolkit's spec."""


_DEFAULTS = NvidiaOptions()


class NvidiaDiscovery(DiscoveryBackend):
    """Asks NVML of one driver root. One per process: the binding keeps one library."""

    def __init__(self, root: DriverRoot, options: NvidiaOptions = _DEFAULTS, machine: Machine | None = None) -> None:
        self._machine = machine or Machine(root)
        self._options = options
        self._session = NvmlSession(root, self._machine.sysfs)
        self._kept = KeptFiles(root)
        self._faults = Faults(options.ignored_xids, options.faults_file)
        self._judges: dict[str, Judge] = {}
        self._seen = SeenDevices(options.seen_file)
        self._events: tuple[int, Any] = (0, None)
        """The set that is waited for, and the generation of NVML that it belongs to."""
        self._watched: dict[int | None, str] = {}
        """UUIDs of the devices in that set, by handle."""

    @override
    def discover(self) -> Discovery:
        if self._session.open() is Opened.RENEWED:
            self._faults.forget_all()
        with self._session.using():
            try:
                count = pynvml.nvmlDeviceGetCount()
            except pynvml.NVMLError as error:
                failure = StateError(f"NVML of {self._machine.root.path}: devices cannot be counted: {error}")
                failure.__cause__ = error
            else:
                return self._look(count)
        # It answers for the driver that it was initialised with, which may be another one by now.
        self._session.close(driver_gone=tells_of_another_driver(failure.__cause__))
        raise failure

    @override
    def figures(self) -> tuple[DeviceFigures, ...]:
        try:
            with self._session.using():
                handles = [ask(pynvml.nvmlDeviceGetHandleByIndex, index) for index in range(_count())]
                return tuple(figures for handle in handles if handle is not None for figures in _measure(handle))
        except StateError:
            return ()  # there is no driver now; discover() says so

    @override
    def gpu_times(self) -> NvmlGpuTimes:
        return NvmlGpuTimes(self._session)

    @override
    def wait(self, timeout_s: float) -> bool:
        try:
            with self._session.using():
                events = self._event_set()
                if events is not None:
                    return self._wait(events, min(int(timeout_s * 1000), _WAIT_MS))
        except StateError:
            pass
        return self._session.rest(timeout_s)

    @override
    def faults(self) -> Mapping[tuple[str, str], int]:
        return self._faults.counts()

    @override
    def close(self) -> None:
        self._session.close()
        self._kept.close()

    def _look(self, count: int) -> Discovery:
        self._faults.refresh()
        driver_version = str(ask(pynvml.nvmlSystemGetDriverVersion) or "")
        versions = Versions(driver_version, _cuda_version(ask(pynvml.nvmlSystemGetCudaDriverVersion_v2)))
        devices: list[Device] = []
        silent: dict[int, str] = {}
        for index in range(count):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                devices += self._examine(describe(self._machine, handle, index, versions), handle)
            except (pynvml.NVMLError, UnicodeDecodeError) as error:
                silent[index] = str(error)
        for device, problem in list(without_a_name(devices)):
            devices.remove(device)
            silent[device.index] = problem
        missing = list(self._missing({device.uuid for device in devices}, silent))
        if missing or silent:
            self._session.distrust()
        devices += missing
        self._seen.note(devices, {uuid: judge.links_seen for uuid, judge in self._judges.items()})
        devices += unseen(self._machine)
        root = self._machine.root
        toolkit = find_spec(root, self._options.cdi_dir, self._options.uncounted_apis)
        driver = driver_of(root, toolkit, self._options.uncounted_apis)
        self._kept.keep(driver)
        return Discovery(
            tuple(self._options.hold_back.apply(with_edits(device, toolkit)) for device in devices),
            driver,
            # Without a UUID there is no name to state it under.
            "; ".join(f"device {index}: {error}" for index, error in silent.items()),
        )

    def _examine(self, devices: Sequence[Device], handle: Any) -> Iterator[Device]:
        """Yield a GPU and its parts, unhealthy if the GPU is."""
        uuid = devices[0].uuid
        signs = read_signs(handle)
        if is_settled(signs):
            self._faults.settle(uuid)
        found = (self._faults.problem(uuid), self._judge(uuid).judge(signs))
        problem = "; ".join(text for text in found if text)
        for device in devices:
            noticed = replace(device, remap_pending=signs.remap_pending, pages_pending=signs.pages_pending)
            yield replace(noticed, healthy=False, reason=problem) if problem else noticed

    def _judge(self, uuid: str) -> Judge:
        if uuid not in self._judges:
            self._judges[uuid] = Judge(self._seen.links(uuid))
        return self._judges[uuid]

    def _missing(self, found: set[str], silent: dict[int, str]) -> Iterator[Device]:
        """Yield the devices that were there before and do not answer now; those that were taken away are not.

        Args:
            found: UUIDs of those that answer.
            silent: errors by index; those that belong to a known device are taken out.
        """
        errors = {
            device.uuid: silent.pop(device.index, "")
            for device in self._seen.devices.values()
            if not device.parent_uuid
        }
        for device in self._seen.devices.values():
            gpu = device.parent_uuid or device.uuid
            if gpu in found:
                continue  # a part whose GPU answers was undone
            nodes = [file.container_path.name for file in device.files[:1]]
            if errors.get(gpu) or list(self._machine.root.device_files(nodes)):
                reason = errors.get(gpu) or "the driver does not list it any more"
                yield replace(device, healthy=False, reason=f"it does not answer: {reason}")

    def _event_set(self) -> Any:
        """Return a set with the events of all devices; None where NVML has no events."""
        generation, events = self._events
        if generation == self._session.generation:
            return events
        events = ask(pynvml.nvmlEventSetCreate)
        self._watched.clear()
        for index in range(_count() if events is not None else 0):
            handle = ask(pynvml.nvmlDeviceGetHandleByIndex, index)
            if handle is None:
                continue
            wanted = (ask(pynvml.nvmlDeviceGetSupportedEventTypes, handle) or 0) & _EVENTS
            ask(pynvml.nvmlDeviceRegisterEvents, handle, wanted, events)
            # By address: a device that fell off the bus does not tell its UUID any more.
            self._watched[_address(handle)] = str(ask(pynvml.nvmlDeviceGetUUID, handle) or "")
        self._events = self._session.generation, events
        return events

    def _wait(self, events: Any, timeout_ms: int) -> bool:
        try:
            event = pynvml.nvmlEventSetWait_v2(events, timeout_ms)
        except pynvml.NVMLError as error:
            if error_code(error) == pynvml.NVML_ERROR_TIMEOUT:
                return False
            self._session.distrust()
            raise StateError(f"events of NVML: {error}") from error
        uuid = self._watched.get(_address(event.device), "")
        if event.eventType == pynvml.nvmlEventTypeXidCriticalError:
            return self._faults.tell_xid(uuid, int(event.eventData))
        self._faults.count(uuid, "ecc-uncorrected")
        return True


def _count() -> int:
    return int(ask(pynvml.nvmlDeviceGetCount) or 0)


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _measure(handle: Any) -> Iterator[DeviceFigures]:
    """Yield the figures of a device, if it answers."""
    uuid = ask(pynvml.nvmlDeviceGetUUID, handle)
    if uuid is None:
        return
    memory = ask(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2) or ask(
        pynvml.nvmlDeviceGetMemoryInfo, handle
    )
    load = ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    milliwatts = ask(pynvml.nvmlDeviceGetPowerUsage, handle)
    millijoules = ask(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    yield DeviceFigures(
        uuid=str(uuid),
        memory_bytes=int(memory.total) if memory else None,
        memory_used_bytes=int(memory.used) if memory else None,
        utilization_percent=int(load.gpu) if load else None,
        temperature_celsius=ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        power_watts=None if milliwatts is None else milliwatts / 1e3,
        energy_joules=None if millijoules is None else millijoules / 1e3,
        ecc_uncorrected=read_ecc(handle),
        memory_repairs=read_repairs(handle),
        processes=tuple(_processes(handle)),
    )


def _processes(handle: Any) -> Iterator[DriverProcess]:
    """Yield each process on a device once: one that computes and draws is in both lists."""
    found: dict[int, int] = {}
    for function in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses):
        for process in ask(function, handle) or ():
            found[process.pid] = max(found.get(process.pid, 0), process.usedGpuMemory or 0)
    for pid, memory_bytes in found.items():
        yield DriverProcess(pid, memory_bytes)


def _cuda_version(version: int | None) -> str:
    return f"{version // 1000}.{version % 1000 // 10}" if version else ""
