"""The annotation by which a share is changed from afar, taken over on its node.

Called by preparing, since the container is not to start with more, and by claimfollowing for claims that are prepared.
"""

import logging
from pathlib import Path

from api import names
from api.adjustments import Adjustment, parse_adjustment
from api.claims import ClaimView
from kubeletplugin.state.adjusting import Source, adjust, check_adjustment
from kubeletplugin.state.preparedclaims import PreparedClaim

_log = logging.getLogger(__name__)


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
    # All of them first: of what is wrong for one share, nothing is done to the others.
    for device in claim.devices:
        if device.limits is not None and wish is not None:
            check_adjustment(wish, device.holds(), Source.CLAIM, where)
    for device in claim.devices:
        if device.limits is not None:
            limits = adjust(
                shares_dir / device.limits.share, (device.limits, device.holds()), Source.CLAIM, wish, where
            )
            if wish is not None:
                _log.info("share changed by annotation", extra={"claim_uid": claim.uid, "share": limits.share})
