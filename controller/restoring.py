"""How often a pool is put right that somebody else changes: at once, and ever more rarely while that goes on.

Used by `keeping`. Whoever deletes or edits slices by a loop of his own (another controller, a script) would else be
answered each time, as fast as the API server takes it, and each write makes the scheduler look at all pods that wait.
What is our own wish, such as a device that broke, is written at once all the same.
"""

import logging
from collections.abc import Callable

from controller.backoff import Backoff, backoff
from controller.offers.publishing import Pool

log = logging.getLogger(__name__)

_TOLD_FROM_S = 8.0
"""Of a pause that is as long, the log tells."""


class Restores:
    """Remembers what was written and how often it was put right, by node. One thread at a time may work on a node."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin with nothing written; `clock` gives seconds."""
        self._clock = clock
        self._written: dict[str, Pool] = {}
        self._restored: dict[str, Backoff] = {}
        self._due_s: dict[str, float] = {}

    def may_write(self, node: str, pool: Pool) -> bool:
        """Say whether a pool that is not as it should be may be written now; if it is to wait, see `due_in_s`."""
        now_s = self._clock()
        self._due_s.pop(node, None)
        if self._written.get(node) != pool:
            return True
        last = self._restored.get(node)
        if last is not None and now_s < last.due_s:
            self._due_s[node] = last.due_s
            return False
        restored = self._restored[node] = backoff(last, now_s)
        if restored.pause_s >= _TOLD_FROM_S:
            details = {"node": node, "pause_s": restored.pause_s}
            log.warning("somebody else changes the slices of a node again and again; put right", extra=details)
        return True

    def note_written(self, node: str, pool: Pool) -> None:
        """Remember that the slices of a node are those of a pool now, by a write of ours or by somebody else's."""
        self._written[node] = pool
        self._due_s.pop(node, None)

    def due_in_s(self, node: str) -> float | None:
        """Return after how many seconds a node's pool may be put right; None: it is right."""
        due_s = self._due_s.get(node)
        return None if due_s is None else max(due_s - self._clock(), 0.0)

    def forget(self, node: str) -> None:
        """Forget what was written of a node: it is withdrawn."""
        self._written.pop(node, None)
        self._due_s.pop(node, None)
