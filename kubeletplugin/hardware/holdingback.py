"""Which GPUs of a node the driver keeps its hands off: a filter that the operator sets. Used by the backends."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatch

from api.errors import ConfigError
from kubeletplugin.hardware.devices import Device

_UUID = re.compile(r"(GPU|MIG)-[0-9a-f-]{1,64}", re.IGNORECASE)
_MODEL = "model:"


@dataclass(frozen=True)
class Filter:
    """The devices that are held back."""

    terms: tuple[str, ...] = ()

    @classmethod
    def parse(cls, terms: Iterable[str]) -> "Filter":
        """Read the terms of a setting: a UUID, an index, or `model:` and a name that may contain * and ?.

        Raises:
            ConfigError: a term is none of these.
        """
        kept = tuple(term.strip() for term in terms if term.strip())
        for term in kept:
            named = term.startswith(_MODEL) and len(term) > len(_MODEL)
            if not (named or term.isdecimal() or _UUID.fullmatch(term)):
                raise ConfigError(
                    f"hold_back: found {term!r}, expected a UUID, an index, or {_MODEL}NAME such as {_MODEL}*T4*"
                )
        return cls(kept)

    def apply(self, device: Device) -> Device:
        """Return the device as it is, or kept out with the term that holds it back; a GPU takes its parts with it."""
        for term in self.terms:
            if _matches(term, device):
                return replace(
                    device, shareable=False, offered=False, reason=f"held back by the setting hold_back: {term}"
                )
        return device


def _matches(term: str, device: Device) -> bool:
    if term.startswith(_MODEL):
        return fnmatch(device.product_name.lower(), term.removeprefix(_MODEL).lower())
    if term.isdecimal():
        return device.index == int(term) and not device.uuid.startswith("PCI-")
    return term.lower() in {device.uuid.lower(), device.parent_uuid.lower()}
