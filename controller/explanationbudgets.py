"""How often the controller works out why claims wait. Used by `pending`.

An explanation goes through all devices of the cluster: with thousands of them it takes long, and thousands of claims
may wait. So explanations together take a part of one core; where one is expensive, claims that ask for the same share
it for a while.
"""

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from api.claims import ClaimView
from api.names import ClaimUID
from controller.reasons.reasoning import RequestExplanation

_CORES = 0.1
"""Part of a core that explanations may take in the long run."""
_BURST_S = 1.0
"""CPU time that they may take at once."""
_CHEAP_S = 0.005
"""CPU time up to which nobody need share an explanation."""

Explain = Callable[[Sequence[ClaimView]], list[RequestExplanation]]


@dataclass(frozen=True)
class _Kept:
    found: list[RequestExplanation]
    until_s: float


class ExplanationBudget:
    """Explanations, each for all claims of a pod. Safe to use from several threads."""

    def __init__(
        self,
        explain: Explain,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """Take what explains.

        Args:
            explain: returns why the claims of a pod wait; called with claims that have numbers for names.
            clock: seconds.
            cpu_clock: seconds of CPU that the calling thread has taken.
        """
        self._explain = explain
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._put_off: set[Hashable] = set()
        self._left_s = _BURST_S
        self._at_s = clock()
        self._cost_s = 0.0
        """Of the last one."""

    def explain(self, who: Hashable, claims: Sequence[ClaimView]) -> list[RequestExplanation] | float:
        """Return why the claims of a pod wait; or, where too many ask, the seconds after which to ask again.

        Args:
            who: who asks; the same when it asks again.
            claims: of one pod.
        """
        nameless = [_nameless(number, claim) for number, claim in enumerate(claims)]
        shape = repr(nameless)
        with self._lock:
            now_s = self._clock()
            kept = self._kept.get(shape)
            if kept is None or now_s >= kept.until_s:
                delay_s = self._delay_s(who, now_s)
                if delay_s > 0:
                    return delay_s
                kept = None
            self._put_off.discard(who)
        found = kept.found if kept is not None else self._take(shape, nameless)
        names = {f"{other.namespace}/{other.name}": claim for other, claim in zip(nameless, claims, strict=True)}
        return [replace(each, claim=f"{names[each.claim].namespace}/{names[each.claim].name}") for each in found]

    def forget(self, who: Hashable) -> None:
        """Expect it no longer."""
        with self._lock:
            self._put_off.discard(who)

    def _delay_s(self, who: Hashable, now_s: float) -> float:
        self._left_s = min(self._left_s + (now_s - self._at_s) * _CORES, _BURST_S)
        self._at_s = now_s
        if self._left_s > 0:
            return 0.0
        self._put_off.add(who)
        return (len(self._put_off) * self._cost_s - self._left_s) / _CORES

    def _take(self, shape: str, claims: Sequence[ClaimView]) -> list[RequestExplanation]:
        began_s = self._cpu_clock()
        found = self._explain(claims)
        cost_s = self._cpu_clock() - began_s
        with self._lock:
            now_s = self._clock()
            self._left_s -= cost_s
            self._cost_s = cost_s
            self._kept = {key: kept for key, kept in self._kept.items() if now_s < kept.until_s}
            if cost_s > _CHEAP_S:
                self._kept[shape] = _Kept(found, now_s + cost_s / _CORES)
        return found


def _nameless(number: int, claim: ClaimView) -> ClaimView:
    """Return what an explanation depends on."""
    return replace(
        claim,
        namespace="",
        name=str(number),
        uid=ClaimUID(""),
        configs=(),
        reserved_for=(),
        pod_uid=None,
        limits_annotation=None,
    )
