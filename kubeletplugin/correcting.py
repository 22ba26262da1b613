"""How much real GPU time stands behind what a share predicts: pure arithmetic. Called by the steering.

A share predicts from events around its work. Where neighbours take turns with it, events contain their slices; copies
are in no prediction; work that varies is predicted low. All of that is a ratio that lasts as long as the neighbours
stay the same. So it is measured over a while, and remembered for each set of neighbours. It corrects what is charged
and is never fed by the correction: there is nothing that could oscillate.
"""

import math
from dataclasses import dataclass, field

MEMORY_S = 3.0
"""Time constant of the measurement: how fast a correction follows."""
_DOUBT_S = 0.01
"""GPU time that must have been seen before a share's own ratio weighs as much as its device's."""
LEAST, MOST = 0.02, 20.0
_SETS = 64

Neighbours = frozenset[str]


@dataclass
class _Sums:
    real_s: float = 0.0
    predicted_s: float = 0.0

    def fade(self, passed_s: float, memory_s: float) -> None:
        kept = math.exp(-passed_s / memory_s)
        self.real_s *= kept
        self.predicted_s *= kept


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

    def add(self, passed_s: float, real_s: dict[str, float], predicted_s: dict[str, float]) -> None:
        """Take what was measured in the time since the call before.

        Args:
            passed_s: how long that was.
            real_s: GPU time by the driver's count, by active share.
            predicted_s: GPU time that the shares predicted for the same.
        """
        for name, share in self._shares.items():
            if name in real_s and name in predicted_s:
                share.sums.fade(passed_s, self._memory_s)
                share.sums.real_s += real_s[name]
                share.sums.predicted_s += predicted_s[name]
        common = self._common(real_s.keys() & predicted_s.keys())
        for name in real_s.keys() & predicted_s.keys() & self._shares.keys():
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

    def _common(self, names: set[str]) -> float:
        sums = [self._shares[name].sums for name in names if name in self._shares]
        real_s, predicted_s = sum(one.real_s for one in sums), sum(one.predicted_s for one in sums)
        return real_s / predicted_s if real_s > 0 and predicted_s > 0 else 1.0


def _ratio(sums: _Sums, common: float) -> float | None:
    """The driver counts in whole percent: what is hardly seen is taken for what the device's shares have in common."""
    if sums.predicted_s <= 0 or sums.real_s + sums.predicted_s < _DOUBT_S:
        return None
    weight = sums.real_s / (sums.real_s + _DOUBT_S)
    return min(max(weight * sums.real_s / sums.predicted_s + (1 - weight) * common, LEAST), MOST)
