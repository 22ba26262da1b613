"""Keeps each node's pool of ResourceSlices as it should be: decides, plans, writes, reads back.

Used by `controller`. What to do with a pool is `decide`, which writes that takes is `publishing.plan`; both are pure.
"""

import enum
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from api import kube as kube_api
from api.claims import Object
from api.errors import ConflictError, NotFoundError
from api.kube import KubeClient
from api.nodeinventory import InventoryStatus
from controller.comparing import lost_fields
from controller.metrics import Metrics
from controller.offering import NoMode, Offer, OfferMode
from controller.probing import dropped_fields
from controller.publishing import Plan, Pool, Settled, plan, settle

log = logging.getLogger(__name__)

HEARTBEAT_LIMIT_S = 60.0
"""An agent whose heartbeat is older is taken for dead."""

_CACHE_LAG_S = 5.0
"""So long the cache may take to show an own write; then it is planned on what it shows (conflicts keep that safe)."""
_CACHE_POLL_S = 0.5
"""If no event brings the pool up before."""


class Action(enum.Enum):
    """What to do with a node's pool."""

    PUBLISH = "publish"
    KEEP = "keep"
    """Leave it as it is: the agent is not there to say anything, or not to us."""
    WITHDRAW = "withdraw"


@dataclass(frozen=True)
class NodeState:
    """What is known of a node when its pool is decided on."""

    node_uid: str | None
    """None: there is no such Node."""
    has_inventory: bool
    inventory: InventoryStatus | None
    """None: no inventory, or its agent has not looked yet."""
    heartbeat_age_s: float = 0.0
    created_under: datetime | None = None
    """Heartbeat that was the agent's last when slices were last created."""


def decide(state: NodeState, driver: str) -> Action:
    """Say what to do with a node's pool.

    The kubelet removes the slices of a driver that it lost, 30 s after the connection broke; by its heartbeat the
    agent looks alive for some seconds more. What is created in that time is withdrawn again if no further heartbeat
    comes.
    """
    if state.node_uid is None or not state.has_inventory:
        return Action.WITHDRAW
    if state.inventory is None or state.inventory.driver_name != driver:
        return Action.KEEP
    if state.heartbeat_age_s <= HEARTBEAT_LIMIT_S:
        return Action.PUBLISH
    return Action.WITHDRAW if state.created_under == state.inventory.heartbeat_time else Action.KEEP


@dataclass
class Pulse:
    """When heartbeats were seen to change, so that a node whose clock is wrong is not taken for dead, or for alive."""

    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _seen: dict[str, tuple[datetime, float, bool]] = field(default_factory=dict)
    """By node: its last heartbeat, when that was noted, and whether it was seen to come (the first one was not)."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, node: str, heartbeat: datetime | None) -> None:
        """Take over a node's heartbeat; None: the node is gone."""
        with self._lock:
            before = self._seen.get(node)
            if heartbeat is None:
                self._seen.pop(node, None)
            elif before is None or before[0] != heartbeat:
                self._seen[node] = (heartbeat, self.clock(), before is not None)

    def age_s(self, node: str) -> float:
        """Return the age of a node's last heartbeat: by the own clock if it was seen to come, else by what it says."""
        with self._lock:
            seen = self._seen.get(node)
        if seen is None:
            return float("inf")
        heartbeat, noted_at, came = seen
        age_s = self.clock() - noted_at
        return age_s if came else max((self.now() - heartbeat).total_seconds(), age_s)


@dataclass(frozen=True)
class Sources:
    """Where a pool keeper reads the state of the cluster: the caches."""

    node_uid: Callable[[str], str | None]
    inventory: Callable[[str], tuple[bool, InventoryStatus | None]]
    slices: Callable[[str], list[Object]]
    """Stored slices of a pool."""
    has_seen: Callable[[str], bool]
    """Whether the stored slices are those at a resourceVersion, or later ones."""
    heartbeat_age_s: Callable[[str], float]


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
        self._settled: dict[str, dict[str, Settled]] = {}
        self._created_under: dict[str, datetime] = {}
        self._written: dict[str, tuple[str, float]] = {}
        """By node, the resourceVersion of the last own write, and when that was."""

    @property
    def mode(self) -> OfferMode:
        """The offer mode in use."""
        return self._mode

    def set_mode(self, mode: OfferMode) -> bool:
        """Use a mode from now on; return whether it is another one, and so every pool is due."""
        changed = mode != self._mode
        self._mode = mode
        if changed and isinstance(mode, NoMode):
            log.error(mode.reason)
        return changed

    def offer(self, inventory: InventoryStatus) -> Offer:
        """Return what a node's devices are offered as now."""
        return self._mode.offer(inventory)

    def sync(self, node: str) -> float | None:
        """Bring a node's pool in order; return after how many seconds to look again, None: when something changes.

        Raises:
            KubeError: the API server refused or did not answer; try again later.
        """
        if self._is_behind(node):
            return _CACHE_POLL_S
        has_inventory, inventory = self._sources.inventory(node)
        state = NodeState(
            node_uid=self._sources.node_uid(node),
            has_inventory=has_inventory,
            inventory=inventory,
            heartbeat_age_s=self._sources.heartbeat_age_s(node),
            created_under=self._created_under.get(node),
        )
        action = decide(state, self._driver)
        stored = self._sources.slices(node)
        if action is Action.WITHDRAW:
            self._apply(node, plan(None, stored))
            self._settled.pop(node, None)
            self._created_under.pop(node, None)
        elif action is Action.PUBLISH:
            assert state.inventory is not None
            assert state.node_uid is not None
            self._publish(node, state.node_uid, state.inventory, stored)
            if self._created_under.get(node) == state.inventory.heartbeat_time:
                return max(HEARTBEAT_LIMIT_S - state.heartbeat_age_s, 0.0) + 1.0
        return None

    def _is_behind(self, node: str) -> bool:
        """Say whether the cache does not show the own writes yet: a plan made on it would undo or repeat them."""
        version, at = self._written.get(node, ("", 0.0))
        if not version or self._sources.has_seen(version) or time.monotonic() > at + _CACHE_LAG_S:
            self._written.pop(node, None)
            return False
        return True

    def _publish(self, node: str, node_uid: str, inventory: InventoryStatus, stored: list[Object]) -> None:
        pool = Pool(self._driver, node, node_uid, self._mode.offer(inventory).slices, self.version)
        writes = plan(pool, stored, self._settled.get(node))
        if writes.creates:
            self._created_under[node] = inventory.heartbeat_time
        self._apply(node, writes)

    def _apply(self, node: str, writes: Plan) -> None:
        for obj in writes.deletes:
            self._delete(obj)
        for obj in writes.updates:
            self._write(node, "update", obj)
        for obj in writes.creates:
            self._write(node, "create", obj)

    def _delete(self, obj: Object) -> None:
        if not self._may_write():
            return
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
        if not self._may_write():
            return
        try:
            if operation == "create":
                stored = self._kube.create(self._resource, obj)
            else:
                stored = self._kube.replace(self._resource, obj)
        except (ConflictError, NotFoundError):
            self._metrics.conflicts.inc()
            raise
        self._metrics.writes.labels(operation).inc()
        self._written[node] = (str(stored["metadata"]["resourceVersion"]), time.monotonic())
        name = obj["metadata"]["name"]
        log.info("wrote slice", extra={"slice": name, "operation": operation, "devices": len(obj["spec"]["devices"])})
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
    return "allowMultipleAllocations" in path or "capacity" in path
