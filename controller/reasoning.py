"""Why a claim cannot be met, device by device. Pure: `pending` writes it as events, `explaining` prints it.

It follows the scheduler's allocator as far as capacity goes: rounding of requests, defaults, one node for all claims
of a pod, first device that fits. Of CEL it understands least capacities (`selecting`) and no more, and it does not look
at nodes (CPU, taints, affinity); where only these are left as reasons, it says so. Source: KEP-5075,
k8s.io/dynamic-resource-allocation/structured.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from api import names
from api.claims import ClaimView, DeviceRequest
from api.quantities import format_bytes
from controller.counting import UNUSED, DeviceKey, Usage
from controller.offering import CORDONED
from controller.selecting import read_selectors


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


@dataclass(frozen=True)
class RequestExplanation:
    """What every device says to one request of a claim."""

    claim: str
    """Namespace and name."""
    request: DeviceRequest
    findings: tuple[Finding, ...]
    fits_on: tuple[str, ...]
    """Nodes whose devices have room for everything that the pod asks."""

    @property
    def is_ours(self) -> bool:
        """Say whether devices are what is missing; else it waits for something that is no device's business."""
        return not self.fits_on or selects(self.request)


def explain(
    claims: Sequence[ClaimView], devices: Iterable[OfferedDevice], usage: Mapping[DeviceKey, Usage]
) -> list[RequestExplanation]:
    """Return for each unmet request of a pod why each device cannot serve it.

    Args:
        claims: all claims of one pod (they must end up on one node), or one claim.
        devices: of all nodes, offered or withheld.
        usage: what allocated claims hold of each device.
    """
    nodes: dict[str, list[OfferedDevice]] = {}
    for device in devices:
        nodes.setdefault(device.node, []).append(device)
    for node, mine in nodes.items():
        nodes[node] = _with_counters(mine, usage)
    bound = {
        result.pool
        for claim in claims
        if claim.allocation
        for result in claim.allocation.results
        if result.pool in nodes
    }
    wishes = [(claim, group) for claim in claims if claim.allocation is None for group in _alternatives(claim)]
    findings: list[list[Finding]] = [[] for _ in wishes]
    fits_on = [node for node in sorted(bound or nodes) if _place_all(wishes, nodes[node], usage, findings)]
    return [
        RequestExplanation(f"{claim.namespace}/{claim.name}", group[-1], tuple(found), tuple(fits_on))
        for (claim, group), found in zip(wishes, findings, strict=True)
        if found or fits_on or not nodes
    ]


def _with_counters(devices: list[OfferedDevice], usage: Mapping[DeviceKey, Usage]) -> list[OfferedDevice]:
    """Return devices with what is left on the counters that they draw on as their room."""
    drawn: dict[str, dict[str, int]] = {}
    for device in devices:
        if device.drawn_on and usage.get(device.key, UNUSED).claims:
            taken = drawn.setdefault(device.drawn_on, {})
            for name, amount in device.draws.items():
                taken[name] = taken.get(name, 0) + amount
    return [
        replace(device, room={name: whole - drawn[device.drawn_on].get(name, 0) for name, whole in device.room.items()})
        if device.drawn_on in drawn
        else device
        for device in devices
    ]


def _alternatives(claim: ClaimView) -> list[list[DeviceRequest]]:
    """Group the alternatives of a firstAvailable list: one of them is enough."""
    groups: dict[str, list[DeviceRequest]] = {}
    for request in claim.requests:
        groups.setdefault(request.name.split("/")[0], []).append(request)
    return list(groups.values())


def selects(request: DeviceRequest) -> bool:
    """Say whether CEL that is not evaluated here decides too: the request's own, or that of a foreign class."""
    ours = request.device_class == names.DEVICE_CLASS_ANY or request.device_class.startswith(names.device_class(""))
    return not read_selectors(request.selectors).complete or not ours


def _place_all(
    wishes: Sequence[tuple[ClaimView, list[DeviceRequest]]],
    devices: Sequence[OfferedDevice],
    usage: Mapping[DeviceKey, Usage],
    findings: list[list[Finding]],
) -> bool:
    """Place all requests of a pod on a node, first fit; return whether it worked, add what hindered to `findings`."""
    taken = {device.key: usage.get(device.key, UNUSED) for device in devices}
    placed = True
    for (_, group), found in zip(wishes, findings, strict=True):
        reasons: list[Finding] = []
        if not any(_place(request, devices, taken, reasons) for request in group):
            # One finding per device and alternative. The last one is the most modest: its reasons are to act on.
            found.extend(reasons[-len(devices) :])
            placed = False
    if placed:
        for (_, group), found in zip(wishes, findings, strict=True):
            if selects(group[-1]):
                found.extend(_left_out(group[-1], device, usage) for device in devices)
    return placed


def _left_out(request: DeviceRequest, device: OfferedDevice, usage: Mapping[DeviceKey, Usage]) -> Finding:
    detail = "has room; left out by selectors, which are not evaluated here, or by the node"
    found = check(request, device, usage.get(device.key, UNUSED))
    return found or Finding(device.node, device.name, names.REASON_NOT_SELECTED, detail)


def _place(
    request: DeviceRequest, devices: Sequence[OfferedDevice], taken: dict[DeviceKey, Usage], reasons: list[Finding]
) -> bool:
    fitting = []
    for device in devices:
        finding = check(request, device, taken[device.key])
        if finding is None:
            fitting.append(device)
        else:
            reasons.append(finding)
    wanted = request.count or len(devices)
    if len(fitting) < wanted:
        reasons.extend(_too_few(request, device, len(fitting), wanted) for device in fitting)
        return False
    for device in fitting[:wanted]:
        taken[device.key] = _with(taken[device.key], amounts(request, device))
    return True


def _too_few(request: DeviceRequest, device: OfferedDevice, found: int, wanted: int) -> Finding:
    detail = f"has room, but {found} of the {wanted} devices wanted for request {request.name} have"
    return Finding(device.node, device.name, names.REASON_NOT_SELECTED, detail)


def _with(usage: Usage, asked: Mapping[str, int]) -> Usage:
    return Usage(
        memory_bytes=usage.memory_bytes + asked.get(names.CAPACITY_MEMORY, 0),
        cores_percent=usage.cores_percent + asked.get(names.CAPACITY_CORES, 0),
        shares=usage.shares + asked.get(names.CAPACITY_SHARES, 0),
        claims=usage.claims + 1,
        whole=usage.whole,
    )


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


def _first_reason(request: DeviceRequest, device: OfferedDevice, usage: Usage) -> tuple[str, str]:
    missing = sorted(set(request.capacity) - set(device.capacity))
    if device.withheld:
        return names.REASON_CORDONED if device.withheld == CORDONED else names.REASON_UNHEALTHY, device.withheld
    if not _of_class(request.device_class, device.vendor):
        return names.REASON_NOT_SELECTED, f"vendor {device.vendor}, asked DeviceClass {request.device_class}"
    if missing:
        return names.REASON_NOT_SELECTED, f"has no capacity {', '.join(missing)}"
    for name, least in sorted(read_selectors(request.selectors).least.items()):
        whole = device.capacity.get(name, 0)
        if whole < least:
            return (
                names.REASON_NOT_SELECTED,
                f"{name} {show_amount(name, whole)}, asked at least {show_amount(name, least)}",
            )
    if usage.whole or (usage.claims and not device.shared):
        return names.REASON_EXCLUSIVE, "a claim holds the whole device"
    return _drawn(device) or _lacking(amounts(request, device), device, usage)


def _drawn(device: OfferedDevice) -> tuple[str, str] | None:
    """Return why the counters that a device draws on have no room for it; None: they have."""
    reasons = {names.CAPACITY_CORES: names.REASON_INSUFFICIENT_CORES}
    for name, left in sorted(device.room.items(), reverse=True):
        needs = device.draws.get(name, 0)
        if needs > left:
            found = f"{show_amount(name, max(left, 0))} of {device.drawn_on} left, it needs {show_amount(name, needs)}"
            return reasons.get(name, names.REASON_INSUFFICIENT_MEMORY), f"{name}: {found}"
    return None


def _of_class(device_class: str, vendor: str) -> bool:
    """Say whether a device can be of a class, as far as the names of our classes tell; others need CEL."""
    prefix = names.device_class("")
    return not (device_class.startswith(prefix) and vendor and device_class != names.device_class(vendor))


def _lacking(asked: Mapping[str, int], device: OfferedDevice, usage: Usage) -> tuple[str, str]:
    memory = device.capacity.get(names.CAPACITY_MEMORY, 0)
    asked_memory = asked.get(names.CAPACITY_MEMORY, 0)
    if usage.claims and asked_memory == memory > 0:
        return (
            names.REASON_EXCLUSIVE,
            f"the whole device is asked, {usage.claims} {plural('share', usage.claims)} on it",
        )
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
    if not lacking:
        return "", ""
    reasons, details = zip(*lacking, strict=True)
    return ", ".join(reasons), "; ".join(details)


def show_amount(name: str, value: int) -> str:
    """Return an amount of a capacity as people write it."""
    return format_bytes(value) if name == names.CAPACITY_MEMORY else str(value)


def plural(word: str, count: int) -> str:
    """Return a word as it stands behind a number."""
    return word if count == 1 else f"{word}s"
