"""Figures of the node for Prometheus: collected when they are asked for, from the last looks at books and driver.

Registered by the agent. A share or device that is gone has no figures. docs/metrics.md lists them all; a test compares
the two.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from api import names
from kubeletplugin.hardware.devices import Device, DeviceFigures
from kubeletplugin.monitoring.bookreading import ShareReading
from kubeletplugin.monitoring.comparing import DEFAULT_SLACK, Attribution, DriverCount, Slack, overuse_bytes
from kubeletplugin.monitoring.figures import (
    DEVICE,
    DEVICE_FIGURES,
    PROCESS,
    PROCESS_FIGURES,
    SHARE,
    SHARE_FIGURES,
    families,
)
from kubeletplugin.monitoring.processfigures import ProcessNames
from kubeletplugin.monitoring.strays import StrayFigures

_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


@dataclass(frozen=True)
class NodeFigures:
    """All that is known of a node at one moment."""

    readings: Sequence[ShareReading] = ()
    unreadable: int = 0
    round_cost_s: float = 0.0
    devices: Sequence[Device] = ()
    parts: Collection[str] = ()
    """Names of the devices that the hardware made and a claim holds, which have no books."""
    measured: Sequence[DeviceFigures] = ()
    attribution: Attribution = field(default_factory=Attribution)
    overuse_counts: Mapping[str, int] = field(default_factory=dict)
    faults: Mapping[tuple[str, str], int] = field(default_factory=dict)
    strays: StrayFigures = field(default_factory=StrayFigures)
    slack: Slack = DEFAULT_SLACK
    """What is no overuse yet."""
    discovery_problem: str = ""
    """Why devices cannot be discovered."""
    discovery_age_s: float = 0.0
    inventory_age_s: float = 0.0
    leftovers: int = 0
    """Prepared claims that are gone."""


@dataclass(frozen=True)
class _Share:
    """A share with what the driver counts for it; None: it was not counted yet."""

    reading: ShareReading
    counted: DriverCount | None
    overuse_count: int
    slack: Slack

    @property
    def labels(self) -> list[str]:
        claim, limits = self.reading.claim, self.reading.limits
        return [limits.share, claim.namespace, claim.name, limits.device_uuid]

    @property
    def driver_bytes(self) -> int | None:
        return self.counted.memory_bytes if self.counted else None

    @property
    def difference_bytes(self) -> int | None:
        return self.counted.memory_bytes - self.reading.books.used_bytes if self.counted else None

    @property
    def overuse_bytes(self) -> int | None:
        return overuse_bytes(self.reading.limits, self.counted.memory_bytes, self.slack) if self.counted else None


class NodeCollector(Collector):
    """Turns what is known of the node into metrics."""

    def __init__(self, figures: Callable[[], NodeFigures]) -> None:
        """Take what returns the figures of now."""
        self._figures = figures
        self._names = ProcessNames()

    @override
    def collect(self) -> Iterator[Metric]:
        node = self._figures()
        shares = [
            _Share(
                reading,
                node.attribution.by_share.get(reading.limits.share),
                node.overuse_counts.get(reading.limits.share, 0),
                node.slack,
            )
            for reading in node.readings
        ]
        self._names.keep(share.reading.limits.share for share in shares)
        processes = [
            ([*share.labels, *name], process)
            for share in shares
            for name, process in self._names.of_share(share.reading.limits.share, share.reading.books.processes).items()
        ]
        yield from families(SHARE_FIGURES, SHARE, [(share.labels, share) for share in shares])
        yield from families(PROCESS_FIGURES, PROCESS, processes)
        yield from families(DEVICE_FIGURES, DEVICE, [([measured.uuid], measured) for measured in node.measured])
        yield from _device_states(node)
        yield from _strays(node.strays)
        yield from _agent_states(node)


class CallDurations:
    """How long the calls of the kubelet took, claim by claim."""

    def __init__(self) -> None:
        self.prepare = _histogram("vgpu_prepare_seconds", "Time to prepare a claim.")
        self.unprepare = _histogram("vgpu_unprepare_seconds", "Time to undo a claim.")

    @contextlib.contextmanager
    def measure(self, histogram: Histogram) -> Iterator[None]:
        """Count the time of a block, as an error if it raises."""
        began_s, outcome = time.monotonic(), "error"
        try:
            yield
            outcome = "ok"
        finally:
            self.note(histogram, time.monotonic() - began_s, outcome)

    def note(self, histogram: Histogram, seconds: float, outcome: str) -> None:
        """Count a time that was measured elsewhere, of an outcome "ok" or "error"."""
        histogram.labels(outcome).observe(seconds)


def _histogram(name: str, text: str) -> Histogram:
    return Histogram(name, text, ["outcome"], buckets=_BUCKETS_S, registry=None)


def _device_states(node: NodeFigures) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "vgpu_device_info", "1; what the device is.", labels=("device", "product", "type", "profile", "driver")
    )
    healthy = GaugeMetricFamily("vgpu_device_healthy", "1 while nothing is wrong with the device.", labels=DEVICE)
    offered = GaugeMetricFamily(
        "vgpu_device_offered", "1 while the node would give the device to new claims.", labels=DEVICE
    )
    shares = GaugeMetricFamily("vgpu_device_shares", "Shares of the device.", labels=DEVICE)
    memory = GaugeMetricFamily("vgpu_device_allocated_memory_bytes", "Memory of all its shares.", labels=DEVICE)
    compute = GaugeMetricFamily(
        "vgpu_device_allocated_compute_ratio", "Guaranteed GPU time of all its shares.", labels=DEVICE
    )
    for device in node.devices:
        there = [reading.limits for reading in node.readings if reading.limits.device_uuid == device.uuid]
        info.add_metric([device.uuid, device.product_name, device.type, device.profile, device.driver_version], 1)
        part = device.name in node.parts
        part_bytes, part_ratio = (device.memory_bytes, 1) if part else (0, 0)
        healthy.add_metric([device.uuid], int(device.healthy))
        offered.add_metric([device.uuid], int(device.healthy and device.offered))
        shares.add_metric([device.uuid], len(there) + part)
        memory.add_metric([device.uuid], sum(limits.memory_bytes for limits in there) + part_bytes)
        guaranteed = sum(limits.cores_percent for limits in there) / names.CORES_PER_DEVICE
        compute.add_metric([device.uuid], guaranteed + part_ratio)
    unattributed = GaugeMetricFamily(
        "vgpu_device_memory_unattributed_bytes", "Memory of processes without a share, by the driver.", labels=DEVICE
    )
    for uuid, value_bytes in node.attribution.unattributed_bytes.items():
        unattributed.add_metric([uuid], value_bytes)
    faults = CounterMetricFamily(
        "vgpu_device_faults", "Faults that the driver told of, such as xid-79.", labels=("device", "kind")
    )
    for (uuid, kind), count in node.faults.items():
        faults.add_metric([uuid, kind], count)
    yield from (info, healthy, offered, shares, memory, compute, unattributed, faults)


def _strays(strays: StrayFigures) -> Iterator[Metric]:
    overuse = GaugeMetricFamily(
        "vgpu_pod_overuse_bytes",
        "Memory of a pod without a share of the device, where that is more than the slack.",
        labels=("device", "pod_uid"),
    )
    for key, value_bytes in strays.over_bytes.items():
        overuse.add_metric(key, value_bytes)
    yield overuse
    yield CounterMetricFamily("vgpu_pod_overuse", "Times that such overuse began.", value=strays.count)


def _agent_states(node: NodeFigures) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "vgpu_claims_gone",
        "Prepared claims that are gone, and that the kubelet has not unprepared.",
        value=node.leftovers,
    )
    yield GaugeMetricFamily("vgpu_shares_unreadable", "Shares whose files are damaged.", value=node.unreadable)
    yield GaugeMetricFamily(
        "vgpu_monitor_round_seconds", "Processor time of the last look at all books.", value=node.round_cost_s
    )
    yield GaugeMetricFamily(
        "vgpu_discovery_failed",
        "1 while devices cannot be discovered, as on a node without a driver.",
        value=int(bool(node.discovery_problem)),
    )
    yield GaugeMetricFamily(
        "vgpu_discovery_age_seconds",
        "Time since a look at the devices ended; long while the driver hangs.",
        value=node.discovery_age_s,
    )
    yield GaugeMetricFamily(
        "vgpu_inventory_age_seconds",
        "Time since the API server took what the node agent states of its devices.",
        value=node.inventory_age_s,
    )
