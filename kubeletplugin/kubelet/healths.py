"""Health of the node's devices, as it is streamed to the kubelet.

Set by the agent after each discovery; read by the health services, which wait here for changes. The kubelet looks for
the names that were allocated, which are those of slots where GPUs are offered as slots: a slot that a claim holds is
told beside the GPU that it is a part of.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from api.names import DeviceName
from api.slots import gpu_of
from kubeletplugin.hardware.devices import Device

_GONE = "the device is no longer there"


@dataclass(frozen=True)
class DeviceHealth:
    """One device's health."""

    device: DeviceName
    healthy: bool
    message: str
    updated_s: int
    """When the agent looked last, in seconds since the epoch."""


class HealthBoard:
    """Health of all devices that claims hold or that were seen since the start. Safe to use from several threads."""

    def __init__(
        self, held: Callable[[], Iterable[DeviceName]] = tuple, clock: Callable[[], float] = time.time
    ) -> None:
        """Take what returns the names of the devices that claims hold: GPUs, and slots of them."""
        self._held = held
        self._clock = clock
        self._changed = threading.Condition()
        self._healths: dict[DeviceName, DeviceHealth] = {}
        self._version = 0
        self._is_known = False
        """Whether anybody has looked at the devices yet."""
        self._closed = False

    def update(self, devices: Iterable[Device]) -> None:
        """Take over what was discovered; a device that was there before and is missing now is unhealthy."""
        now_s = int(self._clock())
        with self._changed:
            former = {name: (health.healthy, health.message) for name, health in self._healths.items()}
            for name in self._healths:
                self._healths[name] = DeviceHealth(name, False, _GONE, now_s)
            for device in devices:
                message = device.notice if device.healthy else device.reason
                self._healths[device.name] = DeviceHealth(device.name, device.healthy, message, now_s)
            now = {name: (health.healthy, health.message) for name, health in self._healths.items()}
            if now != former or not self._is_known:
                self._is_known = True
                self._version += 1
                self._changed.notify_all()

    def current(self) -> tuple[int, list[DeviceHealth] | None]:
        """Return the version and all healths; None as long as nobody has looked at the devices."""
        with self._changed:
            version, healths = self._version, dict(self._healths)
            if not self._is_known:
                return version, None
        # After the version: what is prepared from now on is either here or makes a newer one.
        for name in self._held():
            if name not in healths:
                gone = DeviceHealth(name, False, _GONE, int(self._clock()))
                healths[name] = replace(healths.get(gpu_of(name), gone), device=name)
        return version, list(healths.values())

    def note_held(self, devices: Iterable[DeviceName]) -> None:
        """Let all waiters look again, if a claim got a device that was not told of by itself: a slot."""
        with self._changed:
            told = self._healths.keys() >= set(devices)
        if not told:
            self.wake()

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
