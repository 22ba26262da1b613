"""How many requests events may cost. Used by `pending`.

Thousands of claims may wait, and what keeps them waiting changes with each claim that comes or goes. Each of them would
be told so once a minute; together that would be hundreds of writes a second, for texts that nobody reads. So all events
share a budget. What was never said goes first: half of what may be saved up is for that alone.
"""

import time
from collections.abc import Callable, Hashable

REQUESTS_PER_S = 20.0
"""In the long run."""
BURST = 1000.0
"""Requests that may be made at once."""
_FOR_NEWS = BURST / 2


class EventBudget:
    """Requests that may be made. Not thread-safe: one thread writes events."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with all that may be saved up; `clock` gives seconds."""
        self._clock = clock
        self._left = BURST
        self._at_s = clock()
        self._put_off: dict[Hashable, tuple[bool, int]] = {}
        """Who asks: whether for the first time, and for how many requests."""
        self._asked = {True: 0, False: 0}
        """Requests of all of them, by whether it is for the first time."""

    def ask(self, who: Hashable, requests: int, *, first: bool) -> float:
        """Return 0 if requests may be made now, else after how many seconds to ask again.

        Args:
            who: asks; the same when it asks again.
            requests: about so many; those that were made are to be noted by `spend`.
            first: nothing was ever said about it.
        """
        now_s = self._clock()
        self._left = min(self._left + (now_s - self._at_s) * REQUESTS_PER_S, BURST)
        self._at_s = now_s
        self.forget(who)
        available = self._left if first else self._left - _FOR_NEWS
        if available > 0:
            return 0.0
        self._put_off[who] = first, requests
        self._asked[first] += requests
        return (self._asked[first] - available) / REQUESTS_PER_S

    def spend(self, requests: int) -> None:
        """Note requests that were made."""
        self._left -= requests

    def forget(self, who: Hashable) -> None:
        """Expect it no longer."""
        first, requests = self._put_off.pop(who, (True, 0))
        self._asked[first] -= requests
