"""Kubernetes quantities of memory: "8Gi", "500M", "1048576".

Parsing is left to the kubernetes package; here are the rules that hold for device memory: whole bytes, above zero,
not absurd.
"""

from decimal import Decimal

from kubernetes.utils.quantity import parse_quantity

from api.errors import ConfigError

MAX_BYTES = (1 << 63) - 1
"""The largest value of a Kubernetes quantity that is an integer (resource.Quantity.Value())."""

_BINARY_UNITS = (("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10))


def parse_bytes(quantity: object, where: str) -> int:
    """Return the bytes that a quantity such as "8Gi" stands for.

    Args:
        quantity: a Kubernetes quantity: a string, or a whole number of bytes.
        where: names the object and field, for the message.

    Raises:
        ConfigError: not a quantity, not above zero, not whole, or above 2^63-1.
    """
    expected = 'expected a quantity of memory above 0 such as "8Gi" or "500Mi"'
    if isinstance(quantity, bool) or not isinstance(quantity, str | int):
        raise ConfigError(f"{where}: found {quantity!r}, {expected}")
    try:
        value: Decimal = parse_quantity(quantity)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise ConfigError(f"{where}: found {quantity!r}, {expected}") from error
    if not value.is_finite() or value <= 0:
        raise ConfigError(f"{where}: found {quantity!r}, {expected}")
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
    expected = "expected a whole number of 0 or above"
    if isinstance(quantity, bool) or not isinstance(quantity, str | int):
        raise ConfigError(f"{where}: found {quantity!r}, {expected}")
    try:
        value: Decimal = parse_quantity(quantity)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise ConfigError(f"{where}: found {quantity!r}, {expected}") from error
    if not value.is_finite() or value < 0 or value > MAX_BYTES or value != value.to_integral_value():
        raise ConfigError(f"{where}: found {quantity!r}, {expected}")
    return int(value)


def format_bytes(value_bytes: int) -> str:
    """Return the shortest exact binary quantity, such as "8Gi" for 8589934592; it parses back to the same value."""
    for unit, size in _BINARY_UNITS:
        if value_bytes and value_bytes % size == 0:
            return f"{value_bytes // size}{unit}"
    return str(value_bytes)
