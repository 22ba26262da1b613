"""Figures of the shares for Prometheus: collected when they are asked for, from the monitor's last round.

Registered by the agent. Labels name the share's claim and device; a share that is gone has no figures.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from kubeletplugin.monitoring import ShareReading

_LABELS = ("share", "namespace", "claim", "device")
_NS = 1e-9


@dataclass(frozen=True)
class _Figure:
    name: str
    text: str
    value: Callable[[ShareReading], float]
    is_counter: bool = False


_FIGURES = (
    _Figure("vgpu_share_memory_bytes", "Device memory in use.", lambda r: r.books.used_bytes),
    _Figure("vgpu_share_memory_limit_bytes", "Device memory allowed.", lambda r: r.limits.memory_bytes),
    _Figure("vgpu_share_memory_peak_bytes", "Most device memory ever in use.", lambda r: r.books.peak_bytes),
    _Figure("vgpu_share_cores_percent", "Guaranteed compute, percent of a device.", lambda r: r.limits.cores_percent),
    _Figure("vgpu_share_ceiling_percent", "Most compute, percent of a device.", lambda r: r.limits.ceiling_percent),
    _Figure("vgpu_share_granted_percent", "Compute a Burst share may use now.", lambda r: r.limits.granted_percent),
    _Figure("vgpu_share_processes", "Processes that use the device.", lambda r: len(r.books.processes)),
    _Figure("vgpu_share_gpu_seconds", "GPU time used.", lambda r: r.books.gpu_time_ns * _NS, is_counter=True),
    _Figure("vgpu_share_throttled_seconds", "Time waited.", lambda r: r.books.throttled_ns * _NS, is_counter=True),
    _Figure("vgpu_share_launches", "Kernel and graph launches.", lambda r: r.books.launches, is_counter=True),
    _Figure("vgpu_share_out_of_memory", "Requests over the limit.", lambda r: r.books.out_of_memory, is_counter=True),
)


class ShareCollector(Collector):
    """Turns readings into metrics."""

    def __init__(self, readings: Callable[[], Iterable[ShareReading]]) -> None:
        """Take what returns the readings of all shares."""
        self._readings = readings

    @override
    def collect(self) -> Iterator[Metric]:
        readings = list(self._readings())
        for figure in _FIGURES:
            kind = CounterMetricFamily if figure.is_counter else GaugeMetricFamily
            family = kind(figure.name, figure.text, labels=_LABELS)
            for reading in readings:
                claim, limits = reading.claim, reading.limits
                family.add_metric(
                    [limits.share, claim.namespace, claim.name, limits.device_uuid], figure.value(reading)
                )
            yield family
