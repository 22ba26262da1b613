"""Health of the node's devices, as it is streamed to the kubelet.

Set by the agent after each discovery; read by the health services, which wait here for changes.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from api.names import DeviceName
from kubeletplugin.devices import Device


@dataclass(frozen=True)
class DeviceHealth:
    """One device's health."""

    device: DeviceName
    healthy: bool
    message: str
    updated_s: int
    """When the agent looked last, in seconds since the epoch."""


class HealthBoard:
    """The health of all devices that were ever seen since the start. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._healths: dict[DeviceName, DeviceHealth] = {}
        self._version = 0
        self._closed = False

    def update(self, devices: Iterable[Device]) -> None:
        """Take over what was discovered; a device that was there before and is missing now is unhealthy."""
        now_s = int(self._clock())
        with self._changed:
            former = {name: (health.healthy, health.message) for name, health in self._healths.items()}
            for name in self._healths:
                self._healths[name] = DeviceHealth(name, False, "the device is no longer there", now_s)
            for device in devices:
                message = "" if device.healthy else device.reason
                self._healths[device.name] = DeviceHealth(device.name, device.healthy, message, now_s)
            if {name: (health.healthy, health.message) for name, health in self._healths.items()} != former:
                self._version += 1
                self._changed.notify_all()

    def current(self) -> tuple[int, list[DeviceHealth]]:
        """Return the version and all healths."""
        with self._changed:
            return self._version, list(self._healths.values())

    def wait(self, version: int, timeout_s: float) -> bool:
        """Wait until there is something newer than `version`, or time is up; return False once it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._version != version, timeout_s)
            return not self._closed

    def wake(self) -> None:
        """Let all waiters look whether they are still wanted."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let all waiters go home."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
