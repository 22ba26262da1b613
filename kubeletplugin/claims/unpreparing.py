"""Undoes what preparing did, from what lies on the node alone: the claim may be gone from the API server.

Called by the gRPC service, from several threads. An unknown claim is undone already.
"""

import logging

from api.names import ClaimUID
from kubeletplugin.state.nodestates import NodeState
from kubeletplugin.state.sharefolders import is_claim_uid

_log = logging.getLogger(__name__)


class Unpreparer:
    """Undoes claims on one node."""

    def __init__(self, state: NodeState) -> None:
        self._state = state

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
        _log.info("claim unprepared", extra={"claim_uid": uid, "found": found})
