"""Programs that compare the books with the card's own count as they go, for tests of what takes memory unasked."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

_EXACT = """
import pathlib
from libvgpu.shares import read_books
from libvgpu.stub import read_card
CARD, SHARE = pathlib.Path({card!r}), pathlib.Path({share!r})

def exact():
    booked, counted = read_books(SHARE).used_bytes, read_card(CARD).used_bytes
    assert booked == counted, (booked, counted)
    return booked
"""


def run_exactly(machine: "Machine", share: Path, code: str) -> None:
    """Run a program that has CARD, SHARE, and exact(), which returns the bytes in use that both agree on."""
    machine.run(_EXACT.format(card=str(machine.card), share=str(share)) + code)
