"""GPU time of processes as a driver counts it. Called by the steering; backends bring their own."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from typing_extensions import override


@dataclass(frozen=True)
class GpuTimes:
    """What the processes of a device had in a span of time."""

    from_s: float
    to_s: float
    """By time.monotonic()."""
    seconds: dict[int, float] = field(default_factory=dict)
    """GPU time by process id, in the caller's pid namespace; who is not in it had none."""


class GpuTimeSource(ABC):
    """Measures the processes of devices."""

    @abstractmethod
    def read(self, device_uuid: str) -> GpuTimes | None:
        """Return what the device's processes had since the last call for it.

        None where the driver does not say, and after a time without calls: the span begins with that one.
        """


class NoGpuTimes(GpuTimeSource):
    """A driver that does not count."""

    @override
    def read(self, device_uuid: str) -> GpuTimes | None:
        return None


class FakeGpuTimes(GpuTimeSource):
    """Times that a test sets."""

    def __init__(self) -> None:
        self.next: dict[str, GpuTimes] = {}
        """What the next call returns, by device."""

    @override
    def read(self, device_uuid: str) -> GpuTimes | None:
        return self.next.pop(device_uuid, None)
