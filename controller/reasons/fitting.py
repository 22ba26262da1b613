"""Whether one device can serve one request, and if not, why. Pure; used by `placing` and `reasoning`.

It follows the scheduler's allocator as far as capacity and taints go: rounding of requests, defaults, the most that
there is for one request, counters. Source: KEP-5075, KEP-5055, k8s.io/dynamic-resource-allocation/structured.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from api import names
from api.claims import DeviceRequest
from api.quantities import format_bytes
from controller.offers.counting import DeviceKey, Usage
from controller.offers.offering import CORDONED
from controller.reasons.capacities import ANY, RequestPolicy
from controller.reasons.selecting import read_selectors
from controller.reasons.taintrules import Taint, untolerated

_INSUFFICIENT = {
    names.CAPACITY_MEMORY: names.REASON_INSUFFICIENT_MEMORY,
    names.CAPACITY_CORES: names.REASON_INSUFFICIENT_CORES,
    names.CAPACITY_SHARES: names.REASON_INSUFFICIENT_SHARES,
}


@dataclass(frozen=True)
class OfferedDevice:
    """A device of a node as far as it decides about claims."""

    node: str
    name: str
    vendor: str = ""
    capacity: Mapping[str, int] = field(default_factory=dict)
    """Whole amounts, by name as it is published; empty: it is not on offer."""
    policies: Mapping[str, RequestPolicy] = field(default_factory=dict)
    """What a request can have of them; all that it asks for of those that are not here."""
    shared: bool = True
    """More than one claim may hold it."""
    withheld: str = ""
    """Why it is not offered, or tainted; empty: it is for everybody."""
    drawn_on: str = ""
    """The counter set of its node that it draws on while a claim holds it; empty: none."""
    draws: Mapping[str, int] = field(default_factory=dict)
    """What it draws there: its capacity, and sometimes more."""
    room: Mapping[str, int] = field(default_factory=dict)
    """What that counter set has in total."""
    taints: tuple[Taint, ...] = ()
    """Those in its slice, and what DeviceTaintRules put on it."""
    driver: str = names.DRIVER_NAME
    """The domain of names that are published without one."""
    attributes: Mapping[str, object] = field(default_factory=dict)
    """Values as JSON has them, such as `{"string": "a"}`, by name as it is published."""

    @property
    def key(self) -> DeviceKey:
        """What allocations know it by; a pool is named after its node."""
        return (self.node, self.name)

    def attribute(self, full_name: str) -> object:
        """Return an attribute by its name with domain; None: it has none."""
        found = self.attributes.get(full_name)
        domain, _, name = full_name.partition("/")
        return self.attributes.get(name) if found is None and domain == self.driver else found


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
    return {
        name: device.policies.get(name, ANY).taken(request.capacity.get(name), whole)
        for name, whole in device.capacity.items()
    }


_Why = tuple[str, str]
"""A reason and its detail."""


def check(
    request: DeviceRequest, device: OfferedDevice, usage: Usage, left: Mapping[str, int] | None = None
) -> Finding | None:
    """Return why a device cannot serve a request, or None if it can.

    Args:
        request: of a claim.
        device: of a node.
        usage: what claims hold of it.
        left: what is left on the counters that it draws on; None: all.
    """
    found = _withheld(request, device) or _unselected(request, device)
    if not found:
        found = [
            *_tainted(request, device),
            *_without_room(request, device, usage, device.room if left is None else left),
        ]
    if not found:
        return None
    return Finding(
        device.node, device.name, ", ".join(why for why, _ in found), "; ".join(detail for _, detail in found)
    )


def is_among_all(request: DeviceRequest, device: OfferedDevice) -> bool:
    """Say whether a request for all devices means this one: it is on offer, and could serve it if nobody held it."""
    if not device.capacity or _unselected(request, device):
        return False
    taken = amounts(request, device)
    return all(
        taken[name] <= whole and device.policies.get(name, ANY).has(taken[name])
        for name, whole in device.capacity.items()
    )


def doubts(request: DeviceRequest, device: OfferedDevice) -> str:
    """Return the taints that may keep a request from a device, for all that is known here; empty: none."""
    perhaps = [taint for taint in untolerated(device.taints, request.tolerations) if taint.in_doubt]
    return "; ".join(f"{taint}, if its CEL selects the device" for taint in perhaps)


def _withheld(request: DeviceRequest, device: OfferedDevice) -> list[_Why]:
    of_slice = [taint for taint in device.taints if not taint.rule]
    if not device.withheld or (of_slice and not untolerated(of_slice, request.tolerations)):
        return []
    return [(names.REASON_CORDONED if device.withheld == CORDONED else names.REASON_UNHEALTHY, device.withheld)]


def _unselected(request: DeviceRequest, device: OfferedDevice) -> list[_Why]:
    if not of_class(request.device_class, device.vendor):
        return [(names.REASON_NOT_SELECTED, f"vendor {device.vendor}, asked DeviceClass {request.device_class}")]
    missing = sorted(set(request.capacity) - set(device.capacity))
    if missing:
        there = ", ".join(sorted(device.capacity))
        return [(names.REASON_NOT_SELECTED, f"has no capacity {', '.join(missing)}, but {there or 'none'}")]
    for name, least in sorted(read_selectors(request.selectors, device.driver).least.items()):
        whole = device.capacity.get(name, 0)
        if whole < least:
            detail = f"{name} {show_amount(name, whole)}, asked at least {show_amount(name, least)}"
            return [(names.REASON_NOT_SELECTED, detail)]
    return []


def _tainted(request: DeviceRequest, device: OfferedDevice) -> list[_Why]:
    found = [taint for taint in untolerated(device.taints, request.tolerations) if not taint.in_doubt]
    return [(names.REASON_TAINTED, ", ".join(map(str, found)))] if found else []


def _without_room(
    request: DeviceRequest, device: OfferedDevice, usage: Usage, left: Mapping[str, int]
) -> Sequence[_Why]:
    # An administrator's look takes a device from nobody, and is kept away by nobody (KEP-5018).
    if not request.admin_access and (usage.whole or (usage.claims and not device.shared)):
        return [(names.REASON_EXCLUSIVE, "a claim holds the whole device")]
    return list(_lacking(request, device, usage)) or list(_drawn(device, left))


def _drawn(device: OfferedDevice, left: Mapping[str, int]) -> Iterator[_Why]:
    """Yield why the counters that a device draws on have no room for it: the first reason."""
    for name, amount in sorted(left.items(), reverse=True):
        needs = device.draws.get(name, 0)
        if needs > amount:
            found = f"{show_amount(name, max(amount, 0))} of {device.drawn_on} left, it needs"
            yield (
                _INSUFFICIENT.get(name, names.REASON_INSUFFICIENT_MEMORY),
                f"{name}: {found} {show_amount(name, needs)}",
            )
            return


def of_class(device_class: str, vendor: str) -> bool:
    """Say whether a device can be of a class, as far as the names of our classes tell; others need CEL."""
    prefix = names.device_class("")
    return not (device_class.startswith(prefix) and vendor and device_class != names.device_class(vendor))


def _lacking(request: DeviceRequest, device: OfferedDevice, usage: Usage) -> Iterator[_Why]:
    taken = amounts(request, device)
    if usage.memory_bytes and taken.get(names.CAPACITY_MEMORY) == device.capacity.get(names.CAPACITY_MEMORY, 0) > 0:
        detail = f"the whole device is asked, {usage.claims} {plural('share', usage.claims)} on it"
        yield names.REASON_EXCLUSIVE, detail
        return
    used = {
        names.CAPACITY_MEMORY: usage.memory_bytes,
        names.CAPACITY_CORES: usage.cores_percent,
        names.CAPACITY_SHARES: usage.shares,
    }
    for name in (*used, *sorted(device.capacity.keys() - used.keys())):
        if name not in device.capacity:
            continue
        policy, whole = device.policies.get(name, ANY), device.capacity[name]
        reason = _INSUFFICIENT.get(name, names.REASON_NOT_SELECTED)
        if taken[name] <= whole and not policy.has(taken[name]):
            most = show_amount(name, policy.most_of(whole))
            yield reason, f"{name}: one request can have {most} at most, asked {show_amount(name, taken[name])}"
        elif taken[name] > whole - used.get(name, 0):
            yield reason, _shortage(name, whole, used.get(name, 0), taken[name])


def _shortage(name: str, whole: int, used: int, asked: int) -> str:
    if name == names.CAPACITY_SHARES:
        return f"{used} of {whole} shares in use"
    free = f"{show_amount(name, max(whole - used, 0))}{'' if name == names.CAPACITY_MEMORY else f' {name}'} free"
    return f"{free} of {show_amount(name, whole)}, asked {show_amount(name, asked)}"


def show_amount(name: str, value: int) -> str:
    """Return an amount of a capacity as people write it."""
    return format_bytes(value) if name.rpartition("/")[2] == names.CAPACITY_MEMORY else str(value)


def plural(word: str, count: int) -> str:
    """Return a word as it stands behind a number."""
    return word if count == 1 else f"{word}s"
