"""Keeps each node's pool of ResourceSlices as it should be: decides, plans, writes, reads back.

Used by `terms`. What to do with a pool is `deciding.decide`, what to offer is `composing`, which writes that takes is
`publishing.plan`.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from api import kube as kube_api
from api.claims import Object
from api.errors import ConflictError, NotFoundError
from api.kube import KubeClient
from api.nodeinventory import FollowedClaim, InventoryStatus
from controller.cluster.records import InventoryRecord
from controller.leading import NotLeadingError
from controller.metrics import Metrics
from controller.offers.comparing import lost_fields
from controller.offers.composing import Composer
from controller.offers.deciding import HEARTBEAT_LIMIT_S, Action, NodeState, decide
from controller.offers.memoizing import Memo
from controller.offers.offering import NoMode, OfferMode, Withheld
from controller.offers.policies import NodeDevices, Policy
from controller.offers.probing import dropped_fields
from controller.offers.publishing import FENCE, Plan, Pool, Settled, generation, owners, plan, settle
from controller.restoring import Restores
from controller.telling import InventoryTeller

log = logging.getLogger(__name__)

_CACHE_LAG_S = 5.0
"""So long the cache may take to show an own write; then it is planned on what it shows (conflicts keep that safe)."""
_CACHE_POLL_S = 0.5
"""If no event brings the pool up before."""


@dataclass(frozen=True)
class Sources:
    """Where a pool keeper reads the state of the cluster: the caches."""

    node_uid: Callable[[str], str | None]
    inventory: Callable[[str], InventoryRecord | None]
    devices: Callable[[str, InventoryStatus], NodeDevices]
    """What an inventory states, with all else that decides about a node's offer."""
    followed: Callable[[str], tuple[FollowedClaim, ...]]
    """Claims of a node that can change while they are prepared."""
    slices: Callable[[str], Sequence[Object]]
    """Stored slices of a pool."""
    has_seen: Callable[[str], bool]
    """Whether the stored slices are those at a resourceVersion, or later ones."""
    heartbeat_age_s: Callable[[str], float]
    clock: Callable[[], float] = time.monotonic


class PoolKeeper:
    """Brings one pool after the other in order. One thread at a time may work on a pool."""

    def __init__(
        self,
        kube: KubeClient,
        driver: str,
        version: str,
        *,
        sources: Sources,
        may_write: Callable[[], bool],
        metrics: Metrics,
    ) -> None:
        """Write as long as `may_write` says so; `version` is that of resource.k8s.io."""
        self._kube = kube
        self._driver = driver
        self.version = version
        self._resource = kube_api.slices(version)
        self._sources = sources
        self._may_write = may_write
        self._metrics = metrics
        self._mode: OfferMode = NoMode("the offer mode is not known yet")
        self._policy = Policy()
        self._clock = sources.clock
        self._teller = InventoryTeller(kube, self._check_lead, metrics, sources.clock)
        self._composer = Composer(sources.clock)
        self._restores = Restores(sources.clock)
        self._memo = Memo()
        self._fenced: set[str] = set()
        """Nodes whose pools had a new generation in this term."""
        self._withheld: dict[str, tuple[Withheld, ...]] = {}
        self._settled: dict[str, dict[str, Settled]] = {}
        self._created_under: dict[str, datetime] = {}
        self._written: dict[str, tuple[str, float]] = {}
        """By node, the resourceVersion of the last own write, and when that was."""
        self._offered: dict[str, dict[str, Object]] = {}
        """By node and name, slices as they were written since the last look at the stored ones: sent, or answered."""

    @property
    def mode(self) -> OfferMode:
        """The offer mode in use."""
        return self._mode

    @property
    def policy(self) -> Policy:
        """The policy in use."""
        return self._policy

    def set_mode(self, mode: OfferMode, policy: Policy | None = None) -> bool:
        """Use a mode (and a policy) from now on; return whether it is another one, and so every pool is due."""
        policy = policy or self._policy
        changed = (mode, policy) != (self._mode, self._policy)
        if isinstance(mode, NoMode) and mode != self._mode:
            log.error(mode.reason)
        self._mode, self._policy = mode, policy
        return changed

    def note_old_crd(self) -> None:
        """Remember that the CRD of NodeInventory was of an older release until now."""
        self._teller.note_old_crd()

    def withheld(self, node: str) -> tuple[Withheld, ...]:
        """Return what a node has and does not offer, as of its last sync."""
        return self._withheld.get(node, ())

    def sync(self, node: str) -> float | None:
        """Bring a node's pool in order; return after how many seconds to look again, None: when something changes.

        Raises:
            NotLeadingError: the Lease is in doubt; try again later.
            KubeError: the API server refused or did not answer; try again later.
        """
        if self._is_behind(node):
            return _CACHE_POLL_S
        record = self._sources.inventory(node)
        stored = self._sources.slices(node)
        state = NodeState(
            node_uid=self._sources.node_uid(node),
            has_inventory=record is not None,
            inventory=record.status if record is not None else None,
            heartbeat_age_s=self._sources.heartbeat_age_s(node),
            created_under=self._created_under.get(node),
            owners=owners(stored),
        )
        action = decide(state, self._driver)
        self._note_unseen(node, stored)
        if action is Action.WITHDRAW:
            self._withdraw(node, stored)
            return self._look_after(node, state, record)
        if action is Action.PUBLISH:
            assert state.inventory is not None
            assert state.node_uid is not None
            self._publish(node, state.node_uid, state.inventory, stored)
            dues = [each.due_in_s(node) for each in (self._composer, self._teller, self._restores)]
            if self._created_under.get(node) == state.inventory.heartbeat_time:
                dues.append(max(HEARTBEAT_LIMIT_S - state.heartbeat_age_s, 0.0) + 1.0)
            return min((due for due in dues if due is not None), default=None)
        return None

    def _withdraw(self, node: str, stored: Sequence[Object]) -> None:
        try:
            self._apply(node, plan(None, stored))
        finally:
            self._composer.note_offered(node, stored)
        self._forget(node)

    def _look_after(self, node: str, state: NodeState, record: InventoryRecord | None) -> float | None:
        """Bring the inventory in order of a node of which nothing is offered."""
        if record is not None and state.node_uid is not None and state.is_of_another_node():
            is_alive = state.heartbeat_age_s <= HEARTBEAT_LIMIT_S
            return self._teller.ask_anew(node, record, state.node_uid) if is_alive else None
        if record is not None and state.node_uid is None:
            return self._teller.clean_up(node, record, state.heartbeat_age_s)
        self._teller.forget(node)
        return None

    def _forget(self, node: str) -> None:
        self._settled.pop(node, None)
        self._created_under.pop(node, None)
        self._withheld.pop(node, None)
        self._memo.forget(node)
        self._fenced.discard(node)
        self._composer.forget(node)
        self._restores.forget(node)

    def _is_behind(self, node: str) -> bool:
        """Say whether the cache does not show the own writes yet: a plan made on it would undo or repeat them."""
        version, at = self._written.get(node, ("", 0.0))
        if not version or self._sources.has_seen(version) or self._clock() > at + _CACHE_LAG_S:
            self._written.pop(node, None)
            return False
        return True

    def _note_unseen(self, node: str, stored: Sequence[Object]) -> None:
        """Tell the composer of own slices that the cache never showed: somebody changed or removed them at once."""
        versions = {obj["metadata"]["resourceVersion"] for obj in stored}
        written = self._offered.pop(node, {}).values()
        self._composer.note_offered(
            node, (obj for obj in written if obj["metadata"].get("resourceVersion") not in versions)
        )

    def _publish(self, node: str, node_uid: str, inventory: InventoryStatus, stored: Sequence[Object]) -> None:
        self._teller.tell_mode(node, inventory, self._mode.name, self._sources.followed(node))
        devices = replace(self._sources.devices(node, inventory), keeps_mode=self._teller.keeps_mode)
        offer = self._composer.compose(node, devices, self._mode, self._policy, stored)
        self._withheld[node] = offer.withheld
        self._teller.tell_rooms(node, inventory, offer.rooms)
        pool = Pool(self._driver, node, node_uid, offer.slices, self.version)
        settled = dict(self._settled.get(node, {}))
        step = 1 if node in self._fenced else FENCE
        writes = self._memo.recall(node, plan, pool, tuple(stored), settled, step)
        if writes and not self._restores.may_write(node, pool):
            return
        if writes.creates:
            self._created_under[node] = inventory.heartbeat_time
        self._apply(node, writes)
        self._restores.note_written(node, pool)
        if generation((*writes.updates, *writes.creates)) > generation(stored):
            self._fenced.add(node)

    def _apply(self, node: str, writes: Plan) -> None:
        for obj in writes.deletes:
            self._delete(obj)
        for obj in writes.updates:
            self._write(node, "update", obj)
        for obj in writes.creates:
            self._write(node, "create", obj)

    def _check_lead(self) -> None:
        """Raise NotLeadingError where nothing may be written: what is left out is to be tried again."""
        if not self._may_write():
            raise NotLeadingError("the Lease was not renewed in time")

    def _delete(self, obj: Object) -> None:
        self._check_lead()
        try:
            self._kube.delete(self._resource, obj)
        except NotFoundError:
            return
        except ConflictError:
            # It changed since it was planned for; the change arrives by the watch and brings the pool here again.
            self._metrics.conflicts.inc()
            raise
        self._metrics.writes.labels("delete").inc()
        log.info("deleted slice", extra={"slice": obj["metadata"]["name"]})

    def _write(self, node: str, operation: str, obj: Object) -> None:
        self._check_lead()
        name = obj["metadata"]["name"]
        offered = self._offered.setdefault(node, {})
        offered[name] = obj  # an answer that is lost says nothing about what took effect
        try:
            if operation == "create":
                stored = self._kube.create(self._resource, obj)
            else:
                stored = self._kube.replace(self._resource, obj)
        except (ConflictError, NotFoundError):
            self._metrics.conflicts.inc()
            raise
        offered[name] = stored
        self._metrics.writes.labels(operation).inc()
        self._written[node] = (str(stored["metadata"]["resourceVersion"]), self._clock())
        log.info(
            "wrote slice",
            extra={"slice": name, "operation": operation, "devices": len(obj["spec"].get("devices") or [])},
        )
        self._read_back(node, name, obj, stored)

    def _read_back(self, node: str, name: str, wanted: Object, stored: Object) -> None:
        left = settle(wanted, stored)
        if left is None:
            return
        lost = lost_fields(wanted["spec"], stored["spec"])
        if any(_limits(path) for path in lost):
            # At once and not with the next sync: a device without limits must not stay on offer.
            self._delete(stored)
            self.set_mode(NoMode(dropped_fields(self._mode, lost)))
            raise ConflictError(f"ResourceSlice {name}: the API server dropped {', '.join(lost)}", delay_s=0.0)
        self._settled.setdefault(node, {})[name] = left
        log.warning(
            "the API server stores a slice otherwise than it was written; left at that",
            extra={"slice": name, "fields": ", ".join(lost) or "fields were added"},
        )


def _limits(path: str) -> bool:
    return any(field in path for field in ("allowMultipleAllocations", "capacity", "ounters"))
