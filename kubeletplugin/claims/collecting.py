"""Removes what belongs to nobody: claims that the kubelet never undid, and files that nothing refers to any more.

Run by the agent now and then, in a thread of its own, and asked by preparing where a claim finds no room. A claim is
given up only when the API server says, for a while, that it is gone, was not given this node's devices or is reserved
for nobody, and no process uses its shares: what the kubelet holds, a pod has reserved, and that the API server knows.
Where another claim was given its room, it is given up at once. Without an answer nothing is given up.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from api.claims import ClaimView
from api.errors import VGPUError
from api.names import ClaimUID
from kubeletplugin.claims.claimreading import ClaimReader, ClaimReference
from kubeletplugin.files import TEMPORARY_FILES
from kubeletplugin.state.libraries import remove_old_libraries
from kubeletplugin.state.nodestates import NodeState
from kubeletplugin.state.preparedclaims import PreparedClaim
from kubeletplugin.state.recordfiles import QUARANTINE_SUFFIX

_log = logging.getLogger(__name__)

_HOUR_S = 3600.0
_CLAIM_GRACE_S = 600.0
"""How long a claim must have been gone."""
_CHECK_S = _HOUR_S
"""Between two questions about one claim of which nothing is wrong: a node may have hundreds."""
_TEMPORARY_GRACE_S = _HOUR_S
_SEEN_S = 300.0
"""Longer than any write takes."""
_QUARANTINE_GRACE_S = 7 * 24 * _HOUR_S
"""Kept for whoever wants to know what happened."""


@dataclass
class _Look:
    """What the API server said about a claim."""

    at_s: float
    gone_since_s: float | None


class Collector:
    """Collects on one node, one round at a time."""

    def __init__(
        self, state: NodeState, reader: ClaimReader, driver_name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take whose state, and whom to ask about claims. The clock is one that nobody sets."""
        self._state = state
        self._reader = reader
        self._driver_name = driver_name
        self._clock = clock
        self._looks: dict[ClaimUID, _Look] = {}
        self._seen_s: dict[Path, float] = {}
        """When a file that may have to go was seen first."""

    def run_until(self, stopping: threading.Event, interval_s: float) -> None:
        """Collect each interval, and not at the same moment on all nodes that an update restarts."""
        while not stopping.wait(interval_s * random.uniform(0.8, 1.2)):  # noqa: S311 - no secret
            try:
                self.run_once()
            except (VGPUError, OSError) as error:
                _log.warning("round of the collector failed", extra={"error": str(error)})

    def run_once(self) -> None:
        """Look at everything once."""
        claims = self._state.ledger.prepared()
        for uid in [uid for uid in list(self._looks) if uid not in claims]:
            self._looks.pop(uid, None)  # in place: calls of the kubelet note what they see, too
        for claim in claims.values():
            try:
                self._look_at(claim)
                self._remove_unmentioned_shares(claim.uid)
            except (VGPUError, OSError) as error:
                _log.debug("claim not looked at", extra={"claim_uid": claim.uid, "error": str(error)})
        try:
            self._remove_files()
        except (VGPUError, OSError) as error:
            _log.warning("files that nobody needs not removed", extra={"error": str(error)})

    def leftovers(self) -> int:
        """Return how many claims are gone by now, and were not undone."""
        return sum(look.gone_since_s is not None for look in list(self._looks.values()))

    def make_room(self, uids: Iterable[str]) -> bool:
        """Give up those of some claims that are gone, since the scheduler gave to others what they hold.

        Whoever calls this must hold no claim's lock: two claims that want each other's room would wait for each other.

        Returns:
            Whether any is no longer held.
        """
        found = False
        for uid in uids:
            claim = self._state.ledger.get(ClaimUID(uid))
            try:
                # None: it was undone meanwhile.
                found = claim is None or self._is_given_up(claim) or found
            except (VGPUError, OSError) as error:
                _log.debug("claim not looked at", extra={"claim_uid": uid, "error": str(error)})
        return found

    def _is_given_up(self, claim: PreparedClaim) -> bool:
        """Give up a claim whose room another one was given, if it is gone."""
        if not claim.is_complete or self._state.shares.in_use(claim.uid) or self._is_ours(claim):
            return False
        if not claim.shows_use:
            # Its pod may have been deleted by force, and its containers may go on for some time.
            look, now_s = self._looks.get(claim.uid), self._clock()
            if look is None or look.gone_since_s is None:
                self._looks[claim.uid] = _Look(now_s, now_s)
                return False
            if now_s - look.gone_since_s < _CLAIM_GRACE_S:
                return False
        return self._give_up(claim)

    def _look_at(self, claim: PreparedClaim) -> None:
        now_s, look = self._clock(), self._looks.get(claim.uid)
        if not claim.is_complete:
            return  # nobody can be asked; the kubelet completes it or undoes it
        if look is not None and look.gone_since_s is None and now_s - look.at_s < _CHECK_S:
            return
        if self._state.shares.in_use(claim.uid):
            self._looks.pop(claim.uid, None)
            return
        if self._is_ours(claim):
            self._looks[claim.uid] = _Look(now_s, None)
        elif look is None or look.gone_since_s is None:
            self._looks[claim.uid] = _Look(now_s, now_s)
            facts = {"claim_uid": claim.uid, "claim": f"{claim.namespace}/{claim.name}", "grace_s": _CLAIM_GRACE_S}
            _log.info("claim is gone and was not unprepared: kept for a while", extra=facts)
        elif now_s - look.gone_since_s >= _CLAIM_GRACE_S:
            self._give_up(claim)

    def _is_ours(self, claim: PreparedClaim) -> bool:
        found = self._reader.find(ClaimReference(claim.namespace, claim.name, claim.uid))
        if found is None or not found.reserved_for:
            return False
        return _has_device_of(found, self._driver_name, {device.pool for device in claim.devices})

    def _give_up(self, claim: PreparedClaim) -> bool:
        with self._state.locks.hold(claim.uid):
            # Asked again: the kubelet may have prepared it a moment ago.
            if self._state.ledger.get(claim.uid) != claim or self._state.shares.in_use(claim.uid):
                return False
            if self._is_ours(claim):
                return False
            self._state.remove(claim.uid)
        self._looks.pop(claim.uid, None)
        _log.warning(
            "claim that is gone and was never unprepared removed",
            extra={"claim_uid": claim.uid, "claim": f"{claim.namespace}/{claim.name}"},
        )
        return True

    def _remove_unmentioned_shares(self, uid: ClaimUID) -> None:
        """Remove shares that a claim had before it was given other devices."""
        with self._state.locks.hold(uid):
            claim = self._state.ledger.get(uid)
            if claim is None or not claim.is_complete or self._state.shares.in_use(uid):
                return
            mentioned = {limits.share for limits in claim.shares()}
            for share in self._state.shares.of_claim(uid):
                if share not in mentioned:
                    self._state.shares.remove(share)
                    _log.warning("share that its claim no longer has removed", extra={"claim_uid": uid, "share": share})

    def _remove_files(self) -> None:
        paths = self._state.paths
        self._seen_s = {path: first_s for path, first_s in self._seen_s.items() if path.exists()}
        for folder in (paths.checkpoint_dir, paths.cdi_dir, paths.library_dir):
            for path in self._older(folder, self._own_temporaries(folder), _TEMPORARY_GRACE_S):
                path.unlink(missing_ok=True)
                _log.info("file of a write that was never finished removed", extra={"file": str(path)})
        for path in self._older(paths.checkpoint_dir, f"*{QUARANTINE_SUFFIX}", _QUARANTINE_GRACE_S):
            path.unlink(missing_ok=True)
            _log.info("damaged record that was put aside removed", extra={"file": str(path)})
        for path in remove_old_libraries(self._state.library, self._state.specs.libraries()):
            _log.info("library that no container can need removed", extra={"file": str(path)})

    def _older(self, folder: Path, pattern: str, age_s: float) -> list[Path]:
        """Return files that nobody has changed for so long.

        By the wall clock, which goes on over restarts and may be set by hours: so each file must have been seen for a
        while too, by the clock that nobody sets. A file that is just being written is never that old.
        """
        now_s, found = self._clock(), []
        for path in folder.glob(pattern):
            first_s = self._seen_s.setdefault(path, now_s)
            if now_s - first_s >= _SEEN_S and time.time() - path.lstat().st_mtime >= age_s:
                found.append(path)
        return found

    def _own_temporaries(self, folder: Path) -> str:
        """Other programs write into the CDI folder as well."""
        return TEMPORARY_FILES.format(self._driver_name if folder == self._state.paths.cdi_dir else "")


def _has_device_of(claim: ClaimView, driver_name: str, pools: set[str]) -> bool:
    results = claim.allocation.results if claim.allocation is not None else ()
    return any(result.driver == driver_name and result.pool in pools for result in results)
