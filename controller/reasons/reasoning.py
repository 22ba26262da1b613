"""Why a claim cannot be met, device by device. Pure: `pending` writes it as events, `explaining` prints it.

It follows the scheduler's allocator as far as capacity, taints and constraints of devices go: one node for all claims
of a pod (`placing`); what a device says to a request is `fitting`. Of CEL it understands least capacities (`selecting`)
and no more, and it does not look at nodes (CPU, taints, affinity); where only these are left as reasons, it says so.
Source: KEP-5075, k8s.io/dynamic-resource-allocation/structured.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from api import names
from api.claims import ClaimView, DeviceRequest
from controller.offers.counting import DeviceKey, Usage
from controller.reasons.fitting import Finding, OfferedDevice, doubts
from controller.reasons.placing import Attempt, Tries, Wish, fits, give_first
from controller.reasons.selecting import read_selectors

_TRIES = 10_000
"""How often devices are tried for one explanation where the first that fit do not go together."""
_MOST_DEVICES = 64
"""For a pod that asks for more, no other choice is looked for."""


@dataclass(frozen=True)
class RequestExplanation:
    """What every device says to one request of a claim."""

    claim: str
    """Namespace and name; of the pod, where the request stands for an extended resource."""
    request: DeviceRequest
    findings: tuple[Finding, ...]
    fits_on: tuple[str, ...]
    """Nodes whose devices have room for everything that the pod asks."""

    @property
    def is_ours(self) -> bool:
        """Say whether devices are what is missing; else it waits for something that is no device's business."""
        fits_on = set(self.fits_on)
        # A node with room has findings only where selectors or doubtful taints may leave a device out.
        return not fits_on or selects(self.request) or any(finding.node in fits_on for finding in self.findings)


_NO_PLUGINS: Mapping[str, Collection[str]] = {}


def explain(
    claims: Sequence[ClaimView],
    devices: Iterable[OfferedDevice],
    usage: Mapping[DeviceKey, Usage],
    plugins: Mapping[str, Collection[str]] = _NO_PLUGINS,
) -> list[RequestExplanation]:
    """Return for each unmet request of a pod why each device cannot serve it.

    Args:
        claims: all claims of one pod (they must end up on one node), or one claim.
        devices: of all nodes, offered or withheld.
        usage: what allocated claims hold of each device.
        plugins: by node, extended resources that device plugins have there: DeviceClasses do not stand for them there.
    """
    nodes: dict[str, list[OfferedDevice]] = {}
    for device in devices:
        nodes.setdefault(device.node, []).append(device)
    bound = {
        result.pool
        for claim in claims
        if claim.allocation
        for result in claim.allocation.results
        if result.pool in nodes
    }
    wishes = [
        Wish(place, claim, group)
        for place, claim in enumerate(claims)
        if claim.allocation is None
        for group in _alternatives(claim)
    ]
    findings: list[list[Finding]] = [[] for _ in wishes]
    tries = Tries(_TRIES)
    fits_on = [
        node
        for node in sorted(bound or nodes)
        if not _left_to_plugins(wishes, nodes[node], plugins.get(node, ()), findings)
        and _place_all(wishes, nodes[node], usage, findings, tries)
    ]
    return [
        RequestExplanation(
            f"{wish.claim.namespace}/{wish.claim.name}", wish.alternatives[-1], tuple(found), tuple(fits_on)
        )
        for wish, found in zip(wishes, findings, strict=True)
        if found or fits_on or not nodes
    ]


def of_classes(claim: ClaimView, is_ours: Callable[[str], bool]) -> ClaimView:
    """Return a claim without the requests for devices of other drivers, by the names of their DeviceClasses."""
    return replace(claim, requests=tuple(request for request in claim.requests if is_ours(request.device_class)))


def _alternatives(claim: ClaimView) -> list[tuple[DeviceRequest, ...]]:
    """Group the alternatives of a firstAvailable list: one of them is enough."""
    groups: dict[str, list[DeviceRequest]] = {}
    for request in claim.requests:
        groups.setdefault(request.name.split("/")[0], []).append(request)
    return [tuple(group) for group in groups.values()]


def selects(request: DeviceRequest) -> bool:
    """Say whether CEL that is not evaluated here decides too: the request's own, or that of a foreign class."""
    ours = request.device_class == names.DEVICE_CLASS_ANY or request.device_class.startswith(names.device_class(""))
    return not read_selectors(request.selectors).complete or not ours


def _left_to_plugins(
    wishes: Sequence[Wish], devices: Sequence[OfferedDevice], there: Collection[str], findings: list[list[Finding]]
) -> bool:
    """Say whether a device plugin has a resource that a pod asks for; add that to `findings`."""
    if not there:
        return False
    is_left = False
    for wish, found in zip(wishes, findings, strict=True):
        resource = wish.alternatives[-1].resource
        if resource in there:
            is_left = True
            detail = f"a device plugin has {resource} on this node, and goes before its DeviceClass"
            found += [Finding(device.node, device.name, names.REASON_NOT_SELECTED, detail) for device in devices]
    return is_left


def _place_all(
    wishes: Sequence[Wish],
    devices: Sequence[OfferedDevice],
    usage: Mapping[DeviceKey, Usage],
    findings: list[list[Finding]],
    tries: Tries,
) -> bool:
    """Place all requests of a pod on a node; return whether it worked, add what hindered to `findings`."""
    attempt = Attempt(devices, usage)
    hindered = [_give_one(wish, attempt) for wish in wishes]
    placed = not any(hindered) or _fits_otherwise(wishes, Attempt(devices, usage), tries)
    if placed:
        fresh = Attempt(devices, usage)
        hindered = [list(_doubtful(wish, fresh)) for wish in wishes]
    for found, more in zip(findings, hindered, strict=True):
        found.extend(more)
    return placed


def _give_one(wish: Wish, attempt: Attempt) -> list[Finding]:
    """Give devices for one of the alternatives, first fit; return what hindered it, nothing if it worked."""
    found: list[Finding] = []
    for request in wish.alternatives:
        found = give_first(wish, request, attempt)
        if not found:
            break
    # Of the last alternative: it is the most modest, and what it lacks is what to act on.
    return found


def _fits_otherwise(wishes: Sequence[Wish], attempt: Attempt, tries: Tries) -> bool:
    """Say whether another choice of devices than the first that fit serves all, if that may be at all."""
    if len(wishes) == 1 and all(request.count == 1 for request in wishes[0].alternatives):
        return False
    wanted = 0
    for wish in wishes:
        enough = [count for request in wish.alternatives if (count := _count_alone(wish, request, attempt))]
        if not enough:
            return False
        wanted += max(enough)
    return wanted <= _MOST_DEVICES and fits(wishes, attempt, tries)


def _count_alone(wish: Wish, request: DeviceRequest, attempt: Attempt) -> int:
    """Return how many devices a request wants, 0 if there are not so many for it."""
    devices, count = attempt.meant(request)
    fitting = sum(attempt.hindrance(wish, request, device) is None for device in devices)
    return count if fitting >= count else 0


def _doubtful(wish: Wish, attempt: Attempt) -> Iterator[Finding]:
    """Yield what may hinder on a node with room: CEL that is not evaluated here, of the claim or of taint rules."""
    request = wish.alternatives[-1]
    everything = selects(request)
    for device in attempt.devices:
        tainted = doubts(request, device) if device.taints else ""
        if everything or tainted:
            yield attempt.hindrance(wish, request, device) or _left_out(device, tainted, selects=everything)


def _left_out(device: OfferedDevice, tainted: str, *, selects: bool) -> Finding:
    if not selects:
        return Finding(device.node, device.name, names.REASON_TAINTED, f"has room; {tainted}")
    detail = "has room; left out by selectors, which are not evaluated here, or by the node"
    detail += f", or by {tainted}" if tainted else ""
    return Finding(device.node, device.name, names.REASON_NOT_SELECTED, detail)
