"""What a claim takes of a capacity, by the device's request policy. Pure; used by `fitting` and `snapshots`.

It is the scheduler's arithmetic: what is asked for is rounded up to an amount that the policy has; where there is none,
the device cannot serve the request, however much room it has. Source: KEP-5075,
k8s.io/dynamic-resource-allocation/structured.
"""

from dataclasses import dataclass
from functools import lru_cache

from api.quantities import parse_count
from api.slices import Capacity


@dataclass(frozen=True, slots=True)
class RequestPolicy:
    """Which amounts of a capacity a claim can have; as it stands here: any."""

    default: int | None = None
    """What a claim takes that does not ask; None: all."""
    least: int = 0
    most: int | None = None
    step: int = 0
    """From `least` to the next amount; 0: every amount is one."""
    values: tuple[int, ...] = ()
    """The only amounts, the smallest first; empty: those from `least` to `most` are."""

    def taken(self, asked: int | None, whole: int) -> int:
        """Return what a request takes: nothing that the policy has, where that has nothing so large.

        Args:
            asked: by the request; None: it does not say.
            whole: what the device has.
        """
        if asked is None:
            return whole if self.default is None else self.default
        if self.values:
            return next((value for value in self.values if asked <= value), asked)
        if asked <= self.least or not self.step:
            return max(asked, self.least)
        return self.least + -(-(asked - self.least) // self.step) * self.step

    def has(self, taken: int) -> bool:
        """Say whether a request can have an amount of a device that has room for it."""
        if taken == self.default:
            return True
        return taken in self.values if self.values else self.most is None or taken <= self.most

    def most_of(self, whole: int) -> int:
        """Return the most that one request can take of a device that has so much."""
        if self.values:
            return self.values[-1]
        return whole if self.most is None else self.most


ANY = RequestPolicy()


@lru_cache(1024)  # the devices of a cluster are of few sizes
def read_policy(capacity: Capacity) -> RequestPolicy:
    """Return the request policy of a capacity.

    Raises:
        ConfigError: its amounts are no whole numbers.
    """
    limits = capacity.valid_range
    return RequestPolicy(
        default=_count(capacity.default) if capacity.default is not None else None,
        least=_count(limits.minimum) if limits else 0,
        most=_count(limits.maximum) if limits and limits.maximum else None,
        step=_count(limits.step) if limits and limits.step else 0,
        values=tuple(map(_count, capacity.valid_values)),
    )


def _count(quantity: str) -> int:
    return parse_count(quantity, "capacity")
