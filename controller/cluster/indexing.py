"""What follows from each change in the cluster: indexes that save walks over the caches, and who is to look at what.

Used by `kinds`, whose watchers report to it, and by `caching`, which asks it. Nothing here knows the API server.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from api.claims import Object
from api.nodeinventory import FollowedClaim
from controller.cluster.followedclaims import FollowedClaims
from controller.cluster.records import ClaimRecord, ClassRecord, InventoryRecord, NodeRecord, PodRecord, TemplateRecord
from controller.cluster.waiting import WaitingPods
from controller.cluster.watching import Key
from controller.offers.counting import DeviceKey, Ledger, Usage
from controller.offers.deciding import HEARTBEAT_LIMIT_S, Pulse
from controller.offers.offering import Withheld
from controller.offers.probing import PROBE_NODE
from controller.reasons.fitting import OfferedDevice
from controller.reasons.snapshots import DeviceIndex

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listeners:
    """Who is told that something is worth a look."""

    pool: Callable[[str], None]
    claim: Callable[[Key], None]
    pod: Callable[[Key], None]
    """A pod that waits for devices by the name of an extended resource."""
    template: Callable[[Key], None]
    inventory: Callable[[Key], None]
    device_class: Callable[[Key], None]
    outage_end: Callable[[], None]
    """The API server answers again; it may be another version, with other feature gates."""


class Indexes:
    """The indexes of one term of leadership. Safe to use from several threads."""

    def __init__(self, driver: str, listeners: Listeners) -> None:
        """Begin empty, for the objects of `driver`."""
        self._listeners = listeners
        self._lock = threading.Lock()
        self._ledger = Ledger(driver)
        self._followed = FollowedClaims()
        self._devices = DeviceIndex()
        self._pools: dict[str, dict[str, Object]] = {}
        self._waiting = WaitingPods()
        self.pulse = Pulse()

    # --- questions -------------------------------------------------------------------------------------------------

    def followed(self, node: str) -> tuple[FollowedClaim, ...]:
        """Return the claims of a node that can change while they are prepared."""
        with self._lock:
            return self._followed.of(node)

    def slices(self, pool: str) -> list[Object]:
        """Return the stored slices of a pool, by name."""
        with self._lock:
            found = dict(self._pools.get(pool, {}))
        return [found[name] for name in sorted(found)]

    def pools(self) -> set[str]:
        """Return the names of all pools with slices."""
        with self._lock:
            return set(self._pools)

    def waiting_pods(self, claim: Key) -> list[Key]:
        """Return the pods that the scheduler could not place and that name a claim, by name."""
        with self._lock:
            return self._waiting.of(claim)

    def devices(self) -> list[OfferedDevice]:
        """Return the devices of all nodes as they are published, or withheld."""
        with self._lock:
            return self._devices.devices()

    def device_counts(self) -> tuple[int, int]:
        """See DeviceIndex.counts."""
        with self._lock:
            return self._devices.counts()

    def usage(self) -> dict[DeviceKey, Usage]:
        """Return what claims hold of each device."""
        with self._lock:
            return self._ledger.usage()

    def usage_of(self, node: str) -> dict[str, Usage]:
        """Return what claims hold of the devices of a node, by their names."""
        with self._lock:
            return self._ledger.usage_of(node)

    # --- changes ---------------------------------------------------------------------------------------------------

    def note_withheld(self, node: str, withheld: tuple[Withheld, ...]) -> None:
        """Remember what a node has and does not offer."""
        with self._lock:
            self._devices.note_withheld(node, withheld)

    def on_node(self, key: Key, old: NodeRecord | None, new: NodeRecord | None) -> None:
        """A Node came, went, or was replaced under the same name."""
        if old != new:
            self._listeners.pool(key[1])
        if (old is None) != (new is None):
            self._listeners.inventory(key)

    def on_inventory(self, key: Key, old: InventoryRecord | None, new: InventoryRecord | None) -> None:
        """An agent stated something. A mere heartbeat is no work, unless it is the first after a silence."""
        node = key[1]
        was_dead = self.pulse.age_s(node) > HEARTBEAT_LIMIT_S
        status = new.status if new else None
        before, after = (record.problem if record else "" for record in (old, new))
        if after and before != after:
            log.warning("found mistakes in an inventory", extra={"error": after})
        if new is None or status is not None:
            self.pulse.note(node, status.heartbeat_time if status else None)
        if was_dead or _facts(old) != _facts(new):
            self._listeners.pool(node)
        if _wishes(old) != _wishes(new):
            self._listeners.inventory(key)

    def index_slice(self, key: Key, old: Object | None, new: Object | None) -> None:
        """A slice of our driver came, changed or went: by us or by somebody else."""
        before, after = _pool(old), _pool(new)
        with self._lock:
            if before != after:
                self._drop(before, key[1])
            if after == PROBE_NODE:
                after = ""  # it offers nothing: it is a sample, or says whose the driver's name is
            if new is not None and after:
                self._pools.setdefault(after, {})[key[1]] = new
            self._devices.note_slice(key[1], new if after else None)

    def _drop(self, pool: str, name: str) -> None:
        stored = self._pools.get(pool, {})
        stored.pop(name, None)
        if not stored:
            self._pools.pop(pool, None)

    def on_slice(self, _key: Key, old: Object | None, new: Object | None) -> None:
        """The pool of a slice is worth a look."""
        for pool in {_pool(old), _pool(new)} - {""}:
            self._listeners.pool(pool)

    def on_claim(self, key: Key, old: ClaimRecord | None, new: ClaimRecord | None) -> None:
        """A claim came, got its devices, gave them back, or went."""
        pools: set[str] = set()
        before, after = (record.view if record is not None else None for record in (old, new))
        with self._lock:
            if before is not None and (after is None or after.uid != before.uid):
                pools |= self._ledger.note(before.uid, None) | self._followed.note(before.uid)
            if new is not None and after is not None:
                results = after.allocation.results if after.allocation is not None else ()
                pools |= self._ledger.note(after.uid, after.allocation)
                pools |= self._followed.note(after.uid, (result.pool for result in results), new.digest)
            waits = self._waiting.wait_for(key)
        for pool in pools:
            self._listeners.pool(pool)
        # Of most claims there is nothing to say, from their first day to their last.
        if waits or any(record is not None and record.is_odd for record in (old, new)):
            self._listeners.claim(key)

    def on_pod(self, key: Key, old: PodRecord | None, new: PodRecord | None) -> None:
        """A pod without a node came, was found unschedulable, or went (to its node, mostly)."""
        with self._lock:
            claims = self._waiting.note(key, old, new)
        for claim in claims:
            self._listeners.claim(claim)
        if _waits_for_resources(old) != _waits_for_resources(new):
            self._listeners.pod(key)

    def on_template(self, key: Key, _old: TemplateRecord | None, _new: TemplateRecord | None) -> None:
        """A template with wrong parameters came, changed or went."""
        self._listeners.template(key)

    def on_class(self, key: Key, _old: ClassRecord | None, _new: ClassRecord | None) -> None:
        """A DeviceClass came, changed or went, and with it the answer to which of the waiting claims are ours."""
        self._listeners.device_class(key)
        self.look_at_waiting()

    def look_at_waiting(self) -> None:
        """Let all look again that wait: something has changed that decides about all of them."""
        with self._lock:
            claims, pods = self._waiting.claims(), self._waiting.asking()
        for claim in claims:
            self._listeners.claim(claim)
        for pod in pods:
            self._listeners.pod(pod)


def _pool(obj: Object | None) -> str:
    """Return the pool of a slice; empty: there is none."""
    return "" if obj is None else str(obj["spec"]["pool"]["name"])


def _facts(record: InventoryRecord | None) -> object:
    """Return what an inventory states, without the heartbeat; a new spelling of an unreadable one counts too."""
    if record is None or record.status is None:
        return record and (record.problem, record.spec)
    return record.spec, record.status.model_copy(update={"heartbeat_time": None})


def _wishes(record: InventoryRecord | None) -> object:
    """Return what may be worth an event on an inventory."""
    return record and (record.problem, record.spec)


def _waits_for_resources(record: PodRecord | None) -> object:
    return record is not None and record.unschedulable and record.asks
