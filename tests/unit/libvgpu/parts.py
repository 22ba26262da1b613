"""Whether programs that launch all the time had their part of the engine, in terms that a busy machine does not change.

A busy machine keeps a program from launching and wakes it late, so how much it had in a second says little. On every
machine it had no more than its part of the time that passed, by the card's own count; it was charged for what it had;
and it was held up for no longer than what it was charged for takes in that part. How near a share comes to its part on
an idle machine is the benchmark's.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from libvgpu.shares import read_books
from libvgpu.stub import read_card

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

_AHEAD_PERCENT = 2
"""What runs ahead of its payment at the end of a program that took a second."""


def used_ns(card: Path) -> int:
    """Return how long a card's engine was had, by its own count."""
    return sum(process.gpu_time_ns for process in read_card(card).processes)


def check_part(machine: "Machine", cores: float, seconds: float, *shares: Path, waiting: int = 1) -> None:
    """Check programs that ended, and were the only ones of the card and of the shares.

    Args:
        machine: whose first card they used.
        cores: percent of it that is theirs.
        seconds: from before their first launch until their last one was done.
        shares: whose books know of them.
        waiting: how many of their threads were held up side by side.
    """
    check_books(used_ns(machine.card), cores, seconds, *shares, waiting=waiting)


def check_books(used_ns: int, cores: float, seconds: float, *shares: Path, waiting: int = 1) -> None:
    """Check the same where others used the card too: `used_ns` is what these programs had of it."""
    books = [read_books(share) for share in shares]
    charged_ns, held_up_ns = sum(one.gpu_time_ns for one in books), sum(one.throttled_ns for one in books)
    found = f"{used_ns / 1e9} s used, {charged_ns / 1e9} s charged, {held_up_ns / 1e9} s held up in {seconds} s"
    assert 0 < used_ns / seconds / 1e7 < cores + _AHEAD_PERCENT, found
    assert 0.9 * used_ns < charged_ns, found
    assert 0 < held_up_ns / waiting * cores / 100 < 1.4 * charged_ns, found
