"""What the controller watches: the kinds that every cluster has, and what is kept of each. Used by `caching`."""

from collections.abc import Callable, Iterable
from typing import Any

from api import kube as kube_api
from api import names
from api.kube import KubeClient, Resource, Selection
from controller.cluster.indexing import Indexes
from controller.cluster.records import (
    claim_trimmer,
    class_trimmer,
    node_trimmer,
    template_trimmer,
    trim_inventory,
    trim_pod,
    trim_slice,
)
from controller.cluster.watching import Kind, Watcher

UNSCHEDULED = Selection(fields="spec.nodeName=")
"""Pods that no scheduler has placed yet: the only ones that can wait for a claim."""


class Kinds:
    """The watchers, one per kind."""

    def __init__(
        self,
        kube: KubeClient,
        driver: str,
        version: str,
        indexes: Indexes,
        *,
        node_labels: Iterable[str],
        on_outage_end: Callable[[], None],
    ) -> None:
        """Report to `indexes`; watch the version `version` of resource.k8s.io, and the objects of `driver` in it."""
        templates = Resource(names.RESOURCE_GROUP, version, "resourceclaimtemplates", namespaced=True)
        slices = kube_api.slices(version)
        ours = Selection(fields=f"spec.driver={driver}")
        self.nodes = Watcher(kube, Kind(kube_api.NODES, node_trimmer(node_labels), indexes.on_node))
        self.inventories = Watcher(kube, Kind(kube_api.NODE_INVENTORIES, trim_inventory, indexes.on_inventory))
        self.slices = Watcher(
            kube, Kind(slices, trim_slice, indexes.on_slice, indexes.index_slice, ours), on_outage_end
        )
        self.classes = Watcher(kube, Kind(kube_api.device_classes(version), class_trimmer(driver), indexes.on_class))
        self.claims = Watcher(kube, Kind(kube_api.claims(version), claim_trimmer(driver), indexes.on_claim))
        self.templates = Watcher(kube, Kind(templates, template_trimmer(driver), indexes.on_template))
        self.pods = Watcher(kube, Kind(kube_api.PODS, trim_pod, indexes.on_pod, selection=UNSCHEDULED))

    @property
    def all(self) -> list[Watcher[Any]]:
        """All of them."""
        return [self.nodes, self.inventories, self.slices, self.classes, self.claims, self.templates, self.pods]
