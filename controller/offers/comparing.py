"""Is a ResourceSlice as the API server stores it the one that was meant? Used by `publishing` and `probing`.

The API server rewrites quantities ("1024Mi" becomes "1Gi"), fills in defaults (`taints[].timeAdded`) and drops fields
whose feature gate is off. The first two are no difference; the third is what matters most, since a device without its
request policies would be handed out whole and without limits.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from api.claims import Object
from api.errors import ConfigError
from api.quantities import parse_count

_DEFAULTED = frozenset({"timeAdded"})
"""Fields that the API server sets by itself and that are not fought over."""


_QUANTITIES = frozenset({"capacity", "counters"})
"""Fields with quantities inside."""


def normal(value: Any, *, quantities: bool = False) -> Any:
    """Return the content in one spelling: quantities as numbers, nothing empty, no fields that the server fills in."""
    if isinstance(value, Mapping):
        inside = {
            key: normal(child, quantities=quantities or key in _QUANTITIES)
            for key, child in value.items()
            if key not in _DEFAULTED
        }
        return {key: child for key, child in inside.items() if child not in (None, {}, [])}
    if isinstance(value, list):
        return [normal(child, quantities=quantities) for child in value]
    if quantities and isinstance(value, str):
        try:
            return parse_count(value, "quantity")
        except ConfigError:
            return value
    return value


def same(wanted: Object, stored: Object) -> bool:
    """Say whether two slice specs mean the same."""
    return bool(normal(wanted) == normal(stored))


def lost_fields(wanted: Object, stored: Object) -> tuple[str, ...]:
    """Return the fields of a wanted spec that a stored one lacks or has otherwise, each once: `devices[].capacity...`.

    Args:
        wanted: the spec that was sent.
        stored: the spec that the API server answered with.
    """
    return tuple(dict.fromkeys(_lost(normal(wanted), normal(stored), "")))


def _lost(wanted: Any, stored: Any, path: str) -> Iterator[str]:
    if isinstance(wanted, dict) and isinstance(stored, dict):
        for key, child in wanted.items():
            inside = f"{path}.{key}" if path else str(key)
            if key in stored:
                yield from _lost(child, stored[key], inside)
            else:
                yield inside
    elif isinstance(wanted, list) and isinstance(stored, list) and len(wanted) == len(stored):
        for child, other in zip(wanted, stored, strict=True):
            yield from _lost(child, other, f"{path}[]")
    elif wanted != stored:
        yield path
