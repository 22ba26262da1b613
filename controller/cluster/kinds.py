"""What the controller watches: the kinds that every cluster has, and what is kept of each. Used by `caching`."""

from typing import TYPE_CHECKING, Any

from api import kube as kube_api
from api import names
from api.kube import KubeClient, Resource, Selection
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

if TYPE_CHECKING:
    from controller.cluster.caching import ClusterCache

UNSCHEDULED = Selection(fields="spec.nodeName=")
"""Pods that no scheduler has placed yet: the only ones that can wait for a claim."""


class Kinds:
    """The watchers, one per kind."""

    def __init__(self, cache: "ClusterCache", kube: KubeClient, version: str) -> None:
        """Report to `cache`; watch the version `version` of resource.k8s.io."""
        driver = cache.driver
        templates = Resource(names.RESOURCE_GROUP, version, "resourceclaimtemplates", namespaced=True)
        ours = Selection(fields=f"spec.driver={driver}")
        self.nodes = Watcher(kube, Kind(kube_api.NODES, node_trimmer(cache.node_labels), cache.on_node))
        self.inventories = Watcher(kube, Kind(kube_api.NODE_INVENTORIES, trim_inventory, cache.on_inventory))
        self.slices = Watcher(
            kube,
            Kind(kube_api.slices(version), trim_slice, cache.on_slice, cache.index_slice, ours),
            cache.on_outage_end,
        )
        self.classes = Watcher(kube, Kind(kube_api.device_classes(version), class_trimmer(driver), cache.on_class))
        self.claims = Watcher(kube, Kind(kube_api.claims(version), claim_trimmer(driver), cache.on_claim))
        self.templates = Watcher(kube, Kind(templates, template_trimmer(driver), cache.on_template))
        self.pods = Watcher(kube, Kind(kube_api.PODS, trim_pod, cache.on_pod, selection=UNSCHEDULED))

    @property
    def all(self) -> list[Watcher[Any]]:
        """All of them."""
        return [self.nodes, self.inventories, self.slices, self.classes, self.claims, self.templates, self.pods]
