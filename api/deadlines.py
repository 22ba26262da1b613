"""How long the work for one call may take, in all its steps together: who waits for something asks here how long.

Set by the node agent for each claim that the kubelet sends; kept by requests to the API server and by locks. Without
it each step has its own limit, and their sum is more than the caller waits. A deadline belongs to the thread that set
it; others have none.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LEAST_S = 0.001
"""So that a step without time ends by its own time-out, with its own message."""
_end_s: ContextVar[float] = ContextVar("deadline", default=math.inf)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Give what is done in this block so much time; inside of another such block at most what is left of that."""
    token = _end_s.set(min(_end_s.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _end_s.reset(token)


def left_s(at_most_s: float) -> float:
    """Return how long one step may take: its own limit, or what is left of the deadline if that is less; above 0."""
    return max(min(at_most_s, _end_s.get() - time.monotonic()), _LEAST_S)
