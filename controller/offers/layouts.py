"""What a GPU is cut into where a rule does not say: slots and menus by the GPU's size. Pure; used by `policies`.

The fractions are those that people ask for: halves, quarters and, of a large GPU, eighths. Slots are a mixture, since a
layout is a guess about the claims to come; a menu has them all, since nothing is decided before the claim comes.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction

from api import names
from api.offerrules import SlotSize
from api.slots import MAX_INDEX, MAX_MEMORY_STEPS
from controller.offers.forms import Amount

_GI = 1 << 30
_SMALL_BYTES = 12 * _GI
_LARGE_BYTES = 40 * _GI

_Parts = Sequence[tuple[Fraction, int]]
_HALVES: _Parts = ((Fraction(1, 2), 2),)
_QUARTERS_AND_HALF: _Parts = ((Fraction(1, 4), 2), (Fraction(1, 2), 1))
_EIGHTHS_QUARTER_HALF: _Parts = ((Fraction(1, 8), 2), (Fraction(1, 4), 1), (Fraction(1, 2), 1))
_MENU: _Parts = ((Fraction(1, 4), 4), (Fraction(1, 2), 2))
_LARGE_MENU: _Parts = ((Fraction(1, 8), 8), *_MENU)


def default_slots(room: Amount) -> tuple[tuple[Amount, int], ...]:
    """Return sizes and numbers of slots that fill a GPU: two halves; with a quarter or eighths where it is larger."""
    if room.memory_bytes < _SMALL_BYTES:
        return _parts(room, _HALVES)
    return _parts(room, _QUARTERS_AND_HALF if room.memory_bytes < _LARGE_BYTES else _EIGHTHS_QUARTER_HALF)


def default_menu(room: Amount) -> tuple[tuple[Amount, int], ...]:
    """Return the sizes beside the whole GPU, each as often as it fits: quarters and halves, of a large GPU eighths."""
    return _parts(room, _MENU if room.memory_bytes < _LARGE_BYTES else _LARGE_MENU)


def sizes(room: Amount, chosen: Sequence[SlotSize]) -> tuple[tuple[Amount, int], ...]:
    """Return chosen sizes as amounts, smallest first; equal ones are counted together.

    Cores that are not said are the memory's part of the GPU. What the GPU is too small for is left out.
    """
    found: dict[Amount, int] = {}
    for size in chosen:
        memory_bytes = size.memory_bytes - size.memory_bytes % names.MEMORY_STEP_BYTES
        share = room.cores_percent * memory_bytes // max(room.memory_bytes, 1)
        amount = Amount(memory_bytes, min(share if size.cores is None else size.cores, names.CORES_PER_DEVICE))
        if amount.fits(room) and memory_bytes // names.MEMORY_STEP_BYTES <= MAX_MEMORY_STEPS:
            found[amount] = min(found.get(amount, 0) + size.count, MAX_INDEX + 1)
    return _sorted(found.items())


def _parts(room: Amount, parts: _Parts) -> tuple[tuple[Amount, int], ...]:
    found = {}
    for part, count in parts:
        cores = min(int(room.cores_percent * part), names.CORES_PER_DEVICE)
        found[Amount(int(room.memory_bytes * part), cores).clamped()] = count
    return _sorted((amount, count) for amount, count in found.items() if amount.memory_bytes)


def _sorted(found: Iterable[tuple[Amount, int]]) -> tuple[tuple[Amount, int], ...]:
    return tuple(sorted(found, key=lambda entry: (entry[0].memory_bytes, entry[0].cores_percent)))
