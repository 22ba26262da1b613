"""Who holds what on this node: a file per prepared claim (recordfiles), and the same in memory.

Called by preparing (reserve, settle, take back), unpreparing and what tidies up. The record of a claim is the first
thing written when it is prepared and the last thing removed, so whatever else lies on the node belongs to a record. One
file per claim: a write costs the same with one claim or 200, and a damaged file costs one claim
(docs/adr/0004-a-record-per-claim.md).

Two instances of the agent share the folder during a rolling update. One decides at a time, and what it decided is in
the folder before the next one looks. A number beside the folder says whether there is anything new to look at.
"""

import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from api.deadlines import left_s
from api.errors import TransientError
from api.names import ClaimUID
from kubeletplugin.state.instancelocks import InstanceLocks
from kubeletplugin.state.preparedclaims import PreparedClaim
from kubeletplugin.state.recordfiles import DamagedRecordError, RecordFiles, Recovery, Signature

_log = logging.getLogger(__name__)
_DECISION = 0
"""The lock of a decision."""
_DECISION_S = 10.0
"""What a decision of others may take at most: it does no network I/O. Less where the deadline of a call is nearer."""
_NUMBER_BYTES = 8
_NUMBERS = 1 << 8 * _NUMBER_BYTES
"""Behind the largest, which only an accident leaves in the file, comes any other that nobody has seen."""
_UNKNOWN = -1

Prepared = Mapping[ClaimUID, PreparedClaim]
Decide = Callable[[Prepared], PreparedClaim]
"""Gets what is prepared now, which may include the claim in question; raises if it does not fit. Must be quick and do
no I/O."""
Reserve = Callable[[ClaimUID, Decide], tuple[PreparedClaim, PreparedClaim | None]]


class Ledger:
    """The prepared claims of a node. Safe to use from several threads and several instances."""

    def __init__(self, folder: Path, recover: Recovery) -> None:
        self._files = RecordFiles(folder)
        self._recover = recover
        self._lock = threading.Lock()
        self._instances = InstanceLocks(folder.with_suffix(".lock"))
        self._claims: dict[ClaimUID, PreparedClaim] = {}
        self._signatures: dict[ClaimUID, Signature] = {}
        """Of the files that `_claims` was read from."""
        self._settled: set[ClaimUID] = set()
        """Records that this instance has made durable."""
        self._vanishing: set[ClaimUID] = set()
        """Records that are removed, and that a crash of the machine may bring back."""
        self._seen = _UNKNOWN
        """Number of the last change that is in `_claims`."""
        self._change: int | None = None
        """Number of the change that is being made."""
        self._is_sure = True
        """Whether a change that is being made is on the disk as in memory: one that failed may be there or not."""
        self._is_numbered = True
        """Whether the disk took the last number."""
        self._is_reserving = False

    def load(self) -> None:
        """Read all records; called once at start. Damaged ones are put aside and rebuilt."""
        self._files.make_folder()
        with self._deciding():
            pass

    def prepared(self) -> Prepared:
        """Return all claims as they are now; the mapping does not change any more."""
        with self._looking():
            return dict(self._claims)

    def get(self, uid: ClaimUID) -> PreparedClaim | None:
        """Return a claim, None if it is not prepared."""
        with self._looking():
            return self._claims.get(uid)

    @contextmanager
    def reserving(self) -> Iterator[Reserve]:
        """Decide about claims while nothing else is decided on this node, and count them from now on.

        What is yielded decides about one claim, given its UID and what decides; its record is in its place when that
        returns, and durable once it is settled. It returns the claim as decided, and as it was recorded before (None:
        it was not). A claim that does not fit raises, and touches no other.
        """
        with self._deciding():
            self._is_reserving = True
            try:
                yield self._reserve
            finally:
                self._is_reserving = False
                self._end_change()

    def reserve(self, uid: ClaimUID, decide: Decide) -> tuple[PreparedClaim, PreparedClaim | None]:
        """Decide about one claim; see `reserving`."""
        with self._deciding():
            return self._reserve(uid, decide)

    def settle(self, *uids: ClaimUID) -> None:
        """Make the records of reserved claims durable.

        Once by each instance that answers with them: another one that wrote them may have died before that.
        """
        fresh = [uid for uid in uids if uid not in self._settled]
        if fresh:
            self._files.settle(fresh)
            self._settled.update(fresh)

    def add(self, claim: PreparedClaim) -> None:
        """Count a claim that was found on the node without a record, and write one."""
        with self._deciding():
            self._place(claim, self._claims.get(claim.uid))
        self.settle(claim.uid)

    def take_back(self, uid: ClaimUID, former: PreparedClaim | None) -> None:
        """Undo a reservation that came to nothing."""
        if former is None:
            self.remove(uid)
            return
        with self._deciding():
            self._place(former, self._claims.get(uid))
        self.settle(uid)

    def remove(self, uid: ClaimUID) -> bool:
        """Remove the record of a claim; return whether there was one."""
        outcome = self.remove_all([uid])[uid]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def remove_all(self, uids: Iterable[ClaimUID]) -> dict[ClaimUID, bool | OSError]:
        """Remove the records of some claims, and wait for the disk once.

        Returns:
            Whether there was one, by claim; or why it is still there, or may be again after a crash of the machine.
        """
        outcomes: dict[ClaimUID, bool | OSError] = {}
        wanted = tuple(uids)
        if not wanted:
            return outcomes
        with self._deciding(), self._changing():
            for uid in wanted:
                try:
                    outcomes[uid] = self._remove(uid)
                except OSError as error:
                    outcomes[uid] = error
        vanishing = outcomes.keys() & self._vanishing
        if vanishing:
            try:
                self._files.sync_folder()
            except OSError as error:
                outcomes |= dict.fromkeys(vanishing, error)
            else:
                self._vanishing -= vanishing
        return outcomes

    def _remove(self, uid: ClaimUID) -> bool:
        self._settled.discard(uid)
        found = self._files.remove(uid)
        self._signatures.pop(uid, None)
        found = self._claims.pop(uid, None) is not None or found
        if found:
            self._vanishing.add(uid)
        return found

    def _reserve(self, uid: ClaimUID, decide: Decide) -> tuple[PreparedClaim, PreparedClaim | None]:
        former = self._claims.get(uid)
        decided = decide(self._claims)
        if decided == former:
            return former, former
        decided = decided.keeping_extra_of(former)
        self._place(decided, former)
        return decided, former

    def _place(self, claim: PreparedClaim, former: PreparedClaim | None) -> None:
        """Put a record into its place."""
        self._settled.discard(claim.uid)
        with self._changing():
            self._signatures[claim.uid] = self._files.place(claim, fresh=former is None)
            self._claims[claim.uid] = claim

    @contextmanager
    def _deciding(self) -> Iterator[None]:
        """Keep all others from deciding, with their decisions in memory."""
        with self._alone(), self._instances.hold(_DECISION, left_s(_DECISION_S)):
            if self._number() != self._seen:
                self._take_over()
            yield

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """See all decisions; waits for others only if there are new ones."""
        with self._alone():
            if self._number() != self._seen:
                with self._instances.hold(_DECISION, left_s(_DECISION_S)):
                    self._take_over()
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep the other threads out. One of them may wait for another instance: those behind it wait no longer."""
        timeout_s = left_s(_DECISION_S)
        if not self._lock.acquire(timeout=timeout_s):
            raise TransientError(
                f"records of claims in {self._files.folder}: another thread of the agent is at them for more than "
                f"{timeout_s:.3g} s, expected it to be done by then"
            )
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Number a change of the folder: odd while it is being made, and after a crash at it."""
        if self._change is None:
            change = self._number() | 1
            self._set_number(change)
            self._change = change
        try:
            yield
        except BaseException:
            self._is_sure = False
            raise
        finally:
            if not self._is_reserving:  # else all that is reserved together is one change
                self._end_change()

    def _end_change(self) -> None:
        if self._change is not None:
            change, self._change = self._change, None
            number = self._set_even(change)
            self._seen = number if self._is_sure else _UNKNOWN
            self._is_sure = True

    def _set_even(self, change: int) -> int:
        """Say that a change is made; return the number of what was seen with it.

        A disk that does not take that leaves an odd number, by which everybody reads the folder anew at each look.
        """
        number = change + 1 if change + 1 < _NUMBERS else secrets.randbits(_NUMBER_BYTES * 8 - 2) & ~1
        try:
            self._set_number(number)
        except OSError as error:
            if self._is_numbered:
                _log.error("changes of records cannot be numbered: all are read each time", extra={"error": str(error)})
            self._is_numbered = False
            return _UNKNOWN
        self._is_numbered = True
        return number

    def _number(self) -> int:
        return int.from_bytes(os.pread(self._instances.descriptor, _NUMBER_BYTES, 0), "little")

    def _set_number(self, number: int) -> None:
        os.pwrite(self._instances.descriptor, number.to_bytes(_NUMBER_BYTES, "little"), 0)

    def _take_over(self) -> None:
        """Read what has changed since the last look; nobody else changes anything meanwhile."""
        found = dict(self._files.scan())
        for uid in self._claims.keys() - found.keys():
            del self._claims[uid]
            self._settled.discard(uid)
        for uid, signature in found.items():
            if self._signatures.get(uid) != signature:
                self._settled.discard(uid)
                self._read(uid)
        self._signatures = found
        self._seen = self._number()
        if self._seen % 2:  # whoever was at it has died; what came of it has just been read
            self._seen = self._set_even(self._seen)

    def _read(self, uid: ClaimUID) -> None:
        self._claims.pop(uid, None)
        try:
            self._claims[uid] = self._files.read(uid)
        except DamagedRecordError as error:
            rebuilt = self._recover(uid)
            if rebuilt is not None:
                self._claims[uid] = rebuilt  # counts, whether or not the disk takes it
            self._put_aside(uid, rebuilt, error.__cause__)

    def _put_aside(self, uid: ClaimUID, rebuilt: PreparedClaim | None, why: BaseException | None) -> None:
        facts = {"claim_uid": uid, "error": str(why), "rebuilt": rebuilt is not None}
        try:
            with self._changing():
                aside = self._files.put_aside(uid, rebuilt)
        except OSError as failure:
            _log.error("damaged record cannot be put aside", extra=facts | {"failure": str(failure)})
        else:
            _log.error("damaged record of a prepared claim put aside", extra=facts | {"file": str(aside)})
