"""Which pods wait for which claims: an index, kept up to date pod by pod. Used by `caching`."""

from dataclasses import dataclass, field

from controller.records import PodRecord
from controller.watching import Key


@dataclass
class WaitingPods:
    """Pods without a node, by the claims that they name. Not thread-safe: its owner locks."""

    _by_claim: dict[Key, set[Key]] = field(default_factory=dict)

    def note(self, pod: Key, old: PodRecord | None, new: PodRecord | None) -> set[Key]:
        """Take over a pod; return the claims that are worth a look since then."""
        before, after = set(old.claims if old else ()), set(new.claims if new else ())
        for claim in before - after:
            waiting = self._by_claim.get(claim, set())
            waiting.discard(pod)
            if not waiting:
                self._by_claim.pop(claim, None)
        for claim in after - before:
            self._by_claim.setdefault(claim, set()).add(pod)
        was_refused, is_refused = (record.unschedulable if record else False for record in (old, new))
        return before | after if was_refused != is_refused or before != after else set()

    def of(self, claim: Key) -> list[Key]:
        """Return the pods that name a claim, by name."""
        return sorted(self._by_claim.get(claim, ()))

    def claims(self) -> list[Key]:
        """Return the claims that pods name."""
        return list(self._by_claim)
