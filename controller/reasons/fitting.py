"""Whether one device can serve one request, and if not, why. Pure; used by `reasoning`.

It follows the scheduler's allocator as far as capacity and taints go: rounding of requests, defaults, counters. Source:
KEP-5075, KEP-5055, k8s.io/dynamic-resource-allocation/structured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from api import names
from api.claims import DeviceRequest
from api.quantities import format_bytes
from controller.offers.counting import DeviceKey, Usage
from controller.offers.offering import CORDONED
from controller.reasons.selecting import read_selectors
from controller.reasons.taintrules import Taint, untolerated


@dataclass(frozen=True)
class OfferedDevice:
    """A device of a node as far as capacity decides."""

    node: str
    name: str
    vendor: str = ""
    capacity: Mapping[str, int] = field(default_factory=dict)
    """Whole amounts by capacity name."""
    defaults: Mapping[str, int] = field(default_factory=dict)
    """What a claim takes that does not ask, where it is not all."""
    steps: Mapping[str, int] = field(default_factory=dict)
    """Requests are rounded up to multiples of these (the least amount is one step, or 0 where the default is 0)."""
    shared: bool = True
    """More than one claim may hold it."""
    withheld: str = ""
    """Why it is not offered; empty: it is."""
    drawn_on: str = ""
    """The counter set of its node that it draws on while a claim holds it; empty: none."""
    draws: Mapping[str, int] = field(default_factory=dict)
    """What it draws there: its capacity, and sometimes more."""
    room: Mapping[str, int] = field(default_factory=dict)
    """What that counter set has in total."""
    taints: tuple[Taint, ...] = ()
    """What DeviceTaintRules put on it; faults and cordons, which are taints too, are in `withheld`."""

    @property
    def key(self) -> DeviceKey:
        """What allocations know it by; a pool is named after its node."""
        return (self.node, self.name)


@dataclass(frozen=True)
class Finding:
    """Why one device cannot serve one request."""

    node: str
    device: str
    reason: str
    """One of the REASON_ constants of api.names."""
    detail: str
    """Found and asked."""

    def __str__(self) -> str:
        return f"{self.node}/{self.device}: {self.reason} ({self.detail})"


def amounts(request: DeviceRequest, device: OfferedDevice) -> dict[str, int]:
    """Return what a request would take of a device, rounded as the scheduler rounds."""
    taken = {}
    for name, whole in device.capacity.items():
        asked = request.capacity.get(name)
        if asked is None:
            taken[name] = device.defaults.get(name, whole)
            continue
        step = device.steps.get(name, 1)
        least = 0 if device.defaults.get(name) == 0 else step
        taken[name] = max(-(-asked // step) * step, least)
    return taken


def check(request: DeviceRequest, device: OfferedDevice, usage: Usage) -> Finding | None:
    """Return why a device cannot serve a request, or None if it can."""
    reason, detail = _first_reason(request, device, usage)
    return Finding(device.node, device.name, reason, detail) if reason else None


def doubts(request: DeviceRequest, device: OfferedDevice) -> str:
    """Return the taints that may keep a request from a device, for all that is known here; empty: none."""
    perhaps = [taint for taint in untolerated(device.taints, request.tolerations) if taint.in_doubt]
    return "; ".join(f"{taint}, if its CEL selects the device" for taint in perhaps)


def _first_reason(request: DeviceRequest, device: OfferedDevice, usage: Usage) -> tuple[str, str]:
    missing = sorted(set(request.capacity) - set(device.capacity))
    if device.withheld:
        return names.REASON_CORDONED if device.withheld == CORDONED else names.REASON_UNHEALTHY, device.withheld
    if not of_class(request.device_class, device.vendor):
        return names.REASON_NOT_SELECTED, f"vendor {device.vendor}, asked DeviceClass {request.device_class}"
    if missing:
        there = ", ".join(sorted(device.capacity))
        return names.REASON_NOT_SELECTED, f"has no capacity {', '.join(missing)}, but {there or 'none'}"
    for name, least in sorted(read_selectors(request.selectors).least.items()):
        whole = device.capacity.get(name, 0)
        if whole < least:
            return (
                names.REASON_NOT_SELECTED,
                f"{name} {show_amount(name, whole)}, asked at least {show_amount(name, least)}",
            )
    return _joined([*_tainted(request, device), *_without_room(request, device, usage)])


def _tainted(request: DeviceRequest, device: OfferedDevice) -> list[tuple[str, str]]:
    found = [taint for taint in untolerated(device.taints, request.tolerations) if not taint.in_doubt]
    return [(names.REASON_TAINTED, ", ".join(map(str, found)))] if found else []


def _without_room(request: DeviceRequest, device: OfferedDevice, usage: Usage) -> Sequence[tuple[str, str]]:
    if usage.whole or (usage.claims and not device.shared):
        return [(names.REASON_EXCLUSIVE, "a claim holds the whole device")]
    drawn = _drawn(device)
    return [drawn] if drawn else _lacking(amounts(request, device), device, usage)


def _joined(found: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Return reasons with details as one; two empty strings for none."""
    return ", ".join(reason for reason, _ in found), "; ".join(detail for _, detail in found)


def _drawn(device: OfferedDevice) -> tuple[str, str] | None:
    """Return why the counters that a device draws on have no room for it; None: they have."""
    reasons = {names.CAPACITY_CORES: names.REASON_INSUFFICIENT_CORES}
    for name, left in sorted(device.room.items(), reverse=True):
        needs = device.draws.get(name, 0)
        if needs > left:
            found = f"{show_amount(name, max(left, 0))} of {device.drawn_on} left, it needs {show_amount(name, needs)}"
            return reasons.get(name, names.REASON_INSUFFICIENT_MEMORY), f"{name}: {found}"
    return None


def of_class(device_class: str, vendor: str) -> bool:
    """Say whether a device can be of a class, as far as the names of our classes tell; others need CEL."""
    prefix = names.device_class("")
    return not (device_class.startswith(prefix) and vendor and device_class != names.device_class(vendor))


def _lacking(asked: Mapping[str, int], device: OfferedDevice, usage: Usage) -> Sequence[tuple[str, str]]:
    memory = device.capacity.get(names.CAPACITY_MEMORY, 0)
    asked_memory = asked.get(names.CAPACITY_MEMORY, 0)
    if usage.claims and asked_memory == memory > 0:
        detail = f"the whole device is asked, {usage.claims} {plural('share', usage.claims)} on it"
        return [(names.REASON_EXCLUSIVE, detail)]
    lacking = []
    if asked_memory > memory - usage.memory_bytes:
        free = f"{format_bytes(max(memory - usage.memory_bytes, 0))} free of {format_bytes(memory)}"
        lacking.append((names.REASON_INSUFFICIENT_MEMORY, f"{free}, asked {format_bytes(asked_memory)}"))
    cores = device.capacity.get(names.CAPACITY_CORES, 0)
    asked_cores = asked.get(names.CAPACITY_CORES, 0)
    if asked_cores > cores - usage.cores_percent:
        free = f"{max(cores - usage.cores_percent, 0)} cores free of {cores}"
        lacking.append((names.REASON_INSUFFICIENT_CORES, f"{free}, asked {asked_cores}"))
    shares = device.capacity.get(names.CAPACITY_SHARES, 0)
    if asked.get(names.CAPACITY_SHARES, 0) > shares - usage.shares:
        lacking.append((names.REASON_INSUFFICIENT_SHARES, f"{usage.shares} of {shares} shares in use"))
    return lacking


def show_amount(name: str, value: int) -> str:
    """Return an amount of a capacity as people write it."""
    return format_bytes(value) if name == names.CAPACITY_MEMORY else str(value)


def plural(word: str, count: int) -> str:
    """Return a word as it stands behind a number."""
    return word if count == 1 else f"{word}s"
