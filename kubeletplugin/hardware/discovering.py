"""Keeps what the agent knows of the node's devices fresh, and has it stated to the cluster.

Started by the agent, which serves before the first look at the devices has ended, and however long one takes: a driver
that hangs must not keep claims from being undone. Two threads: one looks at once, at each heartbeat and after each
event of the hardware; the other waits for those events.
"""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from api.deadlines import left_s
from api.errors import KubeError, StateError, TransientError, VGPUError
from kubeletplugin.hardware.devices import DeviceTable, Discovery
from kubeletplugin.hardware.discovery import DiscoveryBackend
from kubeletplugin.hardware.inventory import InventoryWriter
from kubeletplugin.hardware.nodeviews import NodeView

_log = logging.getLogger(__name__)
_EVENT_WAIT_S = 1.0
_PATIENCE_S = 10.0
"""For how long after the start calls wait for the first look, which mostly takes a second or two. Later they get their
error at once: those that wait would take the threads of those that undo claims."""


@dataclass(frozen=True)
class HeartbeatPace:
    """How often the inventory is written, in seconds."""

    heartbeat_s: float
    retry_s: float
    """Between tries while something keeps it from being written."""


class Discoverer:
    """Looks at the devices of one node, from run_until() until stop()."""

    def __init__(
        self,
        backend: DiscoveryBackend,
        inventory: InventoryWriter,
        node: NodeView,
        publish: Callable[[Discovery], None],
        pace: HeartbeatPace,
    ) -> None:
        """Take what is needed.

        Args:
            backend: finds the devices.
            inventory: states them.
            node: the node as it is known before the first look: without devices.
            publish: takes over what was found, before any claim can get it; may raise StateError or OSError.
            pace: of the heartbeats.
        """
        self._backend = backend
        self._inventory = inventory
        self._publish = publish
        self._pace = pace
        self._view = node
        self._problem = "the driver has not answered since the agent started"
        self._began_s = self._looked_s = self._written_s = time.monotonic()
        self._known = False
        self._changed = threading.Event()
        """Set when the first look has ended, or the agent ends."""
        self._beat_now = threading.Event()

    def view(self) -> NodeView:
        """Return the node as it was discovered last; soon after the start, wait for the first look.

        Raises:
            TransientError: the first look has not ended yet.
        """
        if not self._changed.is_set():
            self._changed.wait(left_s(_PATIENCE_S - self._age_of_agent_s()))
        if not self._known:
            raise TransientError(
                f"node {self._view.pool}: its devices are not known {self._age_of_agent_s():.0f} s after the start of "
                f"the agent, expected them within seconds: {self._problem}"
            )
        return self._view

    def devices(self) -> DeviceTable:
        """Return the devices as far as they are known, without waiting."""
        return self._view.devices

    def problem(self) -> str:
        """Return why devices cannot be discovered, empty if they can."""
        return self._problem

    def age_s(self) -> float:
        """Return the seconds since the last look ended, with or without success; since the start before the first."""
        return time.monotonic() - self._looked_s

    def stated_s(self) -> float:
        """Return the seconds since the API server took the inventory; since the start before the first time."""
        return time.monotonic() - self._written_s

    def look(self) -> Discovery:
        """Look at the devices once.

        Raises:
            StateError, OSError: what was found could not be published.
        """
        try:
            found = self._backend.discover()
            problem = ""
        except (StateError, OSError) as error:
            # The agent stays: it can still undo claims, and a driver may be installed, or its folder mounted, later.
            found = Discovery(message=str(error))
            problem = str(error)
        if problem and problem != self._problem:
            _log.error("devices cannot be discovered", extra={"error": problem})
        elif not problem and self._problem:
            _log.info("devices discovered", extra={"devices": [device.name for device in found.devices]})
        self._problem, self._looked_s = problem, time.monotonic()
        try:
            self._publish(found)
        except (StateError, OSError) as error:
            self._problem = f"they cannot be published: {error}"
            raise
        self._view = dataclasses.replace(self._view, devices=DeviceTable(found.devices))
        self._take_over_offers()
        self._known = True
        self._changed.set()
        return found

    def _take_over_offers(self) -> None:
        inventory = self._inventory
        self._view = dataclasses.replace(self._view, offers=inventory.offers, offer_mode=inventory.offer_mode)

    def run_until(self, stopping: threading.Event, and_then: Callable[[], None] = lambda: None) -> None:
        """Look and write the inventory at each heartbeat and event, and do what else is due then, until stop()."""
        delay_s, outage = 0.0, ""
        while True:
            self._beat_now.wait(delay_s)
            self._beat_now.clear()
            if stopping.is_set():
                return
            delay_s = self._pace.heartbeat_s
            try:
                self._inventory.write(self.look())
                self._written_s = time.monotonic()
                self._take_over_offers()
                and_then()
            except (VGPUError, OSError) as error:
                delay_s = max(self._pace.retry_s, error.wait_s if isinstance(error, KubeError) else 0.0)
                if not outage:
                    _log.warning("inventory not written; trying again", extra={"error": str(error)})
                outage = str(error)
                continue
            if outage:
                _log.info("inventory written again")
            outage = ""

    def watch_until(self, stopping: threading.Event) -> None:
        """Have a look after each event of the hardware, until the event is set."""
        while not stopping.is_set():
            if self._backend.wait(_EVENT_WAIT_S):
                self._beat_now.set()

    def stop(self) -> None:
        """Let all who wait go on; the stopping event must be set."""
        self._beat_now.set()
        self._changed.set()

    def _age_of_agent_s(self) -> float:
        return time.monotonic() - self._began_s
