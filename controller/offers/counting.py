"""What is taken of each device, from the allocations in the claims: the scheduler's own accounting, read back.

Used by `indexing` and `explaining`, which keep a ledger up to date claim by claim: a change costs what changed, and not
a walk over all claims.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from api import names
from api.claims import Allocation, AllocationResult
from api.names import ClaimUID

DeviceKey = tuple[str, str]
"""Pool and device name."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What claims hold of one device."""

    memory_bytes: int = 0
    cores_percent: int = 0
    shares: int = 0
    claims: int = 0
    """Allocations of the device."""
    whole: int = 0
    """Allocations without consumed capacity: they hold the device for themselves."""
    idle: int = 0
    """Shares of idle time: allocations that took no cores of a shared device."""

    def plus(self, result: AllocationResult, sign: int = 1) -> "Usage":
        """Return the usage with an allocation more (or less, with sign -1)."""
        return replace(
            self,
            memory_bytes=self.memory_bytes + sign * result.consumed.get(names.CAPACITY_MEMORY, 0),
            cores_percent=self.cores_percent + sign * result.consumed.get(names.CAPACITY_CORES, 0),
            shares=self.shares + sign * result.consumed.get(names.CAPACITY_SHARES, 0),
            claims=self.claims + sign,
            whole=self.whole + (0 if result.consumed else sign),
            idle=self.idle + (sign if result.consumed and not result.consumed.get(names.CAPACITY_CORES) else 0),
        )


UNUSED = Usage()


@dataclass
class Ledger:
    """Usage of every device of a driver. Not thread-safe: its owner locks."""

    driver: str
    _results: dict[ClaimUID, tuple[AllocationResult, ...]] = field(default_factory=dict)
    _pools: dict[str, dict[str, Usage]] = field(default_factory=dict)
    """By pool and device."""

    def note(self, uid: ClaimUID, allocation: Allocation | None) -> set[str]:
        """Take over what a claim holds now (None: nothing, or the claim is gone); return pools with another usage."""
        before = self._results.pop(uid, ())
        mine = tuple(self._mine(allocation.results)) if allocation else ()
        if mine:
            self._results[uid] = mine
        if before == mine:
            return set()
        for result in before:
            self._book(result, -1)
        for result in mine:
            self._book(result, 1)
        return {result.pool for result in (*before, *mine)}

    def usage(self) -> dict[DeviceKey, Usage]:
        """Return a copy of the usage of all devices that anybody holds."""
        return {(pool, device): usage for pool, devices in self._pools.items() for device, usage in devices.items()}

    def usage_of(self, pool: str) -> dict[str, Usage]:
        """Return a copy of the usage of the devices of a pool, by their names."""
        return dict(self._pools.get(pool, {}))

    def _mine(self, results: Iterable[AllocationResult]) -> Iterable[AllocationResult]:
        # Administrators look at devices without taking anything of them (KEP-5018).
        return (result for result in results if result.driver == self.driver and not result.admin_access)

    def _book(self, result: AllocationResult, sign: int) -> None:
        devices = self._pools.setdefault(result.pool, {})
        usage = devices.get(result.device, UNUSED).plus(result, sign)
        if usage.claims:
            devices[result.device] = usage
        else:
            devices.pop(result.device, None)
        if not devices:
            del self._pools[result.pool]
