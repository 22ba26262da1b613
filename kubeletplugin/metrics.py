"""Figures of the node for Prometheus: collected when they are asked for, from the last looks at books and driver.

Registered by the agent. A share or device that is gone has no figures. docs/metrics.md lists them all; a test compares
the two.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from api import names
from kubeletplugin.comparing import DEFAULT_SLACK, Attribution, DriverCount, Slack, overuse_bytes
from kubeletplugin.devices import Device, DeviceFigures
from kubeletplugin.monitoring import ShareReading

_SHARE = ("share", "namespace", "claim", "device")
_PROCESS = (*_SHARE, "pid", "command")
_DEVICE = ("device",)
_NS = 1e-9
_PERCENT = 1e-2
_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


@dataclass(frozen=True)
class NodeFigures:
    """All that is known of a node at one moment."""

    readings: Sequence[ShareReading] = ()
    unreadable: int = 0
    round_cost_s: float = 0.0
    devices: Sequence[Device] = ()
    measured: Sequence[DeviceFigures] = ()
    attribution: Attribution = field(default_factory=Attribution)
    overuse_counts: Mapping[str, int] = field(default_factory=dict)
    faults: Mapping[tuple[str, str], int] = field(default_factory=dict)
    slack: Slack = DEFAULT_SLACK
    """What is no overuse yet."""
    discovery_problem: str = ""
    """Why devices cannot be discovered."""
    discovery_age_s: float = 0.0


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


@dataclass(frozen=True)
class _Figure:
    """A metric with one value for each thing of a kind."""

    name: str
    text: str
    value: Callable[[Any], float | None]
    """None: not known, so there is no sample."""
    is_counter: bool = False


def _repair(measured: DeviceFigures, field_: str) -> int | None:
    return None if measured.memory_repairs is None else int(getattr(measured.memory_repairs, field_))


_SHARE_FIGURES = (
    _Figure("vgpu_share_memory_bytes", "Device memory in use, by the books.", lambda s: s.reading.books.used_bytes),
    _Figure("vgpu_share_memory_limit_bytes", "Device memory allowed.", lambda s: s.reading.limits.memory_bytes),
    _Figure("vgpu_share_memory_peak_bytes", "Most device memory ever in use.", lambda s: s.reading.books.peak_bytes),
    _Figure(
        "vgpu_share_memory_host_bytes", "Memory that lies on the host instead.", lambda s: s.reading.books.host_bytes
    ),
    _Figure(
        "vgpu_share_memory_host_limit_bytes",
        "Host memory allowed beside it, where the share may oversubscribe.",
        lambda s: s.reading.limits.host_memory_bytes,
    ),
    _Figure(
        "vgpu_share_memory_driver_bytes", "Memory of the share's processes, by the driver.", lambda s: s.driver_bytes
    ),
    _Figure(
        "vgpu_share_memory_difference_bytes",
        "What the driver counts and the books do not.",
        lambda s: s.difference_bytes,
    ),
    _Figure(
        "vgpu_share_overuse_bytes", "Memory above the limit by the driver, beyond the slack.", lambda s: s.overuse_bytes
    ),
    _Figure("vgpu_share_overuse", "Times that overuse began.", lambda s: s.overuse_count, is_counter=True),
    _Figure(
        "vgpu_share_compute_guaranteed_ratio",
        "Guaranteed GPU time; 1 is a whole device.",
        lambda s: s.reading.limits.cores_percent * _PERCENT,
    ),
    _Figure(
        "vgpu_share_compute_ceiling_ratio",
        "Most GPU time, on an idle device too.",
        lambda s: s.reading.limits.ceiling_percent * _PERCENT,
    ),
    _Figure(
        "vgpu_share_compute_granted_ratio",
        "GPU time that a Burst share may use now; 0: up to its ceiling.",
        lambda s: s.reading.limits.granted_percent * _PERCENT,
    ),
    _Figure(
        "vgpu_share_compute_utilization_ratio", "GPU time used in the last interval.", lambda s: s.reading.utilization
    ),
    _Figure("vgpu_share_priority", "Priority on its device.", lambda s: s.reading.limits.priority),
    _Figure("vgpu_share_suspended", "1 while the share is suspended.", lambda s: int(s.reading.limits.suspended)),
    _Figure("vgpu_share_processes", "Processes that use the device.", lambda s: len(s.reading.books.processes)),
    _Figure("vgpu_share_gpu_seconds", "GPU time used.", lambda s: s.reading.books.gpu_time_ns * _NS, is_counter=True),
    _Figure(
        "vgpu_share_throttled_seconds",
        "Time that launches waited for GPU time, over all threads.",
        lambda s: s.reading.books.throttled_ns * _NS,
        is_counter=True,
    ),
    _Figure("vgpu_share_launches", "Kernel and graph launches.", lambda s: s.reading.books.launches, is_counter=True),
    _Figure(
        "vgpu_share_out_of_memory",
        "Requests refused for the limit.",
        lambda s: s.reading.books.out_of_memory,
        is_counter=True,
    ),
)
_PROCESS_FIGURES = (
    _Figure("vgpu_process_memory_bytes", "Device memory of a process, by the books.", lambda p: p.memory_bytes),
    _Figure("vgpu_process_memory_host_bytes", "Memory of a process that lies on the host.", lambda p: p.host_bytes),
    _Figure("vgpu_process_gpu_seconds", "GPU time used by a process.", lambda p: p.gpu_time_ns * _NS, is_counter=True),
)
_DEVICE_FIGURES = (
    _Figure("vgpu_device_memory_bytes", "Memory of the device.", lambda d: d.memory_bytes),
    _Figure("vgpu_device_memory_used_bytes", "Memory in use, by the driver.", lambda d: d.memory_used_bytes),
    _Figure(
        "vgpu_device_utilization_ratio",
        "Time with work on the device, by the driver.",
        lambda d: None if d.utilization_percent is None else d.utilization_percent * _PERCENT,
    ),
    _Figure("vgpu_device_temperature_celsius", "Temperature of the device.", lambda d: d.temperature_celsius),
    _Figure("vgpu_device_power_watts", "Power that the device draws.", lambda d: d.power_watts),
    _Figure(
        "vgpu_device_energy_joules", "Energy since the driver was loaded.", lambda d: d.energy_joules, is_counter=True
    ),
    _Figure(
        "vgpu_device_ecc_uncorrected",
        "Memory errors that were not corrected, since the driver was loaded.",
        lambda d: d.ecc_uncorrected,
        is_counter=True,
    ),
    _Figure(
        "vgpu_device_rows_remapped_corrected",
        "Rows of its memory that were remapped for errors that could be corrected.",
        lambda d: _repair(d, "rows_corrected"),
    ),
    _Figure(
        "vgpu_device_rows_remapped_uncorrected",
        "Rows of its memory that were remapped for errors that could not be corrected.",
        lambda d: _repair(d, "rows_uncorrected"),
    ),
    _Figure(
        "vgpu_device_remap_pending",
        "1 while rows wait to be remapped at the next reset.",
        lambda d: _repair(d, "remap_pending"),
    ),
    _Figure("vgpu_device_remap_failed", "1 if a row could not be remapped.", lambda d: _repair(d, "remap_failed")),
    _Figure(
        "vgpu_device_page_retirement_pending",
        "1 while pages wait to be retired at the next reset.",
        lambda d: _repair(d, "retirement_pending"),
    ),
)


class NodeCollector(Collector):
    """Turns what is known of the node into metrics."""

    def __init__(self, figures: Callable[[], NodeFigures]) -> None:
        """Take what returns the figures of now."""
        self._figures = figures

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
        processes = [
            ([*share.labels, str(process.pid), process.command], process)
            for share in shares
            for process in share.reading.books.processes
        ]
        yield from _families(_SHARE_FIGURES, _SHARE, [(share.labels, share) for share in shares])
        yield from _families(_PROCESS_FIGURES, _PROCESS, processes)
        yield from _families(_DEVICE_FIGURES, _DEVICE, [([measured.uuid], measured) for measured in node.measured])
        yield from _device_states(node)
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
            histogram.labels(outcome).observe(time.monotonic() - began_s)


def _histogram(name: str, text: str) -> Histogram:
    return Histogram(name, text, ["outcome"], buckets=_BUCKETS_S, registry=None)


def _families(
    figures: Iterable[_Figure], labels: Sequence[str], things: Sequence[tuple[list[str], Any]]
) -> Iterator[Metric]:
    for figure in figures:
        family = (CounterMetricFamily if figure.is_counter else GaugeMetricFamily)(
            figure.name, figure.text, labels=labels
        )
        for values, thing in things:
            value = figure.value(thing)
            if value is not None:
                family.add_metric(values, value)
        yield family


def _device_states(node: NodeFigures) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "vgpu_device_info", "1; what the device is.", labels=("device", "product", "type", "profile", "driver")
    )
    healthy = GaugeMetricFamily("vgpu_device_healthy", "1 while new claims may have the device.", labels=_DEVICE)
    shares = GaugeMetricFamily("vgpu_device_shares", "Shares of the device.", labels=_DEVICE)
    memory = GaugeMetricFamily("vgpu_device_allocated_memory_bytes", "Memory of all its shares.", labels=_DEVICE)
    compute = GaugeMetricFamily(
        "vgpu_device_allocated_compute_ratio", "Guaranteed GPU time of all its shares.", labels=_DEVICE
    )
    for device in node.devices:
        there = [reading.limits for reading in node.readings if reading.limits.device_uuid == device.uuid]
        info.add_metric([device.uuid, device.product_name, device.type, device.profile, device.driver_version], 1)
        healthy.add_metric([device.uuid], int(device.healthy))
        shares.add_metric([device.uuid], len(there))
        memory.add_metric([device.uuid], sum(limits.memory_bytes for limits in there))
        compute.add_metric([device.uuid], sum(limits.cores_percent for limits in there) / names.CORES_PER_DEVICE)
    unattributed = GaugeMetricFamily(
        "vgpu_device_memory_unattributed_bytes", "Memory of processes without a share, by the driver.", labels=_DEVICE
    )
    for uuid, value_bytes in node.attribution.unattributed_bytes.items():
        unattributed.add_metric([uuid], value_bytes)
    faults = CounterMetricFamily(
        "vgpu_device_faults", "Faults that the driver told of, such as xid-79.", labels=("device", "kind")
    )
    for (uuid, kind), count in node.faults.items():
        faults.add_metric([uuid, kind], count)
    yield from (info, healthy, shares, memory, compute, unattributed, faults)


def _agent_states(node: NodeFigures) -> Iterator[Metric]:
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
