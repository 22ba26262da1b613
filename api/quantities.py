"""Kubernetes quantities of memory: "8Gi", "500M", "1048576".

Parsing is left to the kubernetes package; here are the rules that hold for device memory: whole bytes, above zero,
not absurd.
"""

import re
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache

from kubernetes.utils.quantity import parse_quantity

from api.errors import ConfigError

MAX_BYTES = (1 << 63) - 1
"""The largest value of a Kubernetes quantity that is an integer (resource.Quantity.Value())."""

_BINARY_UNITS = (("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10))


# The form that the API server takes (k8s.io/apimachinery/pkg/api/resource); Decimal alone takes blanks and "_" too.
_FORM = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+|[numkMGTPE]|[KMGTPE]i)?", re.ASCII)


def parse_bytes(quantity: object, where: str) -> int:
    """Return the bytes that a quantity such as "8Gi" stands for.

    Args:
        quantity: a Kubernetes quantity: a string, or a whole number of bytes.
        where: names the object and field, for the message.

    Raises:
        ConfigError: not a quantity, not above zero, not whole, or above 2^63-1.
    """
    value = _parse(quantity)
    if value is None or value <= 0:
        raise ConfigError(
            f'{where}: found {quantity!r}, expected a quantity of memory above 0 such as "8Gi" or "500Mi"'
        )
    if value != value.to_integral_value():
        raise ConfigError(f"{where}: found {quantity!r}, expected a whole number of bytes")
    if value > MAX_BYTES:
        raise ConfigError(f"{where}: found {quantity!r}, expected at most {MAX_BYTES} bytes")
    return int(value)


def parse_count(quantity: object, where: str) -> int:
    """Return the whole number, 0 or above, that a quantity such as "30" or "2k" stands for.

    Raises:
        ConfigError: not a quantity, negative, not whole, or above 2^63-1.
    """
    value = _parse(quantity)
    if value is None or not 0 <= value <= MAX_BYTES or value != value.to_integral_value():
        raise ConfigError(f"{where}: found {quantity!r}, expected a whole number of 0 or above")
    return int(value)


def parse_count_up(quantity: object, where: str) -> int:
    """Return the least whole number that is not below a quantity such as "500m", which gives 1.

    Raises:
        ConfigError: not a quantity, negative, or above 2^63-1.
    """
    value = _parse(quantity)
    if value is None or not 0 <= value <= MAX_BYTES:
        return parse_count(quantity, where)
    return parse_count(int(value.to_integral_value(ROUND_CEILING)), where)


def _parse(quantity: object) -> Decimal | None:
    if isinstance(quantity, bool) or not isinstance(quantity, str | int):
        return None
    return _parse_text(quantity) if isinstance(quantity, str) else Decimal(quantity)


@lru_cache(1024)  # the claims of a cluster ask for the same few amounts
def _parse_text(quantity: str) -> Decimal | None:
    if not _FORM.fullmatch(quantity):
        return None
    try:
        value: Decimal = parse_quantity(quantity)  # type: ignore[no-untyped-call]
    except ValueError:
        return None  # an exponent beyond all bounds
    return value


def format_bytes(value_bytes: int) -> str:
    """Return the shortest exact binary quantity, such as "8Gi" for 8589934592; it parses back to the same value."""
    for unit, size in _BINARY_UNITS:
        if value_bytes and value_bytes % size == 0:
            return f"{value_bytes // size}{unit}"
    return str(value_bytes)
