"""Explanations as text, for events and terminals. Pure; used by `pending` and `explaining`."""

from collections.abc import Sequence
from dataclasses import dataclass

from controller.reasons.fitting import plural, show_amount
from controller.reasons.reasoning import RequestExplanation, selects
from controller.reasons.selecting import read_selectors

MAX_NOTE = 1024
"""Characters in the note of an event (events.k8s.io/v1)."""


def describe(explanations: Sequence[RequestExplanation], *, limit: int = MAX_NOTE, findings: bool = True) -> str:
    """Return explanations as one text of at most `limit` characters; devices that do not fit in are counted.

    Args:
        explanations: of one claim or pod.
        limit: characters; the default is what an event takes.
        findings: False leaves out the devices, for who prints them by himself.
    """
    return _cut(
        [_Text(_heading(each), [str(found) for found in each.findings] if findings else []) for each in explanations],
        limit,
    )


@dataclass
class _Text:
    heading: str
    findings: list[str]


def _heading(explanation: RequestExplanation) -> str:
    request = explanation.request
    amounts = [f"{name} {show_amount(name, value)}" for name, value in sorted(request.capacity.items())]
    least = sorted(read_selectors(request.selectors).least.items())
    amounts += [f"{name} at least {show_amount(name, value)}" for name, value in least if name not in request.capacity]
    asked = ", ".join(amounts)
    if request.resource:
        what = f"Pod {explanation.claim}: {request.resource} ({request.count} of DeviceClass {request.device_class})"
    else:
        what = f"ResourceClaim {explanation.claim}: request {request.name} ({asked or 'a whole device'})"
    if explanation.fits_on and selects(request):
        return f"{what}: no device is selected"
    if explanation.fits_on:
        where = _some(explanation.fits_on)
        return f"{what}: has room on {where}; the node's CPU, memory, taints and affinity are not looked at here"
    if not explanation.findings:
        return f"{what}: no node offers a device; is the node agent running?"
    devices = len({(finding.node, finding.device) for finding in explanation.findings})
    return f"{what}: 0 of {devices} {plural('device', devices)} can serve it"


def _cut(parts: Sequence[_Text], limit: int) -> str:
    """Join headings and findings; leave out findings from the end until the text fits."""
    total = sum(len(part.findings) for part in parts)
    shown = total
    while True:
        text = _join(parts, shown, total)
        if len(text) <= limit or shown == 0:
            return text[:limit]
        shown = min(shown - 1, max(shown * limit // len(text), 0))


def _join(parts: Sequence[_Text], shown: int, total: int) -> str:
    texts = []
    left = shown
    for part in parts:
        findings = part.findings[:left]
        left -= len(findings)
        texts.append(": ".join(text for text in (part.heading, "; ".join(findings)) if text))
    more = f"; and {total - shown} more" if total > shown else ""
    return ". ".join(texts) + more


def _some(nodes: Sequence[str]) -> str:
    return ", ".join(nodes[:3]) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
