"""Settles what a share was charged with what it really had: pure arithmetic. Called by the steering.

A ratio (correcting.py) is right for work like the work before. What was charged wrongly until it was known, and what
varies faster than it follows, is given back to the share, or taken from it, afterwards: so a share has its part over
any longer time, whatever its kernels and its neighbours do.

What a share says it was charged comes from books that its tenant can write. So nothing is given back to a share that
has more of the device than its part, by the driver's own count.
"""

import math
from dataclasses import dataclass

_LEAST_S = 0.005
"""Settled in portions of at least so much GPU time."""
_MEMORY_S = 10.0
"""How long it counts that a share had more than its part, or less."""
_AHEAD_S = 0.25
"""Times its part: how far ahead of its part a share may be and still be given something back."""


@dataclass(frozen=True)
class Span:
    """A share, as it was measured for a while; times in seconds."""

    passed_s: float
    real_s: float
    """GPU time by the driver's count."""
    charged_s: float
    part: float
    """Of the device that the share may have: 0 to 1."""
    weight: float
    """How far the driver's count can be trusted: 0 to 1."""


class Settlement:
    """The account of one share."""

    def __init__(self) -> None:
        self._open_s = 0.0
        self._behind_s = 0.0
        """How much less than its part it had; below zero: more."""
        self._room_s = 0.0

    def add(self, span: Span) -> None:
        """Take what was measured since the call before."""
        self._open_s += span.weight * (span.charged_s - span.real_s)
        kept = math.exp(-span.passed_s / _MEMORY_S)
        self._behind_s = self._behind_s * kept + span.part * span.passed_s - span.real_s
        self._room_s = max(self._behind_s + _AHEAD_S * span.part, 0.0)

    def take(self) -> float:
        """Return the seconds of GPU time that are given to the share now; below zero: taken from it."""
        portion_s = min(self._open_s, self._room_s)
        if abs(portion_s) < _LEAST_S:
            return 0.0
        self._open_s -= portion_s
        self._room_s -= portion_s
        return portion_s
