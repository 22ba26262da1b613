"""Follows what changes of claims while they are prepared: their annotation, and the pods that may use them.

Run by the agent in a thread of its own. A watch would see all claims of the cluster from every node. The controller has
one, and tells each node in its NodeInventory which of its claims can change, with a digest of what: a claim is read
when its digest is another than at the last look. Where nobody tells (an older controller or CRD), the claims are asked
one by one, at a low rate. The kubelet says nothing when another pod comes to a claim that is prepared.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from api import names
from api.claims import ClaimView
from api.errors import ConfigError, KubeError, StateError, VGPUError
from api.names import ClaimUID
from kubeletplugin.claims.annotations import take_over
from kubeletplugin.claims.claimreading import ClaimReader, ClaimReference
from kubeletplugin.state.adjusting import Source, read_adjustments
from kubeletplugin.state.ledgers import Ledger, Prepared
from kubeletplugin.state.preparedclaims import PreparedClaim

_log = logging.getLogger(__name__)

Tell = Callable[[PreparedClaim, str, str], None]
Meet = Callable[[ClaimView], None]
"""Is told of a claim that other pods use than before."""


class ClaimFollower:
    """Brings shares and records of a node to what their claims say by now."""

    def __init__(
        self, reader: ClaimReader, ledger: Ledger, shares_dir: Path, tell: Tell, meet: Meet = lambda _claim: None
    ) -> None:
        """Take how to read claims, whose shares there are and where, whom to tell, and who looks at pods that come."""
        self._reader = reader
        self._ledger = ledger
        self._shares_dir = shares_dir
        self._tell = tell
        self._meet = meet
        self._applied: dict[ClaimUID, str | None] = {}
        """What was annotated at the last look, taken over or refused."""
        self._digests: dict[ClaimUID, str] = {}
        """Of claims whose last look ended well, as they were then."""
        self._told: Mapping[ClaimUID, str] | None = None
        """Digests of claims that can change, as the controller told; None: it does not."""
        self._woken = threading.Event()
        self._hurries = False

    def run_until(self, stopping: threading.Event, interval_s: float) -> None:
        """Look at claims with news, or where nobody tells at each once in an interval, until stop()."""
        pause_s = interval_s
        while not stopping.is_set():
            woken = self._woken.wait(pause_s)
            self._woken.clear()
            pause_s = interval_s
            try:
                claims = self._claims()
                if woken:
                    hurries, self._hurries = self._hurries, False
                    self._look(stopping, [claim for claim in claims if hurries or self._has_news(claim)])
                elif self._told is None and claims:
                    self._look_slowly(claims, interval_s)
                    pause_s = 0.0
            except (VGPUError, OSError) as error:
                _log.warning("claims not followed", extra={"error": str(error)})

    def take_news(self, told: Mapping[ClaimUID, str] | None) -> None:
        """Take over which claims can change, with digests; None: nobody tells. Called at each heartbeat."""
        self._told = told
        if told is not None:
            self._woken.set()

    def forget(self, uid: ClaimUID) -> None:
        """Take nothing for known of a claim that was prepared just now: its shares are as it said at that moment."""
        for known in (self._digests, self._applied):
            known.pop(uid, None)

    def look_now(self) -> None:
        """Look at all claims at once: somebody uses a device, and it is not known by which claim."""
        self._hurries = True
        self._woken.set()

    def stop(self) -> None:
        """Let the thread end; the stopping event must be set."""
        self._woken.set()

    def follow_news(self) -> None:
        """Look at the claims that have changed since the last look, as far as is told."""
        self._look(threading.Event(), [claim for claim in self._claims() if self._has_news(claim)])

    def _look(self, stopping: threading.Event, claims: Iterable[PreparedClaim]) -> None:
        for claim in claims:
            if stopping.is_set():
                return
            self.follow(claim)

    def _look_slowly(self, claims: Sequence[PreparedClaim], interval_s: float) -> None:
        for claim in claims:
            if self._woken.wait(interval_s / len(claims)):
                return
            self.follow(claim)

    def _claims(self) -> Sequence[PreparedClaim]:
        claims = self._ledger.prepared()
        for uid in {*self._digests, *self._applied} - claims.keys():
            self.forget(uid)
        return tuple(claims.values())

    def _has_news(self, claim: PreparedClaim) -> bool:
        told = (self._told or {}).get(claim.uid, "")
        if claim.uid in self._digests or told:
            return self._digests.get(claim.uid) != told
        # As the agent or the claim has just started. It is as every claim is by now; was it so when it was prepared?
        return len(claim.pods) > 1 or self._is_changed(claim)

    def _is_changed(self, claim: PreparedClaim) -> bool:
        """Say whether its shares are what an annotation said."""
        try:
            return any(Source.CLAIM in read_adjustments(self._shares_dir / share.share) for share in claim.shares())
        except (StateError, OSError):
            return True

    def follow(self, claim: PreparedClaim) -> None:
        """Look at one claim: change its shares if its annotation has changed, and its record if its pods have."""
        if not claim.is_complete:
            return
        try:
            found = self._reader.read(ClaimReference(claim.namespace, claim.name, claim.uid))
        except KubeError:
            return  # asked again, at the next heartbeat or in the next interval
        except VGPUError as error:
            _log.debug("claim not followed", extra={"claim_uid": claim.uid, "error": str(error)})
            return  # deleted: the kubelet says so
        if all([self._note_pods(claim, found), self._follow_annotation(claim, found)]):
            self._digests[claim.uid] = found.digest()
        else:
            self._digests.pop(claim.uid, None)  # tried again

    def _note_pods(self, claim: PreparedClaim, found: ClaimView) -> bool:
        """Record the pods that may use a claim; return whether that is done."""
        pods = found.pods
        if pods == claim.pods:
            return True

        def change(prepared: Prepared) -> PreparedClaim:
            if claim.uid not in prepared:
                raise _UndoneError
            return replace(prepared[claim.uid], pods=pods)

        try:
            self._meet(found)  # before: pods that are noted are not looked at again
            self._ledger.reserve(claim.uid, change)
        except _UndoneError:
            return True
        except (VGPUError, OSError) as error:
            _log.warning("pods of a claim not noted", extra={"claim_uid": claim.uid, "error": str(error)})
            return False
        _log.info("pods of a claim noted", extra={"claim_uid": claim.uid, "pods": pods})
        return True

    def _follow_annotation(self, claim: PreparedClaim, found: ClaimView) -> bool:
        """Change the shares of a claim as it is annotated; return whether that is done, or refused."""
        text = found.limits_annotation
        if self._applied.get(claim.uid) == text and (text is not None or claim.uid in self._applied):
            return True
        try:
            take_over(claim, found, self._shares_dir)
        except (VGPUError, OSError) as error:
            _log.warning("annotation not taken over", extra={"claim_uid": claim.uid, "error": str(error)})
            if not isinstance(error, ConfigError):
                return False  # the node's trouble, not the user's: on a slow disk a share is being made, say
            self._tell(claim, names.EVENT_LIMITS_INVALID, str(error))
        self._applied[claim.uid] = text
        return True


class _UndoneError(Exception):
    """The claim was undone meanwhile."""
