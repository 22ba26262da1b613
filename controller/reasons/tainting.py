"""Puts the taints of DeviceTaintRules on devices, as the scheduler does. Pure; used by `caching` and `explaining`.

Rules of Kubernetes 1.33 and 1.34 may select by DeviceClass and CEL too: our own classes and least capacities are
understood here, anything else leaves the taint in doubt. Source: KEP-5055, k8s.io/dynamic-resource-allocation/
resourceslice/tracker.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from api import names
from controller.reasons.fitting import OfferedDevice, of_class
from controller.reasons.selecting import read_selectors
from controller.reasons.taintrules import Taint, TaintRule

_Place = tuple[str | None, str | None]
"""Pool and device that a rule names."""


def tainted(devices: Iterable[OfferedDevice], rules: Iterable[TaintRule]) -> list[OfferedDevice]:
    """Return devices with the taints that rules put on them.

    A rule that names a pool or a device costs the others nothing: there may be thousands of both.
    """
    by_place: dict[_Place, list[TaintRule]] = {}
    for rule in sorted(rules, key=lambda rule: rule.taint.rule):
        by_place.setdefault((rule.pool, rule.device), []).append(rule)
    if not by_place:
        return list(devices)
    return [
        replace(device, taints=(*device.taints, *found)) if (found := tuple(_taints(device, by_place))) else device
        for device in devices
    ]


def _taints(device: OfferedDevice, by_place: dict[_Place, list[TaintRule]]) -> Iterator[Taint]:
    for pool in (None, device.node):
        for name in (None, device.name):
            for rule in by_place.get((pool, name), ()):
                selected = _selects(rule, device)
                if selected is None:
                    yield replace(rule.taint, in_doubt=True)
                elif selected:
                    yield rule.taint


def _selects(rule: TaintRule, device: OfferedDevice) -> bool | None:
    """Say whether the class and the selectors of a rule select a device; None: that cannot be told here."""
    if rule.device_class is not None and not of_class(rule.device_class, device.vendor):
        return False
    found = read_selectors(rule.selectors, device.driver)
    if any(device.capacity.get(name, 0) < least for name, least in found.least.items()):
        return False
    return True if found.complete and _is_ours(rule.device_class) else None


def _is_ours(device_class: str | None) -> bool:
    ours = (None, names.DEVICE_CLASS_ANY)
    return device_class in ours or str(device_class).startswith(names.device_class(""))
