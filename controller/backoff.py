"""How long to leave alone what comes again and again: not at all at first, then ever longer, up to a minute.

Used by `damping` and `restoring`, for what others change as often as they like.
"""

from dataclasses import dataclass

_FIRST_PAUSE_S = 1.0
_LAST_PAUSE_S = 60.0


@dataclass(frozen=True)
class Backoff:
    """The pause after something was done: twice the one before, if that ended no longer ago than it lasted."""

    at_s: float
    """When it was done."""
    pause_s: float = _FIRST_PAUSE_S

    @property
    def due_s(self) -> float:
        """From when on it may be done again."""
        return self.at_s + self.pause_s

    def is_over(self, now_s: float) -> bool:
        """Say whether it was quiet for so long that the next pause is a first one again."""
        return now_s >= self.due_s + self.pause_s


def backoff(last: Backoff | None, now_s: float) -> Backoff:
    """Return the pause after something that is done now; `last` is the one before, if it was ever done."""
    if last is None or last.is_over(now_s):
        return Backoff(now_s)
    return Backoff(now_s, min(2 * last.pause_s, _LAST_PAUSE_S))
