"""A work queue of keys: each key at most once in the queue and in one pair of hands, later or again with back-off.

The shape of client-go's workqueue, as far as the controller needs it. Used by `terms`.
"""

import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from api.errors import KubeError

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

_FIRST_DELAY_S = 0.1
_LAST_DELAY_S = 60.0
_REFUSED = (400, 403, 422)
"""HTTP: an answer that the same request gets again, until somebody does something about it."""


def backoff_s(failures: int) -> float:
    """Return the delay after so many failures in a row: doubling from a tenth of a second to a minute."""
    return min(_FIRST_DELAY_S * 2.0 ** min(failures - 1, 20), _LAST_DELAY_S)


@dataclass(order=True)
class _Later(Generic[K]):
    due: float
    key: K = field(compare=False)


class WorkQueue(Generic[K]):
    """Keys to work on. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._ready: deque[K] = deque()
        self._queued: set[K] = set()
        self._working: set[K] = set()
        self._again: set[K] = set()
        """Keys that were added while somebody worked on them."""
        self._later: list[_Later[K]] = []
        self._due: dict[K, float] = {}
        """The one time at which a delayed key is due; other entries of it in the heap are void."""
        self._failures: dict[K, int] = {}
        self._closed = False

    def add(self, key: K) -> None:
        """Queue a key now, if it is not queued already."""
        with self._changed:
            self._due.pop(key, None)
            self._add(key)

    def add_after(self, key: K, delay_s: float) -> None:
        """Queue a key after a delay; the earliest of several delays counts."""
        with self._changed:
            due = self._clock() + delay_s
            if due < self._due.get(key, float("inf")):
                self._due[key] = due
                heapq.heappush(self._later, _Later(due, key))
                self._changed.notify()

    def retry(self, key: K, least_s: float = 0.0) -> float:
        """Queue a key after the next delay of its back-off, at least `least_s`; return the delay."""
        with self._changed:
            self._failures[key] = self._failures.get(key, 0) + 1
            delay_s = max(backoff_s(self._failures[key]), least_s)
        self.add_after(key, delay_s)
        return delay_s

    def succeed(self, key: K) -> None:
        """Forget the failures of a key."""
        with self._changed:
            self._failures.pop(key, None)

    def take(self) -> K | None:
        """Wait for a key and take it; None once the queue is closed. Each key taken must be given to `done`."""
        with self._changed:
            while not self._closed:
                wait_s = self._promote()
                if self._ready:
                    key = self._ready.popleft()
                    self._queued.discard(key)
                    self._working.add(key)
                    return key
                self._changed.wait(wait_s)
            return None

    def done(self, key: K) -> None:
        """Say that the work on a key has ended; it is queued again if it was added meanwhile."""
        with self._changed:
            self._working.discard(key)
            if key in self._again:
                self._again.discard(key)
                self._add(key)

    def close(self) -> None:
        """Wake up and end everybody who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def idle(self) -> bool:
        """Say whether nothing is due and nobody works."""
        with self._changed:
            self._promote()
            return not self._ready and not self._working

    def _add(self, key: K) -> None:
        if key in self._working:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.append(key)
            self._changed.notify()

    def _promote(self) -> float | None:
        """Move what is due to the queue; return the seconds until the next is due."""
        now = self._clock()
        while self._later:
            first = self._later[0]
            void = self._due.get(first.key) != first.due
            if not void and first.due > now:
                return first.due - now
            heapq.heappop(self._later)
            if not void:
                del self._due[first.key]
                self._add(first.key)
        return None


def work_off(queue: WorkQueue[K], handle: Callable[[K], float | None], on_failure: Callable[[], None]) -> None:
    """Work on one key after the other until the queue is closed; what fails is tried again.

    Args:
        queue: of the keys.
        handle: works on one; returns after how many seconds to do so again, None: when it is added.
        on_failure: called after each one that failed.
    """
    while (key := queue.take()) is not None:
        try:
            again_s = handle(key)
            queue.succeed(key)
            if again_s is not None:
                queue.add_after(key, again_s)
        except KubeError as error:
            on_failure()
            delay_s = queue.retry(key, error.wait_s)
            level = logging.WARNING if error.status in _REFUSED else logging.INFO
            details = {"key": str(key), "error": str(error), "delay_s": round(delay_s, 1)}
            log.log(level, "will try again", extra=details)
        except Exception:
            # One object that nobody thought of must not end the work on all others.
            on_failure()
            queue.retry(key)
            log.exception("cannot handle", extra={"key": str(key)})
        finally:
            queue.done(key)
