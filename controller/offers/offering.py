"""What a node's devices are offered as: the interface of the offer modes, and the data that they speak in.

A mode turns GPUs into the content of ResourceSlices; it is pure and knows no API server. Which mode a cluster can carry
is found out by `probing`; `composing` puts a node's offer together, `migrating` says what a mode has to leave alone
because of an older offer, and `publishing` plans the writes. The modes are `consumable`, `counters` and `slots`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from api import names
from api.nodeinventory import DeviceFacts, OfferedRoom
from api.quantities import format_bytes
from api.slices import MAX_ADVANCED_DEVICES, MAX_DEVICES, AttributeValue, Capacity, CounterSet, Device, Version
from controller.offers.forms import GPU, Amount, Division, Form, Kind

_MAX_VALUE_BYTES = 64
"""Of a string or version attribute (DeviceAttributeMaxValueLength)."""
CORDONED = "cordoned by an operator"
"""Why a device is withheld whose NodeInventory says so."""
MOST_DEVICES = 256
"""Of a node: 16 GPUs have 112 parts. Whoever has the token of one agent could else keep the controller busy for all."""
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NUMERIC_VERSION = re.compile(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?")


@dataclass(frozen=True)
class SliceContent:
    """What one ResourceSlice of a pool holds."""

    devices: tuple[Device, ...] = ()
    counter_sets: tuple[CounterSet, ...] = ()


@dataclass(frozen=True)
class Withheld:
    """A device that a node has and that claims cannot have, and why: it is not offered, or tainted."""

    device: str
    reason: str


@dataclass(frozen=True)
class Offer:
    """What a node offers: at least one slice, an empty one where there is no device ("driver up, no devices")."""

    slices: tuple[SliceContent, ...] = (SliceContent(),)
    withheld: tuple[Withheld, ...] = ()
    rooms: tuple[OfferedRoom, ...] = ()
    """Of the devices of which more is offered, or held, than they have: for their node agent."""


class OfferMode(Protocol):
    """A way to offer GPUs in fractions."""

    @property
    def name(self) -> str:
        """Such as `consumable`; shown in logs and metrics."""
        ...

    @property
    def feature_gate(self) -> str:
        """The Kubernetes feature gate without which an API server drops the fields that the mode needs; or empty."""
        ...

    def wanted(self, gpu: GPU) -> tuple[Form, ...]:
        """Return what a GPU is to be offered as where nothing stands in the way."""
        ...

    def divide(self, gpu: GPU) -> Division:
        """Return what a GPU is offered as now: never more than its room without what is taken of it."""
        ...

    def pack(self, divisions: Sequence[tuple[GPU, Division]]) -> tuple[SliceContent, ...]:
        """Return the devices of a node in slices; their order is the scheduler's order."""
        ...

    def sample(self) -> tuple[SliceContent, ...]:
        """Return slices that use every field that the mode needs, to find out if an API server keeps them."""
        ...


@dataclass(frozen=True)
class NoMode:
    """The mode for an API server that no mode can be used on: offers nothing, since nothing could be limited."""

    reason: str
    name: str = "none"
    feature_gate: str = ""

    def wanted(self, _gpu: GPU) -> tuple[Form, ...]:
        """Return nothing."""
        return ()

    def divide(self, _gpu: GPU) -> Division:
        """Return nothing."""
        return Division()

    def pack(self, _divisions: Sequence[tuple[GPU, Division]]) -> tuple[SliceContent, ...]:
        """Return an empty slice."""
        return self.sample()

    def sample(self) -> tuple[SliceContent, ...]:
        """Return an empty slice."""
        return (SliceContent(),)


def pack(devices: Sequence[Device]) -> tuple[SliceContent, ...]:
    """Return the devices in order, in as few slices as the API's limit on devices per slice allows; at least one."""
    advanced = any(device.taints or device.consumes for device in devices)
    most = MAX_ADVANCED_DEVICES if advanced else MAX_DEVICES
    starts = range(0, max(len(devices), 1), most)
    return tuple(SliceContent(tuple(devices[start : start + most])) for start in starts)


def sort_out(devices: Iterable[DeviceFacts]) -> tuple[list[DeviceFacts], list[Withheld]]:
    """Split devices into those that may be offered and those that must not, whatever the mode and their health.

    One device that the API server refuses would cost the node its whole slice, so what it would refuse stays out.
    """
    kept: list[DeviceFacts] = []
    withheld: list[Withheld] = []
    seen: set[str] = set()
    for facts in devices:
        reason = _why_withheld(facts, seen)
        if not reason and len(kept) == MOST_DEVICES:
            reason = f"the node has more than {MOST_DEVICES} devices that could be offered"
        if reason:
            withheld.append(Withheld(facts.name, reason))
        else:
            kept.append(facts)
        seen.add(facts.name)
    return kept, withheld


def _why_withheld(facts: DeviceFacts, seen: set[str]) -> str:
    if not facts.offered:
        return facts.health or "not offered"
    if not facts.shareable and facts.type == names.DEVICE_TYPE_GPU:
        return facts.health or "not shareable"
    if facts.name in seen:
        return "another device of the node has the same name"
    if not _DNS_LABEL.fullmatch(facts.name):
        return f"found the name {facts.name!r}, expected a DNS label of at most 63 characters"
    return ""


def attributes(facts: DeviceFacts) -> dict[str, AttributeValue]:
    """Return what CEL selectors can ask about a device; what the agent does not know is left out."""
    versions = {
        names.ATTRIBUTE_COMPUTE_CAPABILITY: facts.compute_capability,
        names.ATTRIBUTE_DRIVER_VERSION: facts.driver_version,
        names.ATTRIBUTE_RUNTIME_VERSION: facts.runtime_version,
    }
    texts = {
        names.ATTRIBUTE_VENDOR: facts.vendor,
        names.ATTRIBUTE_UUID: facts.uuid,
        names.ATTRIBUTE_PRODUCT_NAME: facts.product_name,
        names.ATTRIBUTE_ARCHITECTURE: facts.architecture,
        names.ATTRIBUTE_TYPE: facts.type,
        names.ATTRIBUTE_PROFILE: facts.profile,
        names.ATTRIBUTE_PCIE_ROOT: facts.pcie_root,
        names.ATTRIBUTE_PCI_BUS_ID: facts.pci_bus_id,
        names.ATTRIBUTE_LINK_ISLAND: facts.link_island,
    }
    found: dict[str, AttributeValue] = {name: _shorten(text) for name, text in texts.items() if text}
    found |= {name: as_version(text) for name, text in versions.items() if text}
    if facts.numa_node is not None:
        found[names.ATTRIBUTE_NUMA_NODE] = facts.numa_node
    if facts.mig_capable is not None:
        found[names.ATTRIBUTE_MIG_CAPABLE] = facts.mig_capable
    return found


def as_version(text: str) -> Version | str:
    """Return a driver's version as a strict semantic version, or as plain text where it cannot be one.

    Drivers write "580.159.03" and "9.0"; semver.org wants three numbers without leading zeros: 580.159.3 and 9.0.0.
    """
    match = _NUMERIC_VERSION.fullmatch(text)
    if match is None:
        return _shorten(text)
    version = ".".join(str(int(part or 0)) for part in match.groups())
    return Version(version) if len(version) <= _MAX_VALUE_BYTES else _shorten(text)


def _shorten(text: str) -> str:
    return text.encode()[:_MAX_VALUE_BYTES].decode(errors="ignore")


def fixed_device(gpu: GPU, form: Form) -> Device:
    """Return a device of a fixed size: the whole GPU or a slot of it, for one claim at a time."""
    capacity = {
        names.CAPACITY_MEMORY: Capacity(format_bytes(form.amount.memory_bytes)),
        names.CAPACITY_CORES: Capacity(str(form.amount.cores_percent)),
    }
    counted = (counter_set(gpu.name, gpu.booked(form.amount)),) if form.kind is Kind.COUNTED else ()
    return Device(form.name, gpu_attributes(gpu), capacity, consumes=counted, taints=gpu.taints)


def counter_set(gpu: str, amount: Amount) -> CounterSet:
    """Return what a GPU has, or a device takes of it, as counters."""
    counters = {
        names.CAPACITY_MEMORY: format_bytes(amount.memory_bytes),
        names.CAPACITY_CORES: str(amount.cores_percent),
    }
    return CounterSet(gpu, counters)


def gpu_attributes(gpu: GPU) -> dict[str, AttributeValue]:
    """Return what CEL selectors can ask about a GPU as it is offered."""
    found = attributes(gpu.facts)
    if gpu.room.memory_bytes > gpu.facts.memory_bytes or gpu.room.cores_percent > names.CORES_PER_DEVICE:
        found[names.ATTRIBUTE_OVERSUBSCRIBED] = True
    return found
