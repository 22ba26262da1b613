"""Devices of a node as the agent knows them: facts, and the files that a container needs to use them.

Made by the discovery backends; read by preparing (which device is meant), by the CDI specs (what to inject) and by
the inventory (what to state).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api import names
from api.errors import ClaimError
from api.names import DeviceName


@dataclass(frozen=True)
class DeviceFile:
    """A file of a device or of its driver that a container gets."""

    host_path: Path
    """As the container runtime sees it."""
    container_path: Path
    is_device: bool = False
    """True: a character device, created in the container. False: a regular file, mounted (libraries; a simulated
    card)."""


@dataclass(frozen=True)
class Device:
    """One device, as its driver describes it. What the driver does not say stays at its default."""

    vendor: str
    uuid: str
    """As the driver gives it, "GPU-..."; limits are bound to it."""
    index: int
    product_name: str = ""
    memory_bytes: int = 0
    architecture: str = ""
    compute_capability: str = ""
    driver_version: str = ""
    runtime_version: str = ""
    pci_bus_id: str = ""
    pcie_root: str = ""
    numa_node: int | None = None
    links: frozenset[str] = frozenset()
    """PCI addresses of what its active links to other devices lead to: GPUs, or switches before them."""
    mig_capable: bool | None = None
    """Its hardware can divide it; None: not known."""
    files: tuple[DeviceFile, ...] = ()
    """Its device nodes; those of the driver as a whole are in `Driver`."""
    toolkit: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What the vendor's own tool would do for it beside: CDI containerEdits."""
    type: str = names.DEVICE_TYPE_GPU
    profile: str = ""
    """Of a MIG device, such as 1g.10gb."""
    parent_uuid: str = ""
    """Of a MIG device: the GPU that it is a part of."""
    healthy: bool = True
    shareable: bool = True
    """False: kept out of fractions; `reason` says why."""
    offered: bool = True
    """False: kept out altogether, held back or not the driver's to give; `reason` says why."""
    reason: str = ""
    """Why it is not healthy, not shareable or not offered."""
    remap_pending: bool = False
    """Rows of its memory are remapped at the next reset."""
    pages_pending: bool = False
    """Pages of its memory are retired at the next reset."""

    @property
    def name(self) -> DeviceName:
        """Name in ResourceSlices and CDI."""
        return names.device_name(self.uuid)

    @property
    def notice(self) -> str:
        """What waits for the next reset of a device that is fit until then; empty if nothing does."""
        waiting = (
            ("rows of its memory are remapped", self.remap_pending),
            ("pages of its memory are retired", self.pages_pending),
        )
        return "; ".join(f"{text} at the next reset" for text, found in waiting if found)


@dataclass(frozen=True)
class Driver:
    """What every container with a device of this driver gets."""

    files: tuple[DeviceFile, ...] = ()
    toolkit: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What the vendor's own tool would do for each container beside: CDI containerEdits."""
    toolkit_version: str = ""
    """Of CDI, in which they are written."""


@dataclass(frozen=True)
class Discovery:
    """What a backend found at one moment."""

    devices: tuple[Device, ...] = ()
    driver: Driver = field(default_factory=Driver)
    message: str = ""
    """What keeps the agent from seeing all devices; empty if nothing does."""


@dataclass(frozen=True)
class DriverProcess:
    """A process that uses a device, as the driver counts it."""

    pid: int
    """In the agent's pid namespace, which has to be the host's."""
    memory_bytes: int


@dataclass(frozen=True)
class MemoryRepairs:
    """How a device has mended its memory."""

    rows_corrected: int
    """Rows that were remapped for errors that could be corrected."""
    rows_uncorrected: int
    """The same for errors that could not."""
    remap_pending: bool
    """Rows are remapped at the next reset."""
    remap_failed: bool
    retirement_pending: bool
    """Pages are retired at the next reset."""


@dataclass(frozen=True)
class DeviceFigures:
    """What a driver measures of a device. None: it does not say."""

    uuid: str
    memory_bytes: int | None = None
    memory_used_bytes: int | None = None
    """Without what the driver reserves for itself."""
    utilization_percent: int | None = None
    temperature_celsius: int | None = None
    power_watts: float | None = None
    energy_joules: float | None = None
    """Since the driver was loaded."""
    ecc_uncorrected: int | None = None
    """Memory errors that could not be corrected, since the driver was loaded."""
    memory_repairs: MemoryRepairs | None = None
    processes: tuple[DriverProcess, ...] = ()


class DeviceTable:
    """Devices by name. Immutable: who holds one sees one moment of the node."""

    def __init__(self, devices: Iterable[Device]) -> None:
        self._by_name: Mapping[str, Device] = {device.name: device for device in devices}

    def find(self, name: str, where: str) -> Device:
        """Return the device of an allocation result.

        Args:
            name: as published in the ResourceSlice.
            where: names the claim, for the message.

        Raises:
            ClaimError: this node has no such device (any more).
        """
        try:
            return self._by_name[name]
        except KeyError:
            there = ", ".join(sorted(self._by_name)) or "none"
            raise ClaimError(f"{where}: allocated device {name} is not on this node, found {there}") from None

    def __iter__(self) -> Iterator[Device]:
        return iter(self._by_name.values())
