"""Why a claim cannot be met, device by device. Pure: `pending` writes it as events, `explaining` prints it.

It follows the scheduler's allocator as far as capacity and taints of devices go: one node for all claims of a pod,
first device that fits; what a device says to a request is `fitting`. Of CEL it understands least capacities
(`selecting`) and no more, and it does not look at nodes (CPU, taints, affinity); where only these are left as reasons,
it says so. Source: KEP-5075, k8s.io/dynamic-resource-allocation/structured.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from api import names
from api.claims import ClaimView, DeviceRequest
from controller.offers.counting import UNUSED, DeviceKey, Usage
from controller.reasons.fitting import Finding, OfferedDevice, amounts, check, doubts
from controller.reasons.selecting import read_selectors


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
        fits_on = set(self.fits_on)
        # A node with room has findings only where selectors or doubtful taints may leave a device out.
        return not fits_on or selects(self.request) or any(finding.node in fits_on for finding in self.findings)


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
            found.extend(_doubtful(group[-1], devices, usage))
    return placed


def _doubtful(
    request: DeviceRequest, devices: Sequence[OfferedDevice], usage: Mapping[DeviceKey, Usage]
) -> Iterable[Finding]:
    """Yield what may hinder on a node with room: CEL that is not evaluated here, of the claim or of taint rules."""
    everything = selects(request)
    for device in devices:
        if everything or (device.taints and doubts(request, device)):
            yield _left_out(request, device, usage)


def _left_out(request: DeviceRequest, device: OfferedDevice, usage: Mapping[DeviceKey, Usage]) -> Finding:
    found = check(request, device, usage.get(device.key, UNUSED))
    if found is not None:
        return found
    tainted = doubts(request, device)
    if tainted and not selects(request):
        return Finding(device.node, device.name, names.REASON_TAINTED, f"has room; {tainted}")
    detail = "has room; left out by selectors, which are not evaluated here, or by the node"
    detail += f", or by {tainted}" if tainted else ""
    return Finding(device.node, device.name, names.REASON_NOT_SELECTED, detail)


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
