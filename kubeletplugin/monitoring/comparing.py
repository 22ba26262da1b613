"""Compares what the driver counts with what the shares may use: pure arithmetic. Called by the supervisor.

The library counts what goes through the API that it hooks. What does not (graphics, a program that goes around it) only
the driver sees, by process.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from kubeletplugin.hardware.devices import DeviceFigures, DriverProcess
from libvgpu.shares import Limits


@dataclass(frozen=True)
class Slack:
    """What a share may have above its limit, the larger of both: drivers size contexts and their like differently."""

    memory_bytes: int = 256 << 20
    percent: int = 5
    """Of the share's memory."""

    def of(self, limits: Limits) -> int:
        """Return the slack of a share in bytes."""
        return max(self.memory_bytes, limits.memory_bytes * self.percent // 100)


DEFAULT_SLACK = Slack()


@dataclass(frozen=True)
class DriverCount:
    """What the driver counts for one share, or for one pod."""

    memory_bytes: int = 0
    pids: tuple[int, ...] = ()
    """In the agent's pid namespace."""

    def with_process(self, process: DriverProcess) -> "DriverCount":
        """Return the count with one more process."""
        return DriverCount(self.memory_bytes + process.memory_bytes, (*self.pids, process.pid))


@dataclass(frozen=True)
class Attribution:
    """What a driver's processes hold, by whom."""

    by_share: Mapping[str, DriverCount] = field(default_factory=dict)
    unattributed_bytes: Mapping[str, int] = field(default_factory=dict)
    """Memory of processes without a share, by the device's UUID."""
    strays: Mapping[tuple[str, str], DriverCount] = field(default_factory=dict)
    """The part of it that pods hold on devices with shares, by the device's UUID and the pod's."""


class Owners(Protocol):
    """Whose processes are whose."""

    def shares_of(self, pid: int) -> frozenset[str]:
        """Return the shares that a process has."""

    def pod_of(self, pid: int) -> str:
        """Return the UID of the pod that a process is in; empty if it is in none, or in one that may observe."""


def attribute(figures: Iterable[DeviceFigures], limits: Iterable[Limits], owners: Owners) -> Attribution:
    """Say which share holds what the driver counts by process.

    A process with several shares of one device counts for each of them by its part of their memory together.

    Args:
        figures: what the driver measures of each device.
        limits: of all shares.
        owners: say whose the processes are.
    """
    memory_bytes: dict[str, int] = {}
    pids: dict[str, list[int]] = {}
    unattributed: dict[str, int] = {}
    strays: dict[tuple[str, str], DriverCount] = {}
    by_device: dict[str, dict[str, int]] = {}
    for one in limits:
        by_device.setdefault(one.device_uuid.lower(), {})[one.share] = one.memory_bytes
        memory_bytes[one.share], pids[one.share] = 0, []
    for device in figures:
        there = by_device.get(device.uuid.lower(), {})
        unattributed[device.uuid] = 0
        for process in device.processes:
            having = sorted(owners.shares_of(process.pid) & there.keys())
            if not having:
                unattributed[device.uuid] += process.memory_bytes
                pod = owners.pod_of(process.pid) if there else ""
                if pod:
                    before = strays.get((device.uuid, pod), DriverCount())
                    strays[device.uuid, pod] = before.with_process(process)
            together = sum(there[share] for share in having)
            for share in having:
                memory_bytes[share] += process.memory_bytes * there[share] // together
                pids[share].append(process.pid)
    counts = {share: DriverCount(memory_bytes[share], tuple(pids[share])) for share in memory_bytes}
    return Attribution(counts, unattributed, strays)


def overuse_bytes(limits: Limits, driver_bytes: int, slack: Slack = DEFAULT_SLACK) -> int:
    """Return by how much a share is above its limit, if that is more than its slack; else 0."""
    over_bytes = driver_bytes - limits.memory_bytes
    return over_bytes if over_bytes > slack.of(limits) else 0
