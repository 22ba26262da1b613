"""What the controller writes to NodeInventories: how a node is offered, that its agent is to look again, their end.

Used by `keeping`. All that an agent states itself, and what an operator wishes, stays as it is.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from api import kube as kube_api
from api.errors import NotFoundError
from api.kube import JSON, KubeClient
from api.nodeinventory import InventoryStatus, OfferedRoom
from controller.deciding import HEARTBEAT_LIMIT_S
from controller.records import InventoryRecord

log = logging.getLogger(__name__)

_DOUBT_S = 5.0
"""So long what an agent states of its Node may differ from what is seen of it: one of the two may be seen late."""


class InventoryTeller:
    """Writes to one inventory after the other. One thread at a time may work on a node."""

    def __init__(
        self, kube: KubeClient, check_lead: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Write as long as `check_lead` does not raise."""
        self._kube = kube
        self._check_lead = check_lead
        self._clock = clock
        self._keeps_mode = True
        """The CRD has a place for the mode; that of an older release has none, and may not be ours to update."""
        self._doubts: dict[str, tuple[tuple[str, str], float]] = {}
        """By node: the UIDs that an agent states and that its Node has, and since when they differ."""

    def tell_offer(self, node: str, inventory: InventoryStatus, mode: str, rooms: tuple[OfferedRoom, ...]) -> None:
        """Tell a node's agent how it is offered, and what above what it has, before any claim can hold it."""
        knows_mode = inventory.offer_mode == mode or not self._keeps_mode
        if knows_mode and tuple(inventory.offers or ()) == rooms:
            return
        offers = [room.model_dump(mode="json", by_alias=True) for room in rooms] or None
        stored = self._patch(node, {"status": {"offers": offers, "offerMode": mode}})
        self._keeps_mode = "offerMode" in stored.get("status", {})

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
        if record.problem or kept_for(record):
            return None
        if heartbeat_age_s <= HEARTBEAT_LIMIT_S:
            return HEARTBEAT_LIMIT_S - heartbeat_age_s + 1.0
        self._check_lead()
        # With preconditions: an operator may cordon one of its GPUs, or its agent come back, at this very moment.
        target = {"metadata": {"name": node, "uid": record.subject.uid, "resourceVersion": record.version}}
        with contextlib.suppress(NotFoundError):
            self._kube.delete(kube_api.NODE_INVENTORIES, target)
            log.info("deleted the inventory of a node that is gone", extra={"node": node})
        return None

    def forget(self, node: str) -> None:
        """Forget a node that is stated as it is, or gone."""
        self._doubts.pop(node, None)

    def _patch(self, node: str, patch: Mapping[str, Any]) -> JSON:
        self._check_lead()
        return self._kube.patch(kube_api.NODE_INVENTORIES, {"metadata": {"name": node}}, patch, "status")


def kept_for(record: InventoryRecord) -> str:
    """Return what an operator says in an inventory, which therefore outlives its Node; empty: nothing.

    Without its cordons, a broken GPU would be on offer again once its node is registered again.
    """
    said = record.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return ", ".join(
        f"{field}: {', '.join(value) if isinstance(value, list) else value}" for field, value in said.items()
    )
