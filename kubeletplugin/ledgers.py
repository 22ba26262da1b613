"""Who holds what on this node: a file per prepared claim, and the same in memory.

Called by preparing (reserve, write, take back) and unpreparing. The record of a claim is the first thing written when
it is prepared and the last thing removed, so whatever else lies on the node belongs to a record. One file per claim: a
write costs the same with one claim or 200, and a damaged file costs one claim (docs/adr/0004-a-record-per-claim.md).

Two instances of the agent share the folder during a rolling update: the names in it are compared each time before
something is decided. The kubelet calls the one that registered last.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from api.errors import StateError
from api.names import ClaimUID
from kubeletplugin.files import fsync_directory, remove_durably, write_durably
from kubeletplugin.preparedclaims import PreparedClaim, decode, encode

_log = logging.getLogger(__name__)
_SUFFIX = ".json"
_QUARANTINE_SUFFIX = ".damaged"

Prepared = Mapping[ClaimUID, PreparedClaim]
Recovery = Callable[[ClaimUID], PreparedClaim | None]
"""Rebuilds the record of a claim from what else lies on the node; None: nothing of it lies there."""


class Ledger:
    """The prepared claims of a node. Safe to use from several threads."""

    def __init__(self, folder: Path, recover: Recovery) -> None:
        self._folder = folder
        self._recover = recover
        self._lock = threading.Lock()
        self._claims: dict[ClaimUID, PreparedClaim] = {}
        self._unwritten: set[ClaimUID] = set()
        """Reserved, and not in the folder yet."""
        self._seen: set[str] = set()
        """Names in the folder at the last look, and what this instance changed since."""

    def load(self) -> None:
        """Read all records; called once at start. Damaged ones are put aside and rebuilt."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._lock:
            self._refresh()

    def prepared(self) -> Prepared:
        """Return all claims as they are now; the mapping does not change any more."""
        with self._lock:
            self._refresh()
            return dict(self._claims)

    def get(self, uid: ClaimUID) -> PreparedClaim | None:
        """Return a claim, None if it is not prepared."""
        with self._lock:
            self._refresh()
            return self._claims.get(uid)

    def reserve(
        self, uid: ClaimUID, decide: Callable[[Prepared], PreparedClaim]
    ) -> tuple[PreparedClaim, PreparedClaim | None]:
        """Decide about a claim while nothing else is decided, and count it from now on.

        Args:
            uid: of the claim.
            decide: gets what is prepared now, which may include this claim; raises if it does not fit. Must be quick
                and do no I/O.

        Returns:
            The claim as decided, and as it was recorded before (None: it was not).
        """
        with self._lock:
            self._refresh()
            former = self._claims.get(uid)
            decided = decide(self._claims)
            if decided == former:
                return former, former
            decided = decided.keeping_extra_of(former)
            self._claims[uid] = decided
            self._unwritten.add(uid)
            return decided, former

    def write(self, claim: PreparedClaim) -> None:
        """Make the record of a reserved claim durable."""
        write_durably(self._path(claim.uid), encode(claim), 0o600)
        with self._lock:
            self._unwritten.discard(claim.uid)
            self._seen.add(f"{claim.uid}{_SUFFIX}")  # so that it is missed if another instance removes it

    def add(self, claim: PreparedClaim) -> None:
        """Count a claim that was found on the node without a record, and write one."""
        with self._lock:
            self._claims[claim.uid] = claim
            self._unwritten.add(claim.uid)
        self.write(claim)

    def take_back(self, uid: ClaimUID, former: PreparedClaim | None) -> None:
        """Undo a reservation that came to nothing."""
        if former is None:
            self.remove(uid)
            return
        with self._lock:
            self._claims[uid] = former
            self._unwritten.add(uid)
        self.write(former)

    def remove(self, uid: ClaimUID) -> bool:
        """Remove the record of a claim; return whether there was one."""
        found = remove_durably(self._path(uid))
        with self._lock:
            self._unwritten.discard(uid)
            self._seen.discard(f"{uid}{_SUFFIX}")
            return self._claims.pop(uid, None) is not None or found

    def _path(self, uid: ClaimUID) -> Path:
        return self._folder / f"{uid}{_SUFFIX}"

    def _refresh(self) -> None:
        """Take over what another instance has written or removed since the last look."""
        found = set(os.listdir(self._folder))  # noqa: PTH208 - for names alone much the fastest, and this is a hot path
        if found == self._seen and not self._unwritten:
            return
        for uid in [uid for uid in self._claims if f"{uid}{_SUFFIX}" not in found and uid not in self._unwritten]:
            del self._claims[uid]
        for name in found - self._seen:
            uid = ClaimUID(name.removesuffix(_SUFFIX))
            if name.endswith(_SUFFIX) and not name.startswith(".") and uid not in self._claims:
                self._read(uid)
        self._seen = found

    def _read(self, uid: ClaimUID) -> None:
        path = self._path(uid)
        try:
            self._claims[uid] = decode(path.read_bytes(), uid, str(path))
        except FileNotFoundError:
            return  # removed by another instance since the folder was read
        except StateError as error:
            recovered = self._quarantine(path, uid, error)
            if recovered is not None:
                self._claims[uid] = recovered

    def _quarantine(self, path: Path, uid: ClaimUID, error: StateError) -> PreparedClaim | None:
        aside = path.with_name(path.name + _QUARANTINE_SUFFIX)
        path.rename(aside)
        recovered = self._recover(uid)
        if recovered is not None:
            write_durably(path, encode(recovered), 0o600)
        else:
            fsync_directory(self._folder)
        _log.error(
            "damaged record of a prepared claim put aside",
            extra={"claim_uid": uid, "file": str(aside), "error": str(error), "rebuilt": recovered is not None},
        )
        return recovered
