"""The one form of CEL that explanations understand: least capacities, as claims for devices of fixed sizes write them.

Used by `reasoning`. All other CEL is the scheduler's: to evaluate it twice, in two languages, is to explain wrongly
sooner or later. Where other CEL decides, explanations say that it is not evaluated.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from api import names
from api.errors import ConfigError
from api.quantities import parse_count_up

_TERM = re.compile(
    r"""device\.capacity\[(?P<q>["'])(?P<domain>[^"']+)(?P=q)\]\.(?P<name>[A-Za-z_]\w*)"""
    r"""\.compareTo\(\s*quantity\((?P<r>["'])(?P<amount>[^"']+)(?P=r)\)\s*\)\s*>=\s*0"""
)


@dataclass(frozen=True)
class Selection:
    """What CEL selectors ask for."""

    least: Mapping[str, int] = field(default_factory=dict)
    """Amounts by capacity name that a device must have at least."""
    complete: bool = True
    """False: there is more in them, which is not understood here."""


@lru_cache(1024)  # asked for each device anew
def read_selectors(expressions: tuple[str, ...], domain: str = names.DRIVER_NAME) -> Selection:
    """Return what is understood of selectors.

    Args:
        expressions: CEL; a device must pass them all.
        domain: that of the capacities: the driver's name.
    """
    least: dict[str, int] = {}
    complete = True
    for term in (part.strip() for expression in expressions for part in _conjunction(expression)):
        match = _TERM.fullmatch(term)
        if match is None or match["domain"] != domain:
            complete = False
            continue
        try:
            amount = parse_count_up(match["amount"], "quantity")
        except ConfigError:
            complete = False
            continue
        least[match["name"]] = max(least.get(match["name"], 0), amount)
    return Selection(least, complete)


def _conjunction(expression: str) -> list[str]:
    # Within other operators a term need not hold: then none of the expression is understood.
    return [expression] if re.search(r"\|\||\?|!", expression) else expression.split("&&")
