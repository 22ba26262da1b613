"""What a vendor must bring to be served by the node agent: a discovery backend.

Called by the agent: discover() at start, at each heartbeat and after each event, figures() by the monitor, and wait()
in a thread of its own. `kubeletplugin.hardware.nvidia` is the first; others stand beside it.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping

from typing_extensions import override

from kubeletplugin.hardware.devices import DeviceFigures, Discovery
from kubeletplugin.hardware.gputimes import GpuTimeSource, NoGpuTimes


class DiscoveryBackend(ABC):
    """Finds the devices of one vendor on this node."""

    @abstractmethod
    def discover(self) -> Discovery:
        """Look at the node anew.

        Never drops a device silently: one that cannot be used is returned with its reason, and what cannot even be
        listed is told in `message`.

        Raises:
            StateError: there is no driver, or it cannot be used at all.
        """

    def figures(self) -> tuple[DeviceFigures, ...]:
        """Return what the driver measures now, of each device that answers; nothing where a vendor has no figures."""
        return ()

    @abstractmethod
    def wait(self, timeout_s: float) -> bool:
        """Wait for an event of the hardware; return whether there was one that is worth a new discover().

        Returns early, at the latest after `timeout_s`; and soon after close().
        """

    def gpu_times(self) -> GpuTimeSource:
        """Return what tells the GPU time of processes."""
        return NoGpuTimes()

    def faults(self) -> Mapping[tuple[str, str], int]:
        """Return how often each kind of fault was told, by the device's UUID and the kind, such as `xid-79`."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Give back what `discover` holds of the driver; safe to call twice."""


class FakeDiscovery(DiscoveryBackend):
    """Devices that a test sets."""

    def __init__(self, found: Discovery) -> None:
        self.found: Discovery | Exception = found
        """What the next call returns or raises."""
        self.measured: tuple[DeviceFigures, ...] = ()
        """What the driver measures."""
        self.closed = False
        self._events = threading.Semaphore(0)

    def happen(self) -> None:
        """Let wait() return an event."""
        self._events.release()

    @override
    def wait(self, timeout_s: float) -> bool:
        return self._events.acquire(timeout=timeout_s) and not self.closed

    @override
    def figures(self) -> tuple[DeviceFigures, ...]:
        return self.measured

    @override
    def discover(self) -> Discovery:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    @override
    def close(self) -> None:
        self.closed = True
        self._events.release()
