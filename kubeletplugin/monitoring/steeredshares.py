"""What the steering knows of one share: what it had done at any moment of the last seconds, as its books say.

Made and asked by the steering. A share is looked at while it works, and afterwards until all that it did was seen and
held against what the driver counted: nobody gets around that by stopping before a look.
"""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from kubeletplugin.hardware.gputimes import GpuTimes
from kubeletplugin.monitoring.correcting import Measured
from kubeletplugin.monitoring.settling import Settlement
from libvgpu.meters import ProcessKey, ShareMeter, Work
from libvgpu.shares import Limits

_HISTORY = 100
"""Moments that are remembered, about five seconds."""
_UNSEEN_S = 0.1
_LONGEST_OWED_S = 120.0
"""Longer than any share waits for a look. After that the driver does not say what is still to be matched."""


@dataclass(frozen=True)
class _Counted:
    """What the driver counted for a share."""

    from_s: float
    to_s: float
    real_s: float


@dataclass(frozen=True)
class Match:
    """What books and driver say of the same time."""

    measured: Measured
    charged_s: float
    """Taken from the share's bucket."""


@dataclass
class SteeredShare:
    """One share of a device, from look to look."""

    folder: Path
    limits: Limits
    meter: ShareMeter
    settlement: Settlement = field(default_factory=Settlement)
    _stamp: bytes = b""
    _seen_s: float = float("-inf")
    """When it was active last."""
    _work: dict[ProcessKey, Work] = field(default_factory=dict)
    """At the look before."""
    _history: deque[tuple[float, Work]] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    """Moments, and what the share's processes had done up to then, altogether."""
    _due_s: float = float("-inf")
    """When its books may be looked at again."""
    waits: bool = False
    """It was active, and not looked at, since the last look."""
    _owed: bool = False
    """It has waited, and what it did meanwhile was not measured yet."""
    _unmatched: list[_Counted] = field(default_factory=list)
    """What the driver counted, one after the other, for which the look is still to come."""

    @property
    def name(self) -> str:
        """The name of the share."""
        return self.limits.share

    @property
    def rate_percent(self) -> int:
        """What the share may use now."""
        return min(self.limits.granted_percent or 100, self.limits.ceiling_percent)

    def is_active(self, now_s: float, linger_s: float) -> bool:
        """Return whether it was seen at work a moment ago."""
        return now_s - self._seen_s <= linger_s

    def note_activity(self, now_s: float) -> None:
        """See whether it has launched work, or waits to, since the last call."""
        stamp = self.meter.stamp()
        if stamp and self._stamp and stamp != self._stamp:
            self._seen_s = now_s
        self._stamp = stamp

    def follow(self, now_s: float, active: bool, slots_a_second: float) -> bool:
        """Look at what it does, if that is due; return whether it takes part in measurements now."""
        if active:
            self.look(now_s, slots_a_second)
            return True
        if self._owed and now_s - self._seen_s > _LONGEST_OWED_S:
            self.waits = self._owed = False
            self._unmatched.clear()
            self._history.clear()
        if self.waits:
            self.look(now_s, slots_a_second, idle=True)
        return self._owed

    def look(self, now_s: float, slots_a_second: float, *, idle: bool = False) -> None:
        """Add the present to the history, unless the last look cost so much that it is too early for another."""
        total = self._history[-1][1] if self._history else Work()
        if self._history and not self.waits and now_s - self._history[-1][0] > _UNSEEN_S:
            self._history.append((now_s - _UNSEEN_S, total))  # it was idle until lately
        if now_s < self._due_s:
            self.waits = self._owed = True
            return
        found = self.meter.work(self.limits.charge_permille or 1000)
        self._due_s = now_s + self.meter.cost / slots_a_second
        before, self._work = self._work if self._history else found, found
        self.waits = False
        predicted_s = sum(work.predicted_s - before.get(key, Work()).predicted_s for key, work in found.items())
        charged_s = sum(work.charged_s - before.get(key, Work()).charged_s for key, work in found.items())
        total = Work(total.predicted_s + predicted_s, total.charged_s + charged_s)
        if idle and self._history:
            self._history.append((max(self._seen_s, self._history[-1][0]), total))  # since then it did nothing
        self._history.append((now_s, total))

    def match(self, times: GpuTimes, real_s: float, linger_s: float) -> Match | None:
        """Hold what the driver counted against the books, as far as these are known by now.

        Args:
            times: of which span the driver speaks.
            real_s: GPU time that it counted for this share.
            linger_s: for how long the share counted as active after it was.

        Returns:
            None where a look is still to come, or what was done is forgotten.
        """
        self._unmatched.append(_Counted(times.from_s, times.to_s, real_s))
        known_s = float("inf") if not self.waits else self._history[-1][0] if self._history else float("-inf")
        ready = [one for one in self._unmatched if one.to_s <= known_s]
        self._unmatched = self._unmatched[len(ready) :]
        self._owed = self.waits
        if not ready or not self._history or self._history[0][0] > ready[0].from_s:
            return None
        from_s, to_s = ready[0].from_s, ready[-1].to_s
        start, end = self._done(from_s), self._done(to_s)
        # How long it was idle before somebody looked says nothing about how well the driver sees it.
        ended_s = self._seen_s + linger_s
        passed_s = (min(to_s, ended_s) if ended_s > from_s else to_s) - from_s
        measured = Measured(passed_s, sum(one.real_s for one in ready), end.predicted_s - start.predicted_s)
        return Match(measured, end.charged_s - start.charged_s)

    def _done(self, moment_s: float) -> Work:
        """Return what was done up to a moment, between two looks in proportion."""
        before_s, before = self._history[0]
        for after_s, after in self._history:
            if after_s >= moment_s:
                part = (moment_s - before_s) / (after_s - before_s) if after_s > before_s else 1.0
                part = min(max(part, 0.0), 1.0)
                return Work(
                    before.predicted_s + (after.predicted_s - before.predicted_s) * part,
                    before.charged_s + (after.charged_s - before.charged_s) * part,
                )
            before_s, before = after_s, after
        return before
