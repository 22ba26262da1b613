"""Quantities: what users write for memory, and what they are told when it is wrong."""

import pytest

from api.errors import ConfigError
from api.quantities import format_bytes, parse_bytes, parse_count

_EXPECTED = 'expected a quantity of memory above 0 such as "8Gi" or "500Mi"'


@pytest.mark.parametrize(
    ("quantity", "value_bytes"),
    [("8Gi", 8 << 30), ("500M", 500_000_000), ("1e3", 1000), (1048576, 1048576), ("1.5Gi", 3 << 29), ("3000m", 3)],
)
def test_a_quantity_means_what_kubernetes_means_by_it(quantity: str | int, value_bytes: int) -> None:
    assert parse_bytes(quantity, "memory") == value_bytes


@pytest.mark.parametrize(
    "quantity", ["", "8GB", "eight", "-1Gi", "0", "NaN", "Infinity", None, True, 1.5, [], "1 Gi", "1_000"]
)
def test_what_is_no_amount_of_memory_is_refused_with_what_was_found(quantity: object) -> None:
    with pytest.raises(ConfigError) as error:
        parse_bytes(quantity, "ResourceClaim a/b: memory")
    assert str(error.value) == f"ResourceClaim a/b: memory: found {quantity!r}, {_EXPECTED}"


def test_a_part_of_a_byte_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^m: found '1500m', expected a whole number of bytes$"):
        parse_bytes("1500m", "m")


def test_an_absurd_amount_is_refused_with_the_largest_one() -> None:
    with pytest.raises(ConfigError, match=r"^m: found '9Ei', expected at most 9223372036854775807 bytes$"):
        parse_bytes("9Ei", "m")


def test_an_exponent_beyond_all_bounds_is_refused_like_any_other_word() -> None:
    with pytest.raises(ConfigError, match=r"^cores: found '1e9{20}', expected a whole number of 0 or above$"):
        parse_count("1e" + 20 * "9", "cores")


def test_a_count_may_be_zero_and_not_less() -> None:
    assert parse_count("0", "cores") == 0
    assert parse_count("30", "cores") == 30
    with pytest.raises(ConfigError, match=r"^cores: found '-1', expected a whole number of 0 or above$"):
        parse_count("-1", "cores")


@pytest.mark.parametrize(
    ("value_bytes", "text"), [(8 << 30, "8Gi"), (1536 << 20, "1536Mi"), (1000, "1000"), (0, "0"), (1 << 41, "2Ti")]
)
def test_bytes_are_written_as_the_shortest_exact_quantity(value_bytes: int, text: str) -> None:
    assert format_bytes(value_bytes) == text
