"""Follows what changes of claims while they are prepared: their annotation, and the pods that may use them.

Run by the agent in a thread of its own, which asks for the node's claims, one by one, at a low rate. A watch would see
all claims of the cluster from every node; a GET of each prepared claim now and then costs next to nothing. The kubelet
says nothing when another pod comes to a claim that is prepared, so who may use it is asked here as well.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from api import names
from api.claims import ClaimView
from api.errors import ConfigError, KubeError, VGPUError
from api.names import ClaimUID
from kubeletplugin.annotations import take_over
from kubeletplugin.claimreading import ClaimReader, ClaimReference
from kubeletplugin.ledgers import Ledger, Prepared
from kubeletplugin.planning import pods_of
from kubeletplugin.preparedclaims import PreparedClaim

_log = logging.getLogger(__name__)

Tell = Callable[[PreparedClaim, str, str], None]


class ClaimFollower:
    """Brings shares and records of a node to what their claims say by now."""

    def __init__(self, reader: ClaimReader, ledger: Ledger, shares_dir: Path, tell: Tell) -> None:
        """Take how to read claims, whose shares there are and where, and how to tell the owner of a claim."""
        self._reader = reader
        self._ledger = ledger
        self._shares_dir = shares_dir
        self._tell = tell
        self._applied: dict[ClaimUID, str | None] = {}
        """What was annotated at the last look, taken over or refused."""
        self._hurry = threading.Event()

    def run_until(self, stopping: threading.Event, interval_s: float) -> None:
        """Look at each claim once in an interval, until the event is set and stop() called."""
        while not stopping.is_set():
            try:
                self._go_through(stopping, interval_s)
            except (VGPUError, OSError) as error:
                _log.warning("claims not followed", extra={"error": str(error)})
                self._hurry.wait(interval_s)

    def look_now(self) -> None:
        """Look at all claims at once: somebody uses a device, and it is not known by which claim."""
        self._hurry.set()

    def stop(self) -> None:
        """Let the thread end; the stopping event must be set."""
        self._hurry.set()

    def _go_through(self, stopping: threading.Event, interval_s: float) -> None:
        hurried = self._hurry.is_set()
        self._hurry.clear()
        claims = self._ledger.prepared()
        self._applied = {uid: text for uid, text in self._applied.items() if uid in claims}
        for claim in claims.values():
            hurried = hurried or self._hurry.wait(interval_s / len(claims))
            if stopping.is_set():
                return
            self.follow(claim)
        if not claims and not hurried:
            self._hurry.wait(interval_s)

    def follow(self, claim: PreparedClaim) -> None:
        """Look at one claim: change its shares if its annotation has changed, and its record if its pods have."""
        if not claim.is_complete:
            return
        try:
            found = self._reader.read(ClaimReference(claim.namespace, claim.name, claim.uid))
        except KubeError:
            return  # asked again in the next interval
        except VGPUError as error:
            _log.debug("claim not followed", extra={"claim_uid": claim.uid, "error": str(error)})
            return  # deleted: the kubelet says so
        self._note_pods(claim, found)
        self._follow_annotation(claim, found)

    def _note_pods(self, claim: PreparedClaim, found: ClaimView) -> None:
        pods = pods_of(found)
        if pods == claim.pods:
            return

        def change(prepared: Prepared) -> PreparedClaim:
            if claim.uid not in prepared:
                raise _UndoneError
            return replace(prepared[claim.uid], pods=pods)

        try:
            self._ledger.reserve(claim.uid, change)
        except _UndoneError:
            return
        except (VGPUError, OSError) as error:
            _log.warning("pods of a claim not noted", extra={"claim_uid": claim.uid, "error": str(error)})
            return  # tried again
        _log.info("pods of a claim noted", extra={"claim_uid": claim.uid, "pods": pods})

    def _follow_annotation(self, claim: PreparedClaim, found: ClaimView) -> None:
        text = found.limits_annotation
        if self._applied.get(claim.uid) == text and (text is not None or claim.uid in self._applied):
            return
        try:
            take_over(claim, found, self._shares_dir)
        except (VGPUError, OSError) as error:
            _log.warning("annotation not taken over", extra={"claim_uid": claim.uid, "error": str(error)})
            self._tell(claim, names.EVENT_LIMITS_INVALID, str(error))
            if not isinstance(error, ConfigError):
                return  # the node's trouble, not the user's: tried again
        self._applied[claim.uid] = text


class _UndoneError(Exception):
    """The claim was undone meanwhile."""
