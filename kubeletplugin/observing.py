"""The monitor's side of the agent: looks at books and driver at their rates, and hands what was found to Prometheus.

Started and stopped by the agent; its loop runs in the agent's thread `monitor`.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from api.errors import VGPUError
from kubeletplugin.devices import Device
from kubeletplugin.discovery import DiscoveryBackend
from kubeletplugin.metrics import CallDurations, NodeCollector, NodeFigures
from kubeletplugin.monitoring import Monitor
from kubeletplugin.supervising import Supervisor

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Intervals:
    """How often there is a look, in seconds."""

    books_s: float
    driver_s: float


class Observer:
    """Keeps looking, and serves what it saw last."""

    def __init__(
        self,
        monitor: Monitor,
        supervisor: Supervisor,
        backend: DiscoveryBackend,
        devices: Callable[[], Iterable[Device]],
        intervals: Intervals,
    ) -> None:
        """Take who looks at the books and at the driver, what returns the devices as discovered last, and the rates."""
        self._monitor = monitor
        self._supervisor = supervisor
        self._backend = backend
        self._devices = devices
        self._intervals = intervals
        self._registered: list[tuple[CollectorRegistry, Collector]] = []
        self.durations = CallDurations()

    def register(self, registry: CollectorRegistry) -> None:
        """Serve the figures from a registry until unregister()."""
        for collector in (NodeCollector(self.figures), self.durations.prepare, self.durations.unprepare):
            registry.register(collector)
            self._registered.append((registry, collector))

    def unregister(self) -> None:
        """Take the figures out of their registry."""
        while self._registered:
            registry, collector = self._registered.pop()
            registry.unregister(collector)

    def figures(self) -> NodeFigures:
        """Return what was seen last."""
        return NodeFigures(
            readings=self._monitor.readings(),
            unreadable=self._monitor.unreadable(),
            round_cost_s=self._monitor.round_cost_s,
            devices=tuple(self._devices()),
            measured=self._supervisor.figures,
            attribution=self._supervisor.attribution,
            overuse_counts=self._supervisor.overuse_counts,
            faults=self._backend.faults(),
            slack=self._supervisor.slack,
        )

    def run_until(self, stopping: threading.Event) -> None:
        """Look at books and driver until the event is set; what fails once is tried again at the next look."""
        driver_due_s = 0.0
        while not stopping.wait(self._intervals.books_s):
            try:
                self._monitor.run_once()
                if time.monotonic() >= driver_due_s:
                    driver_due_s = time.monotonic() + self._intervals.driver_s
                    self._supervisor.look(self._backend.figures(), self._monitor.readings())
            except (VGPUError, OSError) as error:
                _log.error("round of the monitor failed", extra={"error": str(error)})

    def silent_s(self) -> float:
        """Return the seconds since the last look at the books ended."""
        return time.monotonic() - self._monitor.last_round_s
