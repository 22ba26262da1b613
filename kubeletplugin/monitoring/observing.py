"""The monitor's side of the agent: looks at books and driver at their rates, and hands what was found to Prometheus.

Started and stopped by the agent; its loops run in the agent's threads `monitor` and `driver`: a driver that does not
answer must not keep the books from being read.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from api.errors import VGPUError
from kubeletplugin.hardware.devices import DeviceFigures
from kubeletplugin.hardware.discovering import Discoverer
from kubeletplugin.hardware.discovery import DiscoveryBackend
from kubeletplugin.monitoring.bookreading import Monitor
from kubeletplugin.monitoring.metrics import CallDurations, NodeCollector, NodeFigures
from kubeletplugin.monitoring.strays import StrayWatch
from kubeletplugin.monitoring.supervising import Supervisor

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Intervals:
    """How often there is a look, in seconds."""

    books_s: float
    driver_s: float


@dataclass(frozen=True)
class Watchers:
    """Who looks at what."""

    monitor: Monitor
    """At the books."""
    supervisor: Supervisor
    """At what the driver measures."""
    strays: StrayWatch
    """At what is nobody's of that."""
    leftovers: Callable[[], int] = lambda: 0
    """Returns how many prepared claims are gone."""


class Observer:
    """Keeps looking, and serves what it saw last."""

    def __init__(
        self,
        watchers: Watchers,
        backend: DiscoveryBackend,
        discoverer: Discoverer,
        intervals: Intervals,
    ) -> None:
        """Take who looks at books and driver, the driver, who looks at the devices, and the rates."""
        self._monitor = watchers.monitor
        self._supervisor = watchers.supervisor
        self._strays = watchers.strays
        self._leftovers = watchers.leftovers
        self._backend = backend
        self._discoverer = discoverer
        self._intervals = intervals
        self._measured: Sequence[DeviceFigures] | None = None
        """What the driver said, until it is held against the books."""
        self._look_now = threading.Event()
        self._heard_s: float | None = None
        """When the last look at the books ended, or their thread began."""
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
            devices=tuple(self._discoverer.devices()),
            parts=self._monitor.parts(),
            discovery_problem=self._discoverer.problem(),
            discovery_age_s=self._discoverer.age_s(),
            inventory_age_s=self._discoverer.stated_s(),
            leftovers=self._leftovers(),
            measured=self._supervisor.figures,
            attribution=self._supervisor.attribution,
            overuse_counts=self._supervisor.overuse_counts,
            faults=self._backend.faults(),
            strays=self._strays.figures,
            slack=self._supervisor.slack,
        )

    def watch_books_until(self, stopping: threading.Event) -> None:
        """Look at the books until the event is set; what fails once is tried again at the next look."""
        self._heard_s = time.monotonic()
        while True:
            self._look_now.wait(self._intervals.books_s)
            self._look_now.clear()
            if stopping.is_set():
                return
            try:
                self._monitor.run_once()
                self._heard_s = time.monotonic()
                measured, self._measured = self._measured, None
                if measured is not None:
                    self._supervisor.look(measured, self._monitor.readings())
            except (VGPUError, OSError) as error:
                _log.error("round of the monitor failed", extra={"error": str(error)})

    def watch_driver_until(self, stopping: threading.Event) -> None:
        """Ask the driver until the event is set; the books are read as soon as it has answered, to compare the two."""
        while not stopping.wait(self._intervals.driver_s):
            self._measured = self._backend.figures()
            self._look_now.set()
        self._look_now.set()

    def silent_s(self) -> float:
        """Return the seconds since the last look at the books ended; 0 before the first could begin."""
        return time.monotonic() - self._heard_s if self._heard_s is not None else 0.0
