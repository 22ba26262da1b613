"""Reads the books of all shares at a low rate: for the metrics and the supervisor.

Run by the agent in a thread of its own. Books belong to tenants: what cannot be read costs that share its figures and
nothing else. A share that did nothing since the last round costs its few system calls and no more.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from kubeletplugin.state.ledgers import Ledger
from kubeletplugin.state.preparedclaims import PreparedClaim
from libvgpu.shares import Books, BooksReader, Limits, LimitsReader, cut_back

_log = logging.getLogger(__name__)
_ROUNDS_TO_WARN = 3
_BATCH = 64
_DEAR_S, _REST, _LONGEST_REST_S = 0.005, 1000, 60.0
"""Books with very many processes or locks, which a tenant can take as it likes, are left alone for so many times what a
look took of the processor: usual ones take a tenth of a millisecond."""
_PAUSE_S = 0.001
"""Between batches of shares: a round over hundreds of them must not hold up a claim that is being prepared."""


@dataclass(frozen=True)
class ShareReading:
    """One share at one moment."""

    claim: PreparedClaim
    limits: Limits
    books: Books
    utilization: float = 0.0
    """GPU time per second since the reading before, as the share counted it: 1.0 is the whole device."""


class _Share:
    """What the monitor keeps of a share from round to round."""

    def __init__(self, folder: Path) -> None:
        self.limits = LimitsReader(folder)
        self.books = BooksReader(folder)
        self.failures = 0
        """Rounds in which it could not be read."""
        self.swollen_rounds = 0
        """In a row, in which nothing could be given back of what its books take of the disk."""
        self._read_s = 0.0
        self._due_s = 0.0
        """When its books are to be looked at again, if that was dear."""
        self.reading: ShareReading | None = None
        """None: it could not be read in the last round."""

    def read(self, claim: PreparedClaim) -> None:
        """Read the share anew.

        Raises:
            StateError: one of its files is missing or damaged.
        """
        former, began_s = self.reading, time.monotonic()
        if began_s < self._due_s:
            self.books.look_at_size()  # they can swell meanwhile
            if former is not None:
                self.reading = replace(former, claim=claim, limits=self.limits.read())
            return
        began_cpu_s = time.thread_time()
        try:
            limits, books = self.limits.read(), self.books.read()
        except BaseException:
            self.reading = None
            raise
        finally:
            cost_s = time.thread_time() - began_cpu_s
            self._due_s = began_s + min(cost_s * _REST, _LONGEST_REST_S) if cost_s > _DEAR_S else 0.0
        now_s = time.monotonic()
        utilization = _utilization(books, former.books if former else None, now_s - self._read_s)
        self._read_s = now_s
        reading = ShareReading(claim, limits, books, utilization)
        if former != reading:
            self.reading = reading
        self.failures = 0


class Monitor:
    """Reads books, one round at a time."""

    def __init__(self, ledger: Ledger, shares_dir: Path, pause: Callable[[float], object] = time.sleep) -> None:
        """Take whose shares to read, where they are, and how to wait a moment."""
        self._ledger = ledger
        self._shares_dir = shares_dir
        self._pause = pause
        self._shares: dict[str, _Share] = {}
        self.round_cost_s = 0.0
        """Processor time of the last round."""

    def readings(self) -> list[ShareReading]:
        """Return the last reading of each share that could be read."""
        return [share.reading for share in self._shares.values() if share.reading is not None]

    def parts(self) -> set[str]:
        """Return the names of the devices that the hardware made and a claim holds."""
        return {one.device for claim in self._ledger.prepared().values() for one in claim.devices if one.is_part}

    def unreadable(self) -> int:
        """Return how many shares could not be read for some rounds."""
        return sum(share.failures >= _ROUNDS_TO_WARN for share in self._shares.values())

    def run_once(self) -> None:
        """Read all books."""
        began_s = time.thread_time()
        claims = {limits.share: claim for claim in self._ledger.prepared().values() for limits in claim.shares()}
        self._shares = {name: self._shares.get(name) or _Share(self._shares_dir / name) for name in claims}
        shares = list(self._shares.items())
        for start in range(0, len(shares), _BATCH):
            for name, share in shares[start : start + _BATCH]:
                self._read(name, share, claims[name])
            self._pause(_PAUSE_S)
        self.round_cost_s = time.thread_time() - began_s

    def _read(self, name: str, share: _Share, claim: PreparedClaim) -> None:
        try:
            share.read(claim)
        except Exception as error:  # noqa: BLE001 - a tenant writes books: whatever it is, it costs that share alone
            self._cut_back(name, share, claim)
            # Once is not worth a word: the claim may be half-way through being prepared or undone.
            share.failures += 1
            if share.failures == _ROUNDS_TO_WARN:
                facts = {"claim_uid": claim.uid, "claim": f"{claim.namespace}/{claim.name}", "share": name}
                _log.warning(
                    "share cannot be read: no figures of it, and no steering, until its pod is started anew",
                    extra=facts | {"error": str(error)},
                )
        else:
            if share.books.swells:
                self._cut_back(name, share, claim)
            else:
                share.swollen_rounds = 0

    def _cut_back(self, name: str, share: _Share, claim: PreparedClaim) -> None:
        facts = {"claim_uid": claim.uid, "share": name}
        if behind := cut_back(self._shares_dir / name):
            share.swollen_rounds = 0
            _log.warning("a container wrote behind the end of its books; cut back", extra=facts | {"bytes": behind})
        elif share.books.swells:
            share.swollen_rounds += 1
            if share.swollen_rounds == _ROUNDS_TO_WARN:
                _log.error("the books of a share fill the disk until its claim ends: end its pods", extra=facts)


def _utilization(books: Books, former: Books | None, passed_s: float) -> float:
    if former is None or passed_s <= 0:
        return 0.0
    # Books that a tenant made smaller say nothing about the time between.
    return max(books.gpu_time_ns - former.gpu_time_ns, 0) / 1e9 / passed_s
