"""ResourceSlices as the driver writes and reads them, whichever version of resource.k8s.io is served.

v1beta1 wraps a device's fields in `basic`; v1beta2 and v1 have them inline. Used by the controller.
Source: k8s.io/api/resource/{v1,v1beta1,v1beta2}/types.go; limits on values in kubernetes-dra KEP-4381 and KEP-5075.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from api.claims import Object
from api.errors import StateError

MAX_DEVICES = 128
"""Devices in one slice (ResourceSliceMaxDevices)."""
MAX_ADVANCED_DEVICES = 64
"""The same, if any of them has taints or counters (ResourceSliceMaxDevicesWithAdvancedFeatures)."""
MAX_COUNTER_SETS = 8
"""Counter sets in one slice, from 1.35 (ResourceSliceMaxCounterSets)."""
MAX_COUNTERS = 32
"""Counters of all sets in one slice, up to 1.34 (ResourceSliceMaxSharedCounters)."""


@dataclass(frozen=True)
class Version:
    """An attribute's value that is a semantic version."""

    text: str


AttributeValue = str | int | bool | Version
_ATTRIBUTE_KEYS: Mapping[type, str] = {str: "string", int: "int", bool: "bool", Version: "version"}


@dataclass(frozen=True)
class Range:
    """Amounts that a claim may ask for: minimum, maximum and the step between them."""

    minimum: str
    maximum: str
    step: str


@dataclass(frozen=True)
class Capacity:
    """A capacity of a device; amounts are quantities such as "10Gi"."""

    value: str
    default: str | None = None
    """What a claim gets that does not ask; None: all of it."""
    valid_range: Range | None = None
    valid_values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Taint:
    """Keeps claims away that do not tolerate it (KEP-5055)."""

    key: str
    value: str = ""
    effect: str = "NoSchedule"


@dataclass(frozen=True)
class CounterSet:
    """What several devices draw on (KEP-4815)."""

    name: str
    counters: Mapping[str, str]
    """Quantities by counter."""


@dataclass(frozen=True)
class Device:
    """A device as it is offered."""

    name: str
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    capacity: Mapping[str, Capacity] = field(default_factory=dict)
    allow_multiple: bool = False
    consumes: tuple[CounterSet, ...] = ()
    """What it draws on sets of these names while it is allocated."""
    taints: tuple[Taint, ...] = ()


def render_device(device: Device, version: str) -> dict[str, Any]:
    """Return the device as JSON of the given version of resource.k8s.io."""
    fields: dict[str, Any] = {
        "attributes": {name: _render_attribute(value) for name, value in device.attributes.items()},
        "capacity": {name: _render_capacity(capacity) for name, capacity in device.capacity.items()},
    }
    if device.allow_multiple:
        fields["allowMultipleAllocations"] = True
    if device.consumes:
        fields["consumesCounters"] = [
            {"counterSet": drawn.name, "counters": _render_counters(drawn.counters)} for drawn in device.consumes
        ]
    if device.taints:
        fields["taints"] = [_render_taint(taint) for taint in device.taints]
    if version == "v1beta1":
        return {"name": device.name, "basic": fields}
    return {"name": device.name, **fields}


def render_counter_set(counter_set: CounterSet) -> dict[str, Any]:
    """Return a counter set as JSON; it is the same in all versions."""
    return {"name": counter_set.name, "counters": _render_counters(counter_set.counters)}


def _render_counters(counters: Mapping[str, str]) -> dict[str, Any]:
    return {name: {"value": value} for name, value in counters.items()}


def _render_taint(taint: Taint) -> dict[str, str]:
    return {"key": taint.key, "effect": taint.effect} | ({"value": taint.value} if taint.value else {})


def read_device(device: Object) -> Device:
    """Return a device read from a slice of any version.

    Raises:
        StateError: not the fields of a device.
    """
    try:
        fields: Object = device.get("basic") or device
        return Device(
            name=device["name"],
            attributes={name: _read_attribute(value) for name, value in (fields.get("attributes") or {}).items()},
            capacity={name: _read_capacity(value) for name, value in (fields.get("capacity") or {}).items()},
            allow_multiple=bool(fields.get("allowMultipleAllocations")),
            consumes=tuple(
                CounterSet(drawn["counterSet"], {key: str(value["value"]) for key, value in drawn["counters"].items()})
                for drawn in fields.get("consumesCounters") or ()
            ),
            taints=tuple(
                Taint(taint["key"], taint.get("value") or "", taint["effect"]) for taint in fields.get("taints") or ()
            ),
        )
    except (KeyError, TypeError, AttributeError, StopIteration) as error:
        raise StateError(
            f"device {device!r}: expected the fields of a ResourceSlice's device, found {error!r}"
        ) from error


def _render_attribute(value: AttributeValue) -> dict[str, Any]:
    return {_ATTRIBUTE_KEYS[type(value)]: value.text if isinstance(value, Version) else value}


def _read_attribute(value: Object) -> AttributeValue:
    key, content = next(iter(value.items()))
    return Version(content) if key == "version" else content


def _render_capacity(capacity: Capacity) -> dict[str, Any]:
    rendered: dict[str, Any] = {"value": capacity.value}
    policy: dict[str, Any] = {}
    if capacity.default is not None:
        policy["default"] = capacity.default
    if capacity.valid_range is not None:
        limits = capacity.valid_range
        policy["validRange"] = {"min": limits.minimum, "max": limits.maximum, "step": limits.step}
    if capacity.valid_values:
        policy["validValues"] = list(capacity.valid_values)
    if policy:
        rendered["requestPolicy"] = policy
    return rendered


def _read_capacity(capacity: Object) -> Capacity:
    policy = capacity.get("requestPolicy") or {}
    limits = policy.get("validRange")
    return Capacity(
        value=str(capacity["value"]),
        default=policy.get("default"),
        valid_range=Range(limits["min"], limits.get("max", ""), limits.get("step", "")) if limits else None,
        valid_values=tuple(policy.get("validValues") or ()),
    )


def read_counter_set(counter_set: Object) -> CounterSet:
    """Return a counter set read from a slice.

    Raises:
        StateError: not the fields of a counter set.
    """
    try:
        return CounterSet(
            counter_set["name"], {key: str(value["value"]) for key, value in counter_set["counters"].items()}
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise StateError(f"counter set {counter_set!r}: expected name and counters, found {error!r}") from error
