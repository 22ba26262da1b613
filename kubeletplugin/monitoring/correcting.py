"""How much real GPU time stands behind what a share predicts: pure arithmetic. Called by the steering.

A share predicts from events around its work. Where neighbours take turns with it, events contain their slices; work
that varies is predicted low. All of that is a ratio that lasts as long as the neighbours stay the same. So it is
measured over a while, and remembered for each set of neighbours. It corrects what is charged and is never fed by the
correction: there is nothing that could oscillate.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MEMORY_S = 3.0
"""Time constant of the measurement: how fast a correction follows."""
_DOUBT = 0.02
"""Part of the device that a share must have before its own ratio weighs as much as its device's: a driver counts in
whole percent, and one percent of it may as well be half as much or none."""
_SEEN_WELL = 0.8
"""Weight of a share's own ratio from which it speaks for its device."""
_LEAST_S = 0.01
"""GPU time that must have been seen before there is a ratio."""
_COMMON_LEAST, _COMMON_MOST = 0.5, 1.0
"""What neighbours have in common is believed within these bounds for a share that is hardly seen itself: they write
their books themselves, and one that says it predicted too little must not make the work of others dearer."""
LEAST, MOST = 0.02, 20.0
_SETS = 64

Neighbours = frozenset[str]


@dataclass(frozen=True)
class Measured:
    """What was measured of a share since the time before."""

    passed_s: float
    real_s: float
    """GPU time by the driver's count."""
    predicted_s: float
    """GPU time that the share predicted for the same."""


@dataclass
class _Sums:
    real_s: float = 0.0
    predicted_s: float = 0.0
    passed_s: float = 0.0

    def add(self, measured: Measured, memory_s: float) -> None:
        kept = math.exp(-measured.passed_s / memory_s)
        self.passed_s = self.passed_s * kept + measured.passed_s
        self.real_s = self.real_s * kept + measured.real_s
        self.predicted_s = self.predicted_s * kept + measured.predicted_s

    def weight(self) -> float:
        """Say how far the ratio can be trusted: 0 to 1."""
        part = self.real_s / self.passed_s if self.passed_s > 0 else 0.0
        return part**2 / (part**2 + _DOUBT**2)


@dataclass
class _Share:
    neighbours: Neighbours = frozenset()
    sums: _Sums = field(default_factory=_Sums)
    ratios: dict[Neighbours, float] = field(default_factory=dict)
    """What was found beside each set of neighbours."""


class Correction:
    """The ratios of the shares of one device."""

    def __init__(self, memory_s: float = MEMORY_S) -> None:
        """Take how long a measurement is remembered."""
        self._memory_s = memory_s
        self._shares: dict[str, _Share] = {}

    def meet(self, active: Neighbours) -> None:
        """Say which shares use the device from now on."""
        self._shares = {name: self._shares.get(name) or _Share() for name in self._shares.keys() | active}
        for name in active:
            share = self._shares[name]
            if share.neighbours != active:
                share.neighbours, share.sums = active, _Sums()

    def forget(self, gone: Neighbours) -> None:
        """Forget shares that are no more."""
        for name in gone:
            self._shares.pop(name, None)

    def add(self, measured: Mapping[str, Measured]) -> None:
        """Take what was measured, by active share."""
        for name in measured.keys() & self._shares.keys():
            share = self._shares[name]
            if measured[name].predicted_s < 0:
                share.sums = _Sums()  # what was predicted before was far too much, and the share knows better now
            else:
                share.sums.add(measured[name], self._memory_s)
        common = self._common(measured.keys())
        for name in measured.keys() & self._shares.keys():
            share = self._shares[name]
            ratio = _ratio(share.sums, common)
            if ratio is not None:
                while len(share.ratios) >= _SETS and share.neighbours not in share.ratios:
                    share.ratios.pop(next(iter(share.ratios)))
                share.ratios[share.neighbours] = ratio

    def ratio(self, share: str) -> float:
        """Return real by predicted GPU time of a share beside its present neighbours; 1.0 before it was measured."""
        known = self._shares.get(share)
        return known.ratios.get(known.neighbours, 1.0) if known else 1.0

    def weight(self, share: str) -> float:
        """Return how far what the driver counts for a share can be trusted: 0 to 1."""
        known = self._shares.get(share)
        return known.sums.weight() if known else 0.0

    def _common(self, names: Iterable[str]) -> float:
        """Return the ratio of those shares together that are seen well, as far as they are what uses the device."""
        sums = [self._shares[name].sums for name in names if name in self._shares]
        seen = [one for one in sums if one.weight() > _SEEN_WELL]
        real_s, predicted_s = sum(one.real_s for one in seen), sum(one.predicted_s for one in seen)
        if real_s <= 0 or predicted_s <= 0:
            return 1.0
        trust = real_s / sum(one.real_s for one in sums)
        ratio = min(max(real_s / predicted_s, _COMMON_LEAST), _COMMON_MOST)
        return trust * ratio + 1 - trust


def _ratio(sums: _Sums, common: float) -> float | None:
    """What is hardly seen is taken for what the device's shares have in common."""
    if sums.predicted_s <= 0 or sums.real_s + sums.predicted_s < _LEAST_S:
        return None
    weight = sums.weight()
    return min(max(weight * sums.real_s / sums.predicted_s + (1 - weight) * common, LEAST), MOST)
