"""What a node's devices are offered as: the interface of the offer modes, and the data that they speak in.

A mode turns a NodeInventory into the content of ResourceSlices; it is pure and knows no API server. Which mode a
cluster can carry is found out by `probing`, what is published by `publishing`. Today there is `consumable`; modes for
API servers without consumable capacity come beside it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from api import names
from api.nodeinventory import DeviceFacts, InventoryStatus
from api.slices import AttributeValue, Device, Version

_MAX_VALUE_BYTES = 64
"""Of a string or version attribute (DeviceAttributeMaxValueLength)."""
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NUMERIC_VERSION = re.compile(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?")


@dataclass(frozen=True)
class SliceContent:
    """What one ResourceSlice of a pool holds."""

    devices: tuple[Device, ...] = ()


@dataclass(frozen=True)
class Withheld:
    """A device that a node has and that is not offered, and why."""

    device: str
    reason: str


@dataclass(frozen=True)
class Offer:
    """What a node offers: at least one slice, an empty one where there is no device ("driver up, no devices")."""

    slices: tuple[SliceContent, ...] = (SliceContent(),)
    withheld: tuple[Withheld, ...] = ()


class OfferMode(Protocol):
    """A way to offer devices in fractions."""

    @property
    def name(self) -> str:
        """Such as `consumable`; shown in logs and metrics."""
        ...

    @property
    def feature_gate(self) -> str:
        """The Kubernetes feature gate without which an API server drops the fields that the mode needs."""
        ...

    def offer(self, inventory: InventoryStatus) -> Offer:
        """Return what a node's devices are offered as. The order of slices and devices is the scheduler's order."""
        ...

    def sample(self) -> SliceContent:
        """Return a slice that uses every field that the mode needs, to find out if an API server keeps them."""
        ...


@dataclass(frozen=True)
class NoMode:
    """The mode for an API server that no mode can be used on: offers nothing, since nothing could be limited."""

    reason: str
    name: str = "none"
    feature_gate: str = ""
    _nothing: Offer = field(default_factory=Offer)

    def offer(self, inventory: InventoryStatus) -> Offer:
        """Return an empty slice, and all devices as withheld."""
        return Offer(withheld=tuple(Withheld(facts.name, self.reason) for facts in inventory.devices))

    def sample(self) -> SliceContent:
        """Return an empty slice."""
        return self._nothing.slices[0]


def pack(devices: Sequence[Device], devices_per_slice: int) -> tuple[SliceContent, ...]:
    """Return the devices in order, in as few slices as the API's limit on devices per slice allows; at least one."""
    starts = range(0, max(len(devices), 1), devices_per_slice)
    return tuple(SliceContent(tuple(devices[start : start + devices_per_slice])) for start in starts)


def sort_out(devices: Iterable[DeviceFacts]) -> tuple[list[DeviceFacts], list[Withheld]]:
    """Split devices into those that may be offered and those that must not, whatever the mode.

    One device that the API server refuses would cost the node its whole slice, so what it would refuse stays out.
    """
    kept: list[DeviceFacts] = []
    withheld: list[Withheld] = []
    seen: set[str] = set()
    for facts in devices:
        reason = _why_withheld(facts, seen)
        if reason:
            withheld.append(Withheld(facts.name, reason))
        else:
            kept.append(facts)
        seen.add(facts.name)
    return kept, withheld


def _why_withheld(facts: DeviceFacts, seen: set[str]) -> str:
    if not facts.offered:
        return facts.health or "not offered"
    if not facts.healthy:
        return facts.health or "not healthy"
    if not facts.shareable:
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
        names.ATTRIBUTE_PCIE_ROOT: facts.pcie_root,
        names.ATTRIBUTE_PCI_BUS_ID: facts.pci_bus_id,
    }
    found: dict[str, AttributeValue] = {name: _shorten(text) for name, text in texts.items() if text}
    found |= {name: as_version(text) for name, text in versions.items() if text}
    if facts.numa_node is not None:
        found[names.ATTRIBUTE_NUMA_NODE] = facts.numa_node
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
