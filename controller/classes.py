"""Keeps the driver's DeviceClasses: one for all vendors and one for each. Used by `terms`.

They are the controller's and not the chart's: helm records what it installed in the version of the API in which it was
written, and can neither upgrade nor remove it once the cluster no longer serves that version. The controller writes in
whatever version is served. Its ClusterRole owns the classes, so that they go with the release.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api import kube as kube_api
from api import names
from api.claims import Object
from api.errors import NotFoundError
from api.kube import KubeClient, Resource, Selection

log = logging.getLogger(__name__)

_CLUSTER_ROLES = Resource("rbac.authorization.k8s.io", "v1", "clusterroles", namespaced=False)
_MADE_BY = "app.kubernetes.io/managed-by"
"""Its value is the driver's name."""


@dataclass(frozen=True)
class ClassSettings:
    """Which DeviceClasses there should be."""

    vendors: tuple[str, ...] | None = None
    """One for all vendors, and one for each of these; None: no class at all."""
    owner: str = ""
    """Name of the ClusterRole with which they go; empty: they stay."""

    def wanted(self, driver: str) -> dict[str, str]:
        """Return the CEL expression of each class, by name.

        Short ones that fail early: the scheduler evaluates them for each device of each candidate node.
        """
        if self.vendors is None:
            return {}
        ours = f'device.driver == "{driver}"'
        vendor = f'{ours} && device.attributes["{driver}"].{names.ATTRIBUTE_VENDOR} == '
        return {names.DEVICE_CLASS_ANY: ours} | {names.device_class(one): f'{vendor}"{one}"' for one in self.vendors}


class ClassKeeper:
    """Brings one DeviceClass after the other in order. One thread at a time may work on it."""

    def __init__(self, kube: KubeClient, driver: str, version: str, settings: ClassSettings) -> None:
        """Write in the version `version` of resource.k8s.io."""
        self._kube = kube
        self._driver = driver
        self._resource = kube_api.device_classes(version)
        self._wanted = settings.wanted(driver)
        self._owner = settings.owner

    def sync_all(self) -> None:
        """Make those that are wanted, and remove those that a controller with other settings made.

        Raises:
            KubeError: the API server refused or did not answer; try again later.
        """
        for obj in self._kube.list(self._resource, Selection(labels=f"{_MADE_BY}={self._driver}"))["items"]:
            if obj["metadata"]["name"] not in self._wanted:
                self._kube.delete(self._resource, obj)
                log.info("DeviceClass deleted", extra={"device_class": obj["metadata"]["name"]})
        for name in self._wanted:
            self.sync(name)

    def sync(self, name: str) -> None:
        """Make a class, or what somebody changed of it, as it should be. One that somebody else made stays as it is.

        Raises:
            KubeError: as above; also while the ClusterRole that should own it is not there.
        """
        if name not in self._wanted:
            return
        try:
            stored = self._kube.get(self._resource, name)
        except NotFoundError:
            self._kube.create(self._resource, self._render(name, {}))
            log.info("DeviceClass created", extra={"device_class": name})
            return
        if (stored["metadata"].get("labels") or {}).get(_MADE_BY) != self._driver:
            log.warning("DeviceClass left as it is: another made it", extra={"device_class": name})
            return
        wanted = self._render(name, stored)
        if wanted != stored:
            self._kube.replace(self._resource, wanted)
            log.info("DeviceClass mended", extra={"device_class": name})

    def _render(self, name: str, stored: Mapping[str, Any]) -> Object:
        """Return a class with all that is ours of it; what others added (an extended resource, say) stays."""
        metadata = dict(stored.get("metadata") or {"name": name})
        metadata["labels"] = {**(metadata.get("labels") or {}), _MADE_BY: self._driver}
        if self._owner:
            role = self._kube.get(_CLUSTER_ROLES, self._owner)
            reference = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "name": self._owner}
            metadata["ownerReferences"] = [{**reference, "uid": role["metadata"]["uid"]}]
        return {
            **stored,
            "apiVersion": self._resource.api_version,
            "kind": "DeviceClass",
            "metadata": metadata,
            "spec": {**(stored.get("spec") or {}), "selectors": [{"cel": {"expression": self._wanted[name]}}]},
        }
