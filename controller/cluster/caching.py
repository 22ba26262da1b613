"""What the controller knows of the cluster: one watch per kind, and the indexes that save it walks over the caches.

Used by `terms`. Each change updates the indexes, and says which pool or claim it makes worth a look.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from api.claims import Object
from api.kube import KubeClient
from api.nodeinventory import FollowedClaim, InventorySpec, InventoryStatus
from controller.cluster.followedclaims import FollowedClaims
from controller.cluster.kinds import Kinds
from controller.cluster.records import ClaimRecord, ClassRecord, InventoryRecord, NodeRecord, PodRecord, TemplateRecord
from controller.cluster.rulewatching import RuleWatch
from controller.cluster.waiting import WaitingPods
from controller.cluster.watching import Key
from controller.offers.counting import DeviceKey, Ledger, Usage
from controller.offers.deciding import HEARTBEAT_LIMIT_S, Pulse
from controller.offers.migrating import holdings
from controller.offers.offering import Withheld
from controller.offers.policies import NodeDevices
from controller.offers.probing import PROBE_NODE
from controller.reasons.fitting import OfferedDevice
from controller.reasons.snapshots import DeviceIndex
from controller.reasons.tainting import tainted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listeners:
    """Who is told that something is worth a look."""

    pool: Callable[[str], None]
    claim: Callable[[Key], None]
    template: Callable[[Key], None]
    inventory: Callable[[Key], None]
    device_class: Callable[[Key], None]
    outage_end: Callable[[], None]
    """The API server answers again; it may be another version, with other feature gates."""


class ClusterCache:
    """The caches of one term of leadership. Its questions may be asked from several threads."""

    def __init__(
        self, kube: KubeClient, driver: str, version: str, listeners: Listeners, *, node_labels: Iterable[str] = ()
    ) -> None:
        """Watch the version `version` of resource.k8s.io, and the objects of `driver` in it.

        Of Nodes, only the labels of the names `node_labels` are kept.
        """
        self.driver = driver
        self.node_labels = tuple(node_labels)
        self._listeners = listeners
        self._lock = threading.Lock()
        self._ledger = Ledger(driver)
        self._followed = FollowedClaims()
        self._index = DeviceIndex()
        self._pools: dict[str, dict[str, Object]] = {}
        self._waiting = WaitingPods()
        self.pulse = Pulse()
        self._kinds = Kinds(self, kube, version)
        self._rules = RuleWatch(kube, driver, self.on_rules)

    def start(self) -> None:
        """Start all watches."""
        for watcher in self._kinds.all:
            watcher.start()
        self._rules.start()

    def stop(self) -> None:
        """End all watches; what they still receive is not reported."""
        for watcher in self._kinds.all:
            watcher.stop()
        self._rules.stop()

    def join(self, timeout_s: float) -> bool:
        """Wait for the ends of the watches; return whether they all ended."""
        ended = [watcher.join(timeout_s) for watcher in self._kinds.all]
        return all([*ended, self._rules.join(timeout_s)])

    def unsynced(self) -> list[str]:
        """Return the kinds that have not been listed yet."""
        return [watcher.plural for watcher in self._kinds.all if not watcher.synced.is_set()]

    def wait_synced(self, timeout_s: float) -> bool:
        """Wait until every kind has been listed, at most so long for each; return whether it is so."""
        return all(watcher.synced.wait(timeout_s) for watcher in self._kinds.all)

    # --- questions about pools ------------------------------------------------------------------------------------

    def node_uid(self, node: str) -> str | None:
        """Return a Node's uid, or None if there is no such Node."""
        record = self._kinds.nodes.get(("", node))
        return record.uid if record else None

    def node_devices(self, node: str, inventory: InventoryStatus) -> NodeDevices:
        """Return what an inventory states, with all else that decides about the node's offer."""
        record, stated = self._kinds.nodes.get(("", node)), self._kinds.inventories.get(("", node))
        with self._lock:
            usage = self._ledger.usage_of(node)
        return NodeDevices(
            inventory=inventory,
            spec=stated.spec if stated else InventorySpec(),
            labels=record.labels if record else {},
            holdings=holdings(usage),
        )

    def inventory(self, node: str) -> InventoryRecord | None:
        """Return a node's inventory."""
        return self._kinds.inventories.get(("", node))

    def followed(self, node: str) -> tuple[FollowedClaim, ...]:
        """Return the claims of a node that can change while they are prepared."""
        with self._lock:
            return self._followed.of(node)

    def slices(self, pool: str) -> list[Object]:
        """Return the stored slices of a pool, by name."""
        with self._lock:
            found = dict(self._pools.get(pool, {}))
        return [found[name] for name in sorted(found)]

    def has_seen_slice(self, version: str) -> bool:
        """Say whether the stored slices are those at a resourceVersion, or later ones."""
        return self._kinds.slices.has_seen(version)

    def pools(self) -> set[str]:
        """Return the names of all nodes with an inventory and of all pools with slices."""
        with self._lock:
            found = set(self._pools)
        return found | {name for _, name in self._kinds.inventories.items()}

    def slice_count(self) -> int:
        """Return the number of stored slices."""
        return len(self._kinds.slices)

    def note_withheld(self, node: str, withheld: tuple[Withheld, ...]) -> None:
        """Remember what a node has and does not offer."""
        with self._lock:
            self._index.note_withheld(node, withheld)

    # --- questions about claims -----------------------------------------------------------------------------------

    def claim(self, key: Key) -> ClaimRecord | None:
        """Return a claim."""
        return self._kinds.claims.get(key)

    def gpu_bytes(self, node: str, gpu: str) -> int | None:
        """Return the memory of a GPU as its node states it; None: it does not."""
        record = self.inventory(node)
        devices = record.status.devices if record and record.status else []
        return next((facts.memory_bytes for facts in devices if facts.name == gpu), None)

    def template(self, key: Key) -> TemplateRecord | None:
        """Return a template that is wrong."""
        return self._kinds.templates.get(key)

    def device_class(self, key: Key) -> ClassRecord | None:
        """Return a DeviceClass that may select our devices."""
        return self._kinds.classes.get(key)

    def waiting_pods(self, claim: Key) -> list[PodRecord]:
        """Return the pods that the scheduler could not place and that name a claim, by name."""
        with self._lock:
            keys = self._waiting.of(claim)
        pods = (self._kinds.pods.get(key) for key in keys)
        return [pod for pod in pods if pod is not None]

    def is_of_us(self, device_class: str) -> bool:
        """Say whether a DeviceClass may select our devices."""
        return self._kinds.classes.get(("", device_class)) is not None

    def devices(self) -> list[OfferedDevice]:
        """Return the devices of all nodes, with the taints of DeviceTaintRules."""
        with self._lock:
            found = self._index.devices()
        return tainted(found, self._rules.rules())

    def device_counts(self) -> tuple[int, int]:
        """See DeviceIndex.counts."""
        with self._lock:
            return self._index.counts()

    def usage(self) -> dict[DeviceKey, Usage]:
        """Return what claims hold of each device."""
        with self._lock:
            return self._ledger.usage()

    # --- changes ---------------------------------------------------------------------------------------------------

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
        pool = _pool(old, new)
        if pool == PROBE_NODE:
            return  # left by a controller that was killed while it tried something out: it offers nothing
        with self._lock:
            stored = self._pools.setdefault(pool, {})
            if new is None:
                stored.pop(key[1], None)
            else:
                stored[key[1]] = new
            if not stored:
                del self._pools[pool]
            self._index.note_slice(key[1], new)

    def on_slice(self, _key: Key, old: Object | None, new: Object | None) -> None:
        """The pool of a slice is worth a look."""
        self._listeners.pool(_pool(old, new))

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

    def on_template(self, key: Key, _old: TemplateRecord | None, _new: TemplateRecord | None) -> None:
        """A template with wrong parameters came, changed or went."""
        self._listeners.template(key)

    def on_class(self, key: Key, _old: ClassRecord | None, _new: ClassRecord | None) -> None:
        """A DeviceClass came, changed or went, and with it the answer to which of the waiting claims are ours."""
        self._listeners.device_class(key)
        self._look_at_waiting()

    def on_rules(self) -> None:
        """A DeviceTaintRule for our devices came, changed or went: waiting claims may have another reason."""
        self._look_at_waiting()

    def _look_at_waiting(self) -> None:
        with self._lock:
            waiting = self._waiting.claims()
        for claim in waiting:
            self._listeners.claim(claim)

    def on_outage_end(self) -> None:
        """The API server answers again."""
        self._rules.look_again()
        self._listeners.outage_end()


def _pool(old: Object | None, new: Object | None) -> str:
    changed = new or old
    assert changed is not None
    return str(changed["spec"]["pool"]["name"])


def _facts(record: InventoryRecord | None) -> object:
    """Return what an inventory states, without the heartbeat; a new spelling of an unreadable one counts too."""
    if record is None or record.status is None:
        return record and (record.problem, record.spec)
    return record.spec, record.status.model_copy(update={"heartbeat_time": None})


def _wishes(record: InventoryRecord | None) -> object:
    """Return what may be worth an event on an inventory."""
    return record and (record.problem, record.spec)
