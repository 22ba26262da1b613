"""Follows the annotation by which a share is changed from afar: asks for the node's claims, one by one, at a low rate.

Run by the agent in a thread of its own. A watch would see all claims of the cluster from every node; a GET of each
prepared claim now and then costs next to nothing, and a change takes effect within the interval. What is annotated
already when a claim is prepared, preparing takes over itself: the container is not to start with more.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from api import names
from api.adjustments import Adjustment, parse_adjustment
from api.claims import ClaimView
from api.errors import ConfigError, KubeError, VGPUError
from api.names import ClaimUID
from kubeletplugin.adjusting import Source, adjust
from kubeletplugin.claimreading import ClaimReader, ClaimReference
from kubeletplugin.ledgers import Ledger
from kubeletplugin.preparedclaims import PreparedClaim

_log = logging.getLogger(__name__)

Tell = Callable[[PreparedClaim, str, str], None]


class AnnotationFollower:
    """Brings the shares of a node to what is annotated on their claims."""

    def __init__(self, reader: ClaimReader, ledger: Ledger, shares_dir: Path, tell: Tell) -> None:
        """Take how to read claims, whose shares there are and where, and how to tell the owner of a claim."""
        self._reader = reader
        self._ledger = ledger
        self._shares_dir = shares_dir
        self._tell = tell
        self._applied: dict[ClaimUID, str | None] = {}
        """What was annotated at the last look, taken over or refused."""

    def run_until(self, stopping: threading.Event, interval_s: float) -> None:
        """Look at each claim once in an interval, until the event is set."""
        while True:
            claims = self._ledger.prepared()
            self._applied = {uid: text for uid, text in self._applied.items() if uid in claims}
            for claim in claims.values():
                if stopping.wait(interval_s / len(claims)):
                    return
                self.follow(claim)
            if not claims and stopping.wait(interval_s):
                return

    def follow(self, claim: PreparedClaim) -> None:
        """Look at one claim, and change its shares if its annotation has changed."""
        if not claim.is_complete:
            return
        try:
            found = self._reader.read(ClaimReference(claim.namespace, claim.name, claim.uid))
        except KubeError:
            return  # asked again in the next interval
        except VGPUError as error:
            _log.debug("claim not followed", extra={"claim_uid": claim.uid, "error": str(error)})
            return  # deleted: the kubelet says so
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


def take_over(claim: PreparedClaim, found: ClaimView, shares_dir: Path) -> None:
    """Bring the shares of a claim to what is annotated on it, or back to what it says if nothing is.

    Args:
        claim: as prepared.
        found: as it is now.
        shares_dir: where the folders of its shares are.

    Raises:
        ConfigError: the annotation cannot be read, or wants more than the claim holds.
        StateError, OSError: there is no such share (any more), or the node could not write it.
    """
    where = f"{claim}: annotation {names.ANNOTATION_LIMITS}"
    text = found.limits_annotation
    wish: Adjustment | None = parse_adjustment(text, where) if text is not None else None
    for device in claim.devices:
        if device.limits is not None:
            limits = adjust(
                shares_dir / device.limits.share, (device.limits, device.holds()), Source.CLAIM, wish, where
            )
            if wish is not None:
                _log.info("share changed by annotation", extra={"claim_uid": claim.uid, "share": limits.share})
