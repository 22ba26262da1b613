"""Looks at what the driver measures, and holds it against the books: overuse is told, and ended where a share says so.

Run by the agent in the monitor's thread, at a lower rate than the books are read. Memory that no share's books know of
is memory that a neighbour was promised.
"""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from api import names
from api.quantities import format_bytes
from kubeletplugin.hardware.devices import DeviceFigures
from kubeletplugin.monitoring.bookreading import ShareReading
from kubeletplugin.monitoring.comparing import (
    DEFAULT_SLACK,
    Attribution,
    DriverCount,
    Owners,
    Slack,
    attribute,
    overuse_bytes,
)
from kubeletplugin.state.preparedclaims import PreparedClaim

_log = logging.getLogger(__name__)

_LOOKS = 2
"""Looks in a row with overuse before it counts: books and driver are not read in the same moment."""
_TELL_AGAIN_S = 600.0

Tell = Callable[[PreparedClaim, str, str], None]
"""Says something about a claim: reason and note."""
Kill = Callable[[int], None]
Observe = Callable[[Attribution, Sequence[ShareReading]], None]
"""Makes something of each look."""


class KnownOwners(Owners, Protocol):
    """Owners that remember what they were asked."""

    def keep(self, pids: Iterable[int]) -> None:
        """Forget all other processes."""


def kill_process(pid: int) -> None:
    """End a process at once; one that has ended is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Supervisor:
    """Compares driver and books, one look at a time."""

    def __init__(
        self,
        tell: Tell,
        owners: KnownOwners,
        kill: Kill = kill_process,
        observers: Sequence[Observe] = (),
        slack: Slack = DEFAULT_SLACK,
    ) -> None:
        """Take what it works with.

        Args:
            tell: tells the owner of a claim.
            owners: knows who owns processes.
            kill: ends a process.
            observers: are told of each look.
            slack: what is no overuse yet.
        """
        self.slack = slack
        self._observers = observers
        self._tell = tell
        self._owners = owners
        self._kill = kill
        self._looks: dict[str, int] = {}
        """Looks in a row that found overuse."""
        self._told_s: dict[str, float] = {}
        self.figures: Sequence[DeviceFigures] = ()
        """What the driver measured last."""
        self.attribution = Attribution()
        self.overuse_counts: Mapping[str, int] = {}
        """How often overuse began, by share."""

    def look(self, figures: Sequence[DeviceFigures], readings: Sequence[ShareReading]) -> None:
        """Compare the driver's figures with what the shares may use.

        Args:
            figures: of all devices.
            readings: of all shares, read just before.
        """
        found = attribute(figures, (reading.limits for reading in readings), self._owners)
        self._owners.keep(process.pid for device in figures for process in device.processes)
        over = {
            reading.limits.share: reading
            for reading in readings
            if overuse_bytes(reading.limits, found.by_share[reading.limits.share].memory_bytes, slack=self.slack)
        }
        self.figures, self.attribution = tuple(figures), found
        for observe in self._observers:
            observe(found, readings)
        self._looks = {share: self._looks.get(share, 0) + 1 for share in over}
        there = {reading.limits.share for reading in readings}
        counts = {share: count for share, count in self.overuse_counts.items() if share in there}
        self._told_s = {share: told_s for share, told_s in self._told_s.items() if share in there}
        for share, reading in over.items():
            if self._looks[share] == _LOOKS:
                counts[share] = counts.get(share, 0) + 1
            if self._looks[share] >= _LOOKS:
                self._act(reading, found.by_share[share])
        self.overuse_counts = counts

    def _act(self, reading: ShareReading, counted: DriverCount) -> None:
        limits, claim = reading.limits, reading.claim
        if limits.kill_overuse:
            for pid in counted.pids:
                # Asked again: since the look the process may have ended, and another one may have its id.
                if limits.share in self._owners.shares_of(pid):
                    self._kill(pid)
        elif time.monotonic() < self._told_s.get(limits.share, float("-inf")) + _TELL_AGAIN_S:
            return
        self._told_s[limits.share] = time.monotonic()
        ended = "; its processes were ended, as the claim says" if limits.kill_overuse else ""
        note = (
            f"share {limits.share} holds {format_bytes(counted.memory_bytes)} of device memory by the driver's count, "
            f"expected at most {format_bytes(limits.memory_bytes)}; its books know of "
            f"{format_bytes(reading.books.used_bytes)}{ended}"
        )
        facts = {"claim_uid": claim.uid, "claim": f"{claim.namespace}/{claim.name}", "pids": list(counted.pids)}
        _log.warning("overuse of device memory: %s", note, extra=facts)
        self._tell(claim, names.EVENT_OVERUSE, note)
