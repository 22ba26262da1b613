"""What is measured of shares, processes and devices: a name, a meaning and a value each. Collected by `metrics`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from kubeletplugin.hardware.devices import DeviceFigures

SHARE = ("share", "namespace", "claim", "device")
PROCESS = (*SHARE, "pid", "pid_namespace", "command")
DEVICE = ("device",)
_NS = 1e-9
_PERCENT = 1e-2


@dataclass(frozen=True)
class Figure:
    """A metric with one value for each thing of a kind."""

    name: str
    text: str
    value: Callable[[Any], float | None]
    """None: not known, so there is no sample."""
    is_counter: bool = False


def _repair(measured: DeviceFigures, field_: str) -> int | None:
    return None if measured.memory_repairs is None else int(getattr(measured.memory_repairs, field_))


SHARE_FIGURES = (
    Figure("vgpu_share_memory_bytes", "Device memory in use, by the books.", lambda s: s.reading.books.used_bytes),
    Figure("vgpu_share_memory_limit_bytes", "Device memory allowed.", lambda s: s.reading.limits.memory_bytes),
    Figure("vgpu_share_memory_peak_bytes", "Most device memory ever in use.", lambda s: s.reading.books.peak_bytes),
    Figure(
        "vgpu_share_memory_host_bytes", "Memory that lies on the host instead.", lambda s: s.reading.books.host_bytes
    ),
    Figure(
        "vgpu_share_memory_host_limit_bytes",
        "Host memory allowed beside it, where the share may oversubscribe.",
        lambda s: s.reading.limits.host_memory_bytes,
    ),
    Figure(
        "vgpu_share_memory_driver_bytes", "Memory of the share's processes, by the driver.", lambda s: s.driver_bytes
    ),
    Figure(
        "vgpu_share_memory_difference_bytes",
        "What the driver counts and the books do not.",
        lambda s: s.difference_bytes,
    ),
    Figure(
        "vgpu_share_overuse_bytes", "Memory above the limit by the driver, beyond the slack.", lambda s: s.overuse_bytes
    ),
    Figure("vgpu_share_overuse", "Times that overuse began.", lambda s: s.overuse_count, is_counter=True),
    Figure(
        "vgpu_share_compute_guaranteed_ratio",
        "Guaranteed GPU time; 1 is a whole device.",
        lambda s: s.reading.limits.cores_percent * _PERCENT,
    ),
    Figure(
        "vgpu_share_compute_ceiling_ratio",
        "Most GPU time, on an idle device too.",
        lambda s: s.reading.limits.ceiling_percent * _PERCENT,
    ),
    Figure(
        "vgpu_share_compute_granted_ratio",
        "GPU time that a Burst share may use now; 0: up to its ceiling.",
        lambda s: s.reading.limits.granted_percent * _PERCENT,
    ),
    Figure(
        "vgpu_share_compute_utilization_ratio", "GPU time used in the last interval.", lambda s: s.reading.utilization
    ),
    Figure("vgpu_share_priority", "Priority on its device.", lambda s: s.reading.limits.priority),
    Figure("vgpu_share_suspended", "1 while the share is suspended.", lambda s: int(s.reading.limits.suspended)),
    Figure("vgpu_share_processes", "Processes that use the device.", lambda s: len(s.reading.books.processes)),
    Figure("vgpu_share_gpu_seconds", "GPU time used.", lambda s: s.reading.books.gpu_time_ns * _NS, is_counter=True),
    Figure(
        "vgpu_share_throttled_seconds",
        "Time that launches waited for GPU time, over all threads.",
        lambda s: s.reading.books.throttled_ns * _NS,
        is_counter=True,
    ),
    Figure(
        "vgpu_share_launches",
        "Launches of kernels and graphs, fills, and copies that stay on the GPU.",
        lambda s: s.reading.books.launches,
        is_counter=True,
    ),
    Figure(
        "vgpu_share_out_of_memory",
        "Requests refused for the limit.",
        lambda s: s.reading.books.out_of_memory,
        is_counter=True,
    ),
)
PROCESS_FIGURES = (
    Figure("vgpu_process_memory_bytes", "Device memory of a process, by the books.", lambda p: p.memory_bytes),
    Figure("vgpu_process_memory_host_bytes", "Memory of a process that lies on the host.", lambda p: p.host_bytes),
    Figure("vgpu_process_gpu_seconds", "GPU time used by a process.", lambda p: p.gpu_time_ns * _NS, is_counter=True),
)
DEVICE_FIGURES = (
    Figure("vgpu_device_memory_bytes", "Memory of the device.", lambda d: d.memory_bytes),
    Figure("vgpu_device_memory_used_bytes", "Memory in use, by the driver.", lambda d: d.memory_used_bytes),
    Figure(
        "vgpu_device_utilization_ratio",
        "Time with work on the device, by the driver.",
        lambda d: None if d.utilization_percent is None else d.utilization_percent * _PERCENT,
    ),
    Figure("vgpu_device_temperature_celsius", "Temperature of the device.", lambda d: d.temperature_celsius),
    Figure("vgpu_device_power_watts", "Power that the device draws.", lambda d: d.power_watts),
    Figure(
        "vgpu_device_energy_joules", "Energy since the driver was loaded.", lambda d: d.energy_joules, is_counter=True
    ),
    Figure(
        "vgpu_device_ecc_uncorrected",
        "Memory errors that were not corrected, since the driver was loaded.",
        lambda d: d.ecc_uncorrected,
        is_counter=True,
    ),
    Figure(
        "vgpu_device_rows_remapped_corrected",
        "Rows of its memory that were remapped for errors that could be corrected.",
        lambda d: _repair(d, "rows_corrected"),
    ),
    Figure(
        "vgpu_device_rows_remapped_uncorrected",
        "Rows of its memory that were remapped for errors that could not be corrected.",
        lambda d: _repair(d, "rows_uncorrected"),
    ),
    Figure(
        "vgpu_device_remap_pending",
        "1 while rows wait to be remapped at the next reset.",
        lambda d: _repair(d, "remap_pending"),
    ),
    Figure("vgpu_device_remap_failed", "1 if a row could not be remapped.", lambda d: _repair(d, "remap_failed")),
    Figure(
        "vgpu_device_page_retirement_pending",
        "1 while pages wait to be retired at the next reset.",
        lambda d: _repair(d, "retirement_pending"),
    ),
)


def families(
    figures: Iterable[Figure], labels: Sequence[str], things: Sequence[tuple[list[str], Any]]
) -> Iterator[Metric]:
    """Yield a family for each figure, with a sample for each thing (its labels, and itself) that has a value."""
    for figure in figures:
        family = (CounterMetricFamily if figure.is_counter else GaugeMetricFamily)(
            figure.name, figure.text, labels=labels
        )
        for values, thing in things:
            value = figure.value(thing)
            if value is not None:
                family.add_metric(values, value)
        yield family
