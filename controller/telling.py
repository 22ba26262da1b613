"""What the controller writes to NodeInventories: how a node is offered, that its agent is to look again, their end.

Used by `keeping`. All that an agent states itself, and what an operator wishes, stays as it is.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from api import kube as kube_api
from api.errors import NotFoundError
from api.kube import JSON, KubeClient
from api.names import ClaimUID
from api.nodeinventory import FollowedClaim, InventoryStatus, OfferedRoom
from controller.cluster.records import InventoryRecord
from controller.damping import Damper
from controller.metrics import Metrics
from controller.offers.deciding import HEARTBEAT_LIMIT_S

log = logging.getLogger(__name__)

_MODE = "offerMode"
_TRY_SOON_S, _TRY_AGAIN_S = 10.0, 300.0
"""So long a field is not written that the API server dropped: for the first time, since a CRD that was updated just now
takes effect a moment later, and from then on."""
_DOUBT_S = 5.0
"""So long what an agent states of its Node may differ from what is seen of it: one of the two may be seen late."""


class InventoryTeller:
    """Writes to one inventory after the other. One thread at a time may work on a node."""

    def __init__(
        self,
        kube: KubeClient,
        check_lead: Callable[[], None],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write as long as `check_lead` does not raise."""
        self._kube = kube
        self._check_lead = check_lead
        self._metrics = metrics
        self._clock = clock
        self._dropped: dict[str, float] = {}
        """Fields of the status that the API server does not keep, and when to write them once more."""
        self._had_no_mode = False
        self._lost: set[str] = set()
        """Those of them that it did not keep for the second time either."""
        self._untold: dict[str, float] = {}
        """Nodes that were not told something for that, and when they will be."""
        self._doubts: dict[str, tuple[tuple[str, str], float]] = {}
        """By node: the UIDs that an agent states and that its Node has, and since when they differ."""
        self._blank: dict[str, float] = {}
        """Since when inventories without a Node were seen to state nothing."""
        self._damper = Damper(clock)

    @property
    def keeps_mode(self) -> bool:
        """Say whether a node that was told a mode is known by that, as far as is known."""
        return _MODE not in self._dropped and not self._had_no_mode

    def note_old_crd(self) -> None:
        """Remember that the CRD was of an older release until now: that a node was told no mode says nothing."""
        self._had_no_mode = True

    def tell_mode(self, node: str, inventory: InventoryStatus, mode: str, claims: tuple[FollowedClaim, ...]) -> None:
        """Tell a node's agent how it is offered, before anything of it is, and which of its claims to follow."""
        self._clear(node)
        changes: dict[str, Any] = {}
        if inventory.offer_mode != mode:
            changes[_MODE] = mode
        told, wanted = _digests(inventory.followed_claims or ()), _digests(claims)
        admitted = self._damper.admit(node, told, wanted)
        if inventory.followed_claims is None or told != admitted:
            changes["followedClaims"] = [{"uid": uid, "digest": admitted[uid]} for uid in sorted(admitted)]
        self._tell(node, changes)

    def tell_rooms(self, node: str, inventory: InventoryStatus, rooms: tuple[OfferedRoom, ...]) -> None:
        """Tell a node's agent what is offered above what it has, before any claim can hold it."""
        if tuple(inventory.offers or ()) != rooms:
            self._tell(node, {"offers": [room.model_dump(mode="json", by_alias=True) for room in rooms] or None})

    def due_in_s(self, node: str) -> float | None:
        """Return after how many seconds to tell a node what it was not told; None: it knows all."""
        due = self._untold.get(node)
        dropped_s = None if due is None else max(due - self._clock(), 0.0)
        return min((s for s in (dropped_s, self._damper.due_in_s(node)) if s is not None), default=None)

    def ask_anew(self, node: str, record: InventoryRecord, node_uid: str) -> float | None:
        """Let an agent that has outlived its Node look again which one it is on.

        An agent asks for its Node's UID once: it starts with its machine, and a Node mostly lives as long as that.

        Args:
            node: its name.
            record: of an agent that is alive.
            node_uid: what it should state.

        Returns:
            The seconds until it is worth asking; None: it was asked.
        """
        stated = record.status.node_uid if record.status else ""
        if not stated:
            return None
        differ, now = (stated, node_uid), self._clock()
        before, since = self._doubts.get(node, (differ, now))
        self._doubts[node] = (differ, since if before == differ else now)
        wait_s = self._doubts[node][1] + _DOUBT_S - now
        if wait_s > 0:
            return wait_s
        self._patch(node, {"metadata": {"resourceVersion": record.version}, "status": {"nodeUID": ""}})
        del self._doubts[node]
        log.info("the node was registered anew under its agent", extra={"node": node})
        return None

    def clean_up(self, node: str, record: InventoryRecord, heartbeat_age_s: float) -> float | None:
        """Remove the inventory of a Node that is gone, once its agent is gone too: it may be about to come back.

        Returns:
            The seconds until it is to be removed; None: it is gone, or is kept.
        """
        self._doubts.pop(node, None)
        if record.problem or kept_for(record):
            return None
        if record.status is None:
            # Made a moment ago, perhaps, by an agent whose Node and first statement are about to arrive here.
            now = self._clock()
            heartbeat_age_s = now - self._blank.setdefault(node, now)
        if heartbeat_age_s <= HEARTBEAT_LIMIT_S:
            return HEARTBEAT_LIMIT_S - heartbeat_age_s + 1.0
        self._check_lead()
        # With preconditions: an operator may cordon one of its GPUs, or its agent come back, at this very moment.
        target = {"metadata": {"name": node, "uid": record.subject.uid, "resourceVersion": record.version}}
        with contextlib.suppress(NotFoundError):
            self._kube.delete(kube_api.NODE_INVENTORIES, target)
            self.forget(node)
            log.info("deleted the inventory of a node that is gone", extra={"node": node})
        return None

    def forget(self, node: str) -> None:
        """Forget what is known of a node."""
        self._clear(node)
        self._damper.forget(node)

    def _clear(self, node: str) -> None:
        for known in (self._doubts, self._blank, self._untold):
            known.pop(node, None)

    def _tell(self, node: str, changes: Mapping[str, Any]) -> None:
        now = self._clock()
        due = {field: value for field, value in changes.items() if now >= self._dropped.get(field, now)}
        if due:
            stored = self._patch(node, {"status": due}).get("status") or {}
            for field, value in due.items():
                if field in stored:
                    self._note_kept(field)
                elif value is not None:
                    self._note_dropped(field, now)
        left = [self._dropped[field] for field in changes if field in self._dropped]
        if left:
            self._untold[node] = min([*left, self._untold.get(node, left[0])])

    def _note_dropped(self, field: str, now: float) -> None:
        """Remember that the CRD has no place for a field: that of an older release, which may not be ours to update."""
        if field not in self._dropped:
            self._dropped[field] = now + _TRY_SOON_S
            return
        self._dropped[field] = now + _TRY_AGAIN_S
        if field not in self._lost:
            self._lost.add(field)
            self._metrics.crd_outdated.set(1)
            log.warning(
                "the CRD of NodeInventory is of an older release and drops what the controller tells node agents; "
                "apply the output of `dra-driver crds`",
                extra={"field": f"status.{field}"},
            )

    def _note_kept(self, field: str) -> None:
        self._dropped.pop(field, None)
        self._lost.discard(field)
        self._metrics.crd_outdated.set(len(self._lost) > 0)

    def _patch(self, node: str, patch: Mapping[str, Any]) -> JSON:
        self._check_lead()
        return self._kube.patch(kube_api.NODE_INVENTORIES, {"metadata": {"name": node}}, patch, "status")


def _digests(claims: Iterable[FollowedClaim]) -> dict[ClaimUID, str]:
    return {ClaimUID(claim.uid): claim.digest for claim in claims}


def kept_for(record: InventoryRecord) -> str:
    """Return what an operator says in an inventory, which therefore outlives its Node; empty: nothing.

    Without its cordons, a broken GPU would be on offer again once its node is registered again.
    """
    said = record.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return ", ".join(
        f"{field}: {', '.join(value) if isinstance(value, list) else value}" for field, value in said.items()
    )
