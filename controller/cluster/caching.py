"""What the controller knows of the cluster: one watch per kind, and the indexes over what they keep. Used by `terms`.

The watches are `kinds`, what follows from each change is `indexing`; here both are asked.
"""

from collections.abc import Collection, Iterable, Mapping

from api.claims import Object
from api.kube import KubeClient
from api.nodeinventory import FollowedClaim, InventorySpec, InventoryStatus
from controller.cluster.indexing import Indexes, Listeners
from controller.cluster.kinds import Kinds
from controller.cluster.records import ClaimRecord, ClassRecord, InventoryRecord, PodRecord, TemplateRecord
from controller.cluster.rulewatching import RuleWatch
from controller.cluster.watching import Key
from controller.offers.counting import DeviceKey, Usage
from controller.offers.deciding import Pulse
from controller.offers.migrating import holdings
from controller.offers.offering import Withheld
from controller.offers.policies import NodeDevices
from controller.reasons.extendedresources import class_of
from controller.reasons.fitting import OfferedDevice
from controller.reasons.tainting import tainted


class ClusterCache:
    """The caches of one term of leadership. Its questions may be asked from several threads."""

    def __init__(
        self, kube: KubeClient, driver: str, version: str, listeners: Listeners, *, node_labels: Iterable[str] = ()
    ) -> None:
        """Watch the version `version` of resource.k8s.io, and the objects of `driver` in it.

        Of Nodes, only the labels of the names `node_labels` are kept.
        """
        self.driver = driver
        self._listeners = listeners
        self._indexes = Indexes(driver, listeners)
        self._kinds = Kinds(
            kube, driver, version, self._indexes, node_labels=node_labels, on_outage_end=self._end_outage
        )
        self._rules = RuleWatch(kube, driver, self._indexes.look_at_waiting)

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

    @property
    def pulse(self) -> Pulse:
        """The heartbeats of the agents."""
        return self._indexes.pulse

    def node_uid(self, node: str) -> str | None:
        """Return a Node's uid, or None if there is no such Node."""
        record = self._kinds.nodes.get(("", node))
        return record.uid if record else None

    def node_devices(self, node: str, inventory: InventoryStatus) -> NodeDevices:
        """Return what an inventory states, with all else that decides about the node's offer."""
        record, stated = self._kinds.nodes.get(("", node)), self._kinds.inventories.get(("", node))
        return NodeDevices(
            inventory=inventory,
            spec=stated.spec if stated else InventorySpec(),
            labels=record.labels if record else {},
            holdings=holdings(self._indexes.usage_of(node)),
        )

    def inventory(self, node: str) -> InventoryRecord | None:
        """Return a node's inventory."""
        return self._kinds.inventories.get(("", node))

    def followed(self, node: str) -> tuple[FollowedClaim, ...]:
        """Return the claims of a node that can change while they are prepared."""
        return self._indexes.followed(node)

    def slices(self, pool: str) -> list[Object]:
        """Return the stored slices of a pool, by name."""
        return self._indexes.slices(pool)

    def has_seen_slice(self, version: str) -> bool:
        """Say whether the stored slices are those at a resourceVersion, or later ones."""
        return self._kinds.slices.has_seen(version)

    def pools(self) -> set[str]:
        """Return the names of all nodes with an inventory and of all pools with slices."""
        return self._indexes.pools() | {name for _, name in self._kinds.inventories.items()}

    def slice_count(self) -> int:
        """Return the number of stored slices."""
        return len(self._kinds.slices)

    def note_withheld(self, node: str, withheld: tuple[Withheld, ...]) -> None:
        """Remember what a node has and does not offer."""
        self._indexes.note_withheld(node, withheld)

    # --- questions about claims and pods --------------------------------------------------------------------------

    def claim(self, key: Key) -> ClaimRecord | None:
        """Return a claim."""
        return self._kinds.claims.get(key)

    def pod(self, key: Key) -> PodRecord | None:
        """Return a pod that has no node yet."""
        return self._kinds.pods.get(key)

    def gpu_bytes(self, node: str, gpu: str) -> int | None:
        """Return the memory of a GPU as its node states it; None: it does not."""
        record = self.inventory(node)
        devices = record.status.devices if record and record.status else []
        return next((facts.memory_bytes for facts in devices if facts.name == gpu), None)

    def template(self, key: Key) -> TemplateRecord | None:
        """Return a template that is wrong."""
        return self._kinds.templates.get(key)

    def device_class(self, key: Key) -> ClassRecord | None:
        """Return a DeviceClass that may select our devices, or stands for an extended resource."""
        return self._kinds.classes.get(key)

    def waiting_pods(self, claim: Key) -> list[PodRecord]:
        """Return the pods that the scheduler could not place and that name a claim, by name."""
        pods = (self._kinds.pods.get(key) for key in self._indexes.waiting_pods(claim))
        return [pod for pod in pods if pod is not None]

    def is_of_us(self, device_class: str) -> bool:
        """Say whether a DeviceClass may select our devices."""
        record = self._kinds.classes.get(("", device_class))
        return record is not None and record.is_ours

    def class_of(self, resource: str) -> str:
        """Return the DeviceClass of ours that the scheduler takes for an extended resource; empty: there is none."""
        return class_of(resource, self._kinds.classes.items().values())

    def plugin_resources(self) -> Mapping[str, Collection[str]]:
        """Return by node the extended resources that device plugins have there."""
        return {name: record.resources for (_, name), record in self._kinds.nodes.items().items() if record.resources}

    def devices(self) -> list[OfferedDevice]:
        """Return the devices of all nodes, with the taints of DeviceTaintRules."""
        return tainted(self._indexes.devices(), self._rules.rules())

    def device_counts(self) -> tuple[int, int]:
        """See DeviceIndex.counts."""
        return self._indexes.device_counts()

    def usage(self) -> dict[DeviceKey, Usage]:
        """Return what claims hold of each device."""
        return self._indexes.usage()

    def _end_outage(self) -> None:
        self._rules.look_again()
        self._listeners.outage_end()
