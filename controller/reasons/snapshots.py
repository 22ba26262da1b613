"""Devices as claims meet them, from published slices and inventories. Pure; used by `indexing` and `explaining`.

What is offered is read from the slices and not from the offer mode, since it is what the scheduler reads; what is
withheld is in the inventories alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from api import names
from api.claims import Object
from api.errors import ConfigError, StateError
from api.quantities import parse_count
from api.slices import Taint as SliceTaint
from api.slices import read_counter_set, read_device
from api.slots import gpu_of
from controller.offers.counting import DeviceKey
from controller.offers.offering import Withheld
from controller.reasons.capacities import read_policy
from controller.reasons.fitting import OfferedDevice
from controller.reasons.taintrules import EFFECTIVE, Taint


class DeviceIndex:
    """The devices of all nodes, kept up to date slice by slice. Not thread-safe: its owner locks."""

    def __init__(self) -> None:
        self._offered: dict[str, list[OfferedDevice]] = {}
        self._counters: dict[str, dict[DeviceKey, Mapping[str, int]]] = {}
        """By slice: counter sets by node and name."""
        self._withheld: dict[str, tuple[Withheld, ...]] = {}
        self._offered_count = self._withheld_count = 0

    def note_slice(self, name: str, obj: Object | None) -> None:
        """Take over a slice; None: it is gone."""
        self._offered_count -= len(self._offered.pop(name, ()))
        self._counters.pop(name, None)
        if obj is not None:
            self._offered[name] = list(_of_slice(obj))
            self._offered_count += len(self._offered[name])
            counters = dict(_counters_of_slice(obj))
            if counters:
                self._counters[name] = counters

    def note_withheld(self, node: str, withheld: tuple[Withheld, ...]) -> None:
        """Take over what a node has and does not offer."""
        self._withheld_count += len(withheld) - len(self._withheld.pop(node, ()))
        if withheld:
            self._withheld[node] = withheld

    def devices(self) -> list[OfferedDevice]:
        """Return all devices, offered and withheld."""
        reasons = {(node, each.device): each.reason for node, devices in self._withheld.items() for each in devices}
        found = [device for devices in self._offered.values() for device in devices]
        if self._counters:
            rooms = {key: room for sets in self._counters.values() for key, room in sets.items()}
            found = [replace(device, room=rooms.get((device.node, device.drawn_on), {})) for device in found]
        if not reasons:
            return found
        gpus = [(device.node, gpu_of(device.name)) for device in found]
        found = [replace(device, withheld=reasons.get(gpu, "")) for device, gpu in zip(found, gpus, strict=True)]
        absent = [OfferedDevice(*key, withheld=reason) for key, reason in reasons.items() if key not in set(gpus)]
        return found + absent

    def counts(self) -> tuple[int, int]:
        """Return the number of devices offered and withheld."""
        return self._offered_count, self._withheld_count


def _of_slice(obj: Object) -> Iterator[OfferedDevice]:
    spec = obj["spec"]
    for entry in spec.get("devices") or []:
        try:
            yield _device(spec, entry)
        except (StateError, ConfigError):
            # Not written by us, or by a version to come: the scheduler can judge it, we cannot.
            continue


def _counters_of_slice(obj: Object) -> Iterator[tuple[DeviceKey, Mapping[str, int]]]:
    for entry in obj["spec"].get("sharedCounters") or []:
        try:
            found = read_counter_set(entry)
            room = {name: _count(value) for name, value in found.counters.items()}
        except (StateError, ConfigError):
            continue
        yield (obj["spec"]["pool"]["name"], found.name), room


def _device(spec: Object, entry: Object) -> OfferedDevice:
    device = read_device(entry)
    vendor = device.attributes.get(names.ATTRIBUTE_VENDOR, "")
    drawn = device.consumes[0] if device.consumes else None
    return OfferedDevice(
        node=spec["pool"]["name"],
        name=device.name,
        vendor=vendor if isinstance(vendor, str) else "",
        capacity={name: _count(amount.value) for name, amount in device.capacity.items()},
        policies={name: read_policy(amount) for name, amount in device.capacity.items()},
        shared=device.allow_multiple,
        drawn_on=drawn.name if drawn else "",
        draws={name: _count(value) for name, value in drawn.counters.items()} if drawn else {},
        taints=_taints(device.taints),
        driver=spec["driver"],
        attributes=(entry.get("basic") or entry).get("attributes") or {},
    )


def _taints(taints: Sequence[SliceTaint]) -> tuple[Taint, ...]:
    return tuple(Taint("", taint.key, taint.value, taint.effect) for taint in taints if taint.effect in EFFECTIVE)


def _count(quantity: str) -> int:
    return parse_count(quantity, "capacity")
