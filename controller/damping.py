"""How often what a node is told of a claim may change: at once, and ever more rarely while it goes on.

Used by `telling`. Tenants annotate their claims as often as they like, and each change of an annotation would be a
write to the NodeInventory, which all who watch it pay for. So each claim has a pause of its own, which doubles from
change to change and is forgotten when it was quiet for as long: no tenant slows another one down.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from api.names import ClaimUID
from controller.backoff import Backoff, backoff


@dataclass(frozen=True)
class _Change:
    digest: str | None
    """What was told then; None: that there is nothing to follow any more."""
    backoff: Backoff
    """When that was, and from when on the next change may be told."""


class Damper:
    """Holds changes back, node by node. One thread at a time may work on a node."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin with nothing told lately; `clock` gives seconds."""
        self._clock = clock
        self._changes: dict[str, dict[ClaimUID, _Change]] = {}
        self._due_s: dict[str, float] = {}

    def admit(self, node: str, told: Mapping[ClaimUID, str], wanted: Mapping[ClaimUID, str]) -> Mapping[ClaimUID, str]:
        """Return what to tell a node now.

        Args:
            node: its name.
            told: what it knows: digests by claim.
            wanted: what it should know.
        """
        now_s = self._clock()
        before = self._changes.pop(node, {})
        changes = {uid: change for uid, change in before.items() if not change.backoff.is_over(now_s)}
        self._due_s.pop(node, None)
        admitted = dict(wanted)
        for uid in told.keys() | wanted.keys() | changes.keys():
            digest, last = wanted.get(uid), changes.get(uid)
            if digest == (last.digest if last is not None else told.get(uid)):
                continue
            if last is None or now_s >= last.backoff.due_s:
                changes[uid] = _Change(digest, backoff(last.backoff if last is not None else None, now_s))
                continue
            self._due_s[node] = min(self._due_s.get(node, last.backoff.due_s), last.backoff.due_s)
            admitted.pop(uid, None)
            if last.digest is not None:
                admitted[uid] = last.digest
        if changes:
            self._changes[node] = changes
        return admitted

    def due_in_s(self, node: str) -> float | None:
        """Return after how many seconds to tell a node what was held back; None: nothing was."""
        due_s = self._due_s.get(node)
        return None if due_s is None else max(due_s - self._clock(), 0.0)

    def forget(self, node: str) -> None:
        """Forget a node that is gone."""
        self._changes.pop(node, None)
        self._due_s.pop(node, None)
