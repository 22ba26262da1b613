"""Which pods wait for which claims: an index, kept up to date pod by pod. Used by `indexing`.

Only pods that the scheduler has tried to place are in it: all others, which are most, have nothing to wait for yet.
"""

from dataclasses import dataclass, field

from controller.cluster.records import PodRecord
from controller.cluster.watching import Key


@dataclass
class WaitingPods:
    """Pods that found no place, by the claims that they name. Not thread-safe: its owner locks."""

    _by_claim: dict[Key, set[Key]] = field(default_factory=dict)
    _asking: set[Key] = field(default_factory=set)
    """Pods that ask for extended resources."""

    def note(self, pod: Key, old: PodRecord | None, new: PodRecord | None) -> set[Key]:
        """Take over a pod; return the claims that are worth a look since then."""
        before, after = (set(record.claims if record and record.unschedulable else ()) for record in (old, new))
        (self._asking.add if new and new.unschedulable and new.asks else self._asking.discard)(pod)
        for claim in before - after:
            waiting = self._by_claim.get(claim, set())
            waiting.discard(pod)
            if not waiting:
                self._by_claim.pop(claim, None)
        for claim in after - before:
            self._by_claim.setdefault(claim, set()).add(pod)
        return before ^ after

    def of(self, claim: Key) -> list[Key]:
        """Return the pods that name a claim, by name."""
        return sorted(self._by_claim.get(claim, ()))

    def wait_for(self, claim: Key) -> bool:
        """Say whether any pod names a claim."""
        return claim in self._by_claim

    def claims(self) -> list[Key]:
        """Return the claims that pods name."""
        return list(self._by_claim)

    def asking(self) -> list[Key]:
        """Return the pods that ask for extended resources."""
        return list(self._asking)
