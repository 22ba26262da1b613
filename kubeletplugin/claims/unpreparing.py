"""Undoes what preparing did, from what lies on the node alone: the claim may be gone from the API server.

Called by the gRPC service, from several threads, with one claim or with all of a call. An unknown claim is undone
already. Preparing asks what was undone lately: a call that the kubelet gave up can still be under way then.
"""

import logging
import time
from collections.abc import Iterable, Mapping

from api.names import ClaimUID
from kubeletplugin.claims.claimreading import ClaimReference
from kubeletplugin.claims.rounds import Rounds
from kubeletplugin.state.nodestates import NodeState
from kubeletplugin.state.sharefolders import is_claim_uid

_log = logging.getLogger(__name__)
_REMEMBERED_S = 120.0
"""Longer than any call is worked on."""


class Unpreparer:
    """Undoes claims on one node."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._rounds = Rounds(self._unprepare_round)
        self._undone_s: dict[ClaimUID, float] = {}
        """When claims were undone lately, the latest last. Of one claim it changes under its lock alone."""

    def is_undone_since(self, reference: ClaimReference) -> bool:
        """Return whether a claim was undone after the kubelet asked for it; the claim's lock is held."""
        return self._undone_s.get(reference.uid, float("-inf")) >= reference.asked_s

    def unprepare(self, uid: ClaimUID) -> None:
        """Undo a claim, however often.

        Raises:
            TransientError: another call for this claim did not end in time.
            OSError: something could not be removed; the claim's record is still there, and the next call goes on.
        """
        if not is_claim_uid(uid):
            return  # nothing of ours can have such a name
        with self._state.locks.hold(uid):
            found = self._state.remove(uid)
            self._note(uid, found)

    def unprepare_together(self, uids: Iterable[ClaimUID]) -> frozenset[ClaimUID]:
        """Undo claims in one go, together with those of other calls that come now.

        Returns:
            Those that are undone. What is not in it is to be undone alone: claims that another call is at, and those of
            which something could not be removed.

        Raises:
            TransientError: other calls took all the time.
        """
        wanted = {uid: None for uid in uids if is_claim_uid(uid)}
        return frozenset(self._rounds.do(wanted)) if wanted else frozenset()

    def _unprepare_round(self, uids: Mapping[ClaimUID, None]) -> Mapping[ClaimUID, bool]:
        """Undo claims with one look at the shares, and one wait for the disk; return whether there was anything."""
        with self._state.locks.hold_free(uids) as held:
            outcomes = self._state.remove_all([uid for uid in uids if uid in held])
            undone = {uid: outcome for uid, outcome in outcomes.items() if not isinstance(outcome, Exception)}
            for uid, found in undone.items():
                self._note(uid, found)
        return undone

    def _note(self, uid: ClaimUID, found: bool) -> None:
        now_s = time.monotonic()
        self._undone_s.pop(uid, None)
        self._undone_s[uid] = now_s
        for old in [uid for uid, undone_s in list(self._undone_s.items()) if undone_s < now_s - _REMEMBERED_S]:
            self._undone_s.pop(old, None)
        _log.info("claim unprepared", extra={"claim_uid": uid, "found": found})
