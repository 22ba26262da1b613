"""Reads the books of all shares at a low rate: for the metrics, and to tell Burst shares what they may use.

Run by the agent in a thread of its own. Books belong to tenants: what cannot be read costs that share its figures and
nothing else.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from api.errors import StateError
from kubeletplugin.granting import Activity, grants
from kubeletplugin.ledgers import Ledger
from kubeletplugin.preparedclaims import PreparedClaim
from libvgpu.shares import Books, Limits, read_books, read_limits, update_limits

_log = logging.getLogger(__name__)
_ROUNDS_TO_WARN = 3
_PAUSE_S = 0.001
"""Between two shares: a round over hundreds of them must not hold up a claim that is being prepared."""


@dataclass(frozen=True)
class ShareReading:
    """One share at one moment."""

    claim: PreparedClaim
    limits: Limits
    books: Books


class Monitor:
    """Reads books, one round at a time."""

    def __init__(self, ledger: Ledger, shares_dir: Path, pause: Callable[[float], object] = time.sleep) -> None:
        """Take whose shares to read, where they are, and how to wait a moment."""
        self._ledger = ledger
        self._shares_dir = shares_dir
        self._pause = pause
        self._readings: dict[str, ShareReading] = {}
        self._unreadable: dict[str, int] = {}
        """Rounds in which a share could not be read."""
        self.last_round_s = time.monotonic()
        """When the last round ended."""

    def readings(self) -> list[ShareReading]:
        """Return the last reading of each share."""
        return list(self._readings.values())

    def run_once(self) -> None:
        """Read all books, and steer the shares that may burst."""
        former = self._readings
        found: dict[str, ShareReading] = {}
        shares = {limits.share: claim for claim in self._ledger.prepared().values() for limits in claim.shares()}
        for share, claim in shares.items():
            reading = self._read(claim, share)
            if reading is not None:
                found[share] = reading
            self._pause(_PAUSE_S)
        self._readings = found
        self._unreadable = {share: rounds for share, rounds in self._unreadable.items() if share in shares}
        self._grant([Activity(reading.limits, _active(reading, former.get(share))) for share, reading in found.items()])
        self.last_round_s = time.monotonic()

    def _read(self, claim: PreparedClaim, share: str) -> ShareReading | None:
        folder = self._shares_dir / share
        try:
            reading = ShareReading(claim, read_limits(folder), read_books(folder))
        except StateError as error:
            # Once is not worth a word: the claim may be half-way through being prepared or undone.
            self._unreadable[share] = self._unreadable.get(share, 0) + 1
            if self._unreadable[share] == _ROUNDS_TO_WARN:
                _log.warning("share cannot be read", extra={"claim_uid": claim.uid, "error": str(error)})
            return None
        self._unreadable.pop(share, None)
        return reading

    def _grant(self, activities: list[Activity]) -> None:
        granted = grants(activities)
        for activity in activities:
            limits = activity.limits
            wanted = granted.get(limits.share, limits.granted_percent)
            if wanted == limits.granted_percent:
                continue
            folder = self._shares_dir / limits.share
            try:
                # Read anew: since the round began, the claim may have been undone and prepared with other limits.
                update_limits(folder, replace(read_limits(folder), granted_percent=wanted))
            except StateError as error:
                # Unprepared meanwhile, most likely; if not, the next reading says so.
                _log.debug("grant not written", extra={"share": limits.share, "error": str(error)})


def _active(now: ShareReading, before: ShareReading | None) -> bool:
    """Return whether a share used its device since it was read last; a new one did if it ever has."""
    books = now.books
    if before is None:
        return books.gpu_time_ns > 0
    return books.gpu_time_ns > before.books.gpu_time_ns or books.throttled_ns > before.books.throttled_ns
