"""Compares what the driver counts with what the shares may use: pure arithmetic. Called by the supervisor.

The library counts what goes through the API that it hooks. What does not (graphics, a program that goes around it) only
the driver sees, by process.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from kubeletplugin.devices import DeviceFigures
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
    """What the driver counts for one share."""

    memory_bytes: int = 0
    pids: tuple[int, ...] = ()
    """In the agent's pid namespace."""


@dataclass(frozen=True)
class Attribution:
    """What a driver's processes hold, by whom."""

    by_share: Mapping[str, DriverCount] = field(default_factory=dict)
    unattributed_bytes: Mapping[str, int] = field(default_factory=dict)
    """Memory of processes without a share, by the device's UUID."""


def attribute(
    figures: Iterable[DeviceFigures], limits: Iterable[Limits], shares_of: Callable[[int], frozenset[str]]
) -> Attribution:
    """Say which share holds what the driver counts by process.

    A process with several shares of one device counts for each of them by its part of their memory together.

    Args:
        figures: what the driver measures of each device.
        limits: of all shares.
        shares_of: returns the shares that a process has.
    """
    memory_bytes: dict[str, int] = {}
    pids: dict[str, list[int]] = {}
    unattributed: dict[str, int] = {}
    by_device: dict[str, dict[str, int]] = {}
    for one in limits:
        by_device.setdefault(one.device_uuid.lower(), {})[one.share] = one.memory_bytes
        memory_bytes[one.share], pids[one.share] = 0, []
    for device in figures:
        there = by_device.get(device.uuid.lower(), {})
        unattributed[device.uuid] = 0
        for process in device.processes:
            owners = sorted(shares_of(process.pid) & there.keys())
            if not owners:
                unattributed[device.uuid] += process.memory_bytes
            together = sum(there[share] for share in owners)
            for share in owners:
                memory_bytes[share] += process.memory_bytes * there[share] // together
                pids[share].append(process.pid)
    counts = {share: DriverCount(memory_bytes[share], tuple(pids[share])) for share in memory_bytes}
    return Attribution(counts, unattributed)


def overuse_bytes(limits: Limits, driver_bytes: int, slack: Slack = DEFAULT_SLACK) -> int:
    """Return by how much a share is above its limit, if that is more than its slack; else 0."""
    over_bytes = driver_bytes - limits.memory_bytes
    return over_bytes if over_bytes > slack.of(limits) else 0
