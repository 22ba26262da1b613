"""Whether the requests of a pod find devices on one node, all together, as the scheduler would look. Pure.

Used by `reasoning`. First the devices are given out in their order, first fit; each that does not fit says why. Where
that fails and another choice of devices could do it, others are tried, as the scheduler does, but not without end.
Source: k8s.io/dynamic-resource-allocation/structured, from Kubernetes 1.36 on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from api import names
from api.claims import ClaimView, Constraint, DeviceRequest
from controller.offers.counting import UNUSED, DeviceKey, Usage
from controller.reasons.fitting import Finding, OfferedDevice, amounts, check, is_among_all

MAX_RESULTS = 32
"""Devices that one claim can be given (AllocationResultsMaxSize)."""


@dataclass(frozen=True)
class Wish:
    """What one request of a claim asks for."""

    place: int
    """Of the claim among those of its pod."""
    claim: ClaimView
    alternatives: tuple[DeviceRequest, ...]
    """One of them is enough; those of a firstAvailable list, best first."""

    def constraints(self, request: DeviceRequest) -> Iterator[tuple[tuple[int, int], Constraint]]:
        """Yield the constraints that hold for one of the alternatives, each with what tells it from others."""
        for number, constraint in enumerate(self.claim.constraints):
            if not constraint.requests or {request.name, request.name.partition("/")[0]} & set(constraint.requests):
                yield (self.place, number), constraint


@dataclass
class Tries:
    """How often devices may be tried yet, for all nodes together."""

    left: int


class Attempt:
    """The devices of a node, and what of them was given to a pod so far."""

    def __init__(self, devices: Sequence[OfferedDevice], usage: Mapping[DeviceKey, Usage]) -> None:
        """Begin with what claims hold already."""
        self.devices = devices
        self._usage = {device.key: usage.get(device.key, UNUSED) for device in devices}
        self._left = {device.drawn_on: dict(device.room) for device in devices if device.drawn_on}
        self._values: dict[tuple[int, int], list[object]] = {}
        self._results: dict[int, list[DeviceKey]] = {}
        for device in devices:
            if self._usage[device.key].claims:
                self._draw(device, 1)
        self._overdrawn = {name for name, left in self._left.items() if any(amount < 0 for amount in left.values())}
        """Counter sets of which claims hold more than is offered, as after a scaling went down."""

    def hindrance(self, wish: Wish, request: DeviceRequest, device: OfferedDevice) -> Finding | None:
        """Return why a device cannot be given for a request now; None: it can."""
        found = check(request, device, self._usage[device.key], self._left.get(device.drawn_on))
        if found is None and request.admin_access and not device.shared:
            found = self._twice(wish, device)
        if found is None and device.drawn_on and self._overdrawn:
            # From 1.35 on; 1.34 looks at one slice alone.
            others = ", ".join(sorted(self._overdrawn))
            detail = f"has room, but claims hold more of {others} than is offered: no device of the node is given out"
            found = Finding(device.node, device.name, names.REASON_EXCLUSIVE, detail)
        return found or self._constrained(wish, request, device)

    def give(self, wish: Wish, request: DeviceRequest, device: OfferedDevice) -> None:
        """Take a device that nothing hinders."""
        self._results.setdefault(wish.place, []).append(device.key)
        self._book(request, device, 1)
        for key, constraint in wish.constraints(request):
            self._values.setdefault(key, []).append(device.attribute(constraint.attribute))

    def take_back(self, wish: Wish, request: DeviceRequest, device: OfferedDevice) -> None:
        """Undo the last `give`."""
        self._results[wish.place].pop()
        self._book(request, device, -1)
        for key, _ in wish.constraints(request):
            self._values[key].pop()

    def meant(self, request: DeviceRequest) -> tuple[Sequence[OfferedDevice], int]:
        """Return the devices that can be given for a request, and how many of them must be."""
        if request.count:
            return self.devices, request.count
        found = [device for device in self.devices if is_among_all(request, device)]
        return (found, len(found)) if found else (self.devices, 1)

    def has_place_for(self, wish: Wish) -> bool:
        """Say whether a claim can be given one device more."""
        return len(self._results.get(wish.place, ())) < MAX_RESULTS

    def _book(self, request: DeviceRequest, device: OfferedDevice, sign: int) -> None:
        usage, taken = self._usage[device.key], amounts(request, device)
        draws = not device.shared or usage.claims == (0 if sign > 0 else 1)
        self._usage[device.key] = replace(
            usage,
            memory_bytes=usage.memory_bytes + sign * taken.get(names.CAPACITY_MEMORY, 0),
            cores_percent=usage.cores_percent + sign * taken.get(names.CAPACITY_CORES, 0),
            shares=usage.shares + sign * taken.get(names.CAPACITY_SHARES, 0),
            claims=usage.claims + sign,
        )
        if draws:
            self._draw(device, sign)

    def _draw(self, device: OfferedDevice, sign: int) -> None:
        left = self._left.get(device.drawn_on, {})
        for name, amount in device.draws.items():
            if name in left:
                left[name] -= sign * amount

    def _twice(self, wish: Wish, device: OfferedDevice) -> Finding | None:
        if device.key not in self._results.get(wish.place, ()):
            return None
        return Finding(device.node, device.name, names.REASON_EXCLUSIVE, "the claim has it already")

    def _constrained(self, wish: Wish, request: DeviceRequest, device: OfferedDevice) -> Finding | None:
        for key, constraint in wish.constraints(request):
            problem = _problem(constraint, device.attribute(constraint.attribute), self._values.get(key, ()))
            if problem:
                return Finding(device.node, device.name, names.REASON_NOT_SELECTED, f"has room, but {problem}")
        return None


def _problem(constraint: Constraint, value: object, others: Sequence[object]) -> str:
    if value is None:
        return f"no attribute {constraint.attribute}, which a constraint of the claim compares"
    if constraint.distinct and value in others:
        return f"the same {constraint.attribute} as another device of the claim"
    if not constraint.distinct and others and value != others[0]:
        return f"another {constraint.attribute} than the other devices of the claim"
    return ""


def give_first(wish: Wish, request: DeviceRequest, attempt: Attempt) -> list[Finding]:
    """Give a request the first devices that fit; where there are too few, give none and return what hindered."""
    devices, count = attempt.meant(request)
    given: list[OfferedDevice] = []
    fitting: list[OfferedDevice] = []
    found: list[Finding] = []
    for device in devices:
        finding = attempt.hindrance(wish, request, device)
        if finding is not None:
            found.append(finding)
            continue
        fitting.append(device)
        if len(given) < count and attempt.has_place_for(wish):
            attempt.give(wish, request, device)
            given.append(device)
    if len(given) == count:
        return []
    for device in reversed(given):
        attempt.take_back(wish, request, device)
    return found + [_too_few(request, device, len(fitting), count) for device in fitting]


def _too_few(request: DeviceRequest, device: OfferedDevice, found: int, wanted: int) -> Finding:
    if found >= wanted:
        detail = f"has room, but a claim can be given no more than {MAX_RESULTS} devices"
    else:
        detail = f"has room, but {found} of the {wanted} devices wanted for request {request.name} have"
    return Finding(device.node, device.name, names.REASON_NOT_SELECTED, detail)


def fits(wishes: Sequence[Wish], attempt: Attempt, tries: Tries) -> bool:
    """Say whether any choice of devices serves all requests; where that takes too many tries, that none does."""
    if not wishes:
        return True
    wish, *others = wishes
    return any(
        _choose(_Choice(wish, request, *attempt.meant(request)), others, attempt, tries)
        for request in wish.alternatives
    )


@dataclass(frozen=True)
class _Choice:
    """So many of these devices are to be chosen for a request, in their order."""

    wish: Wish
    request: DeviceRequest
    devices: Sequence[OfferedDevice]
    count: int


def _choose(choice: _Choice, others: Sequence[Wish], attempt: Attempt, tries: Tries) -> bool:
    wish, request = choice.wish, choice.request
    if not choice.count:
        return fits(others, attempt, tries)
    if not attempt.has_place_for(wish):
        return False
    for place, device in enumerate(choice.devices):
        tries.left -= 1
        if tries.left < 0:
            return False
        if attempt.hindrance(wish, request, device) is None:
            attempt.give(wish, request, device)
            rest = replace(choice, devices=choice.devices[place + 1 :], count=choice.count - 1)
            if _choose(rest, others, attempt, tries):
                return True
            attempt.take_back(wish, request, device)
    return False
