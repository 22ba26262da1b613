"""Keeps the driver's DeviceClasses: one for all vendors and one for each. Used by `terms`.

They are the controller's and not the chart's: helm records what it installed in the version of the API in which it was
written, and can neither upgrade nor remove it once the cluster no longer serves that version. The controller writes in
whatever version is served. Its ClusterRole owns the classes, so that they go with the release.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from api import kube as kube_api
from api import names
from api.claims import Object
from api.errors import NotFoundError
from api.kube import KubeClient, Selection
from controller.drivernames import owner_reference, owning_role

log = logging.getLogger(__name__)

_MADE_BY = "app.kubernetes.io/managed-by"
"""Its value is the driver's name."""
_MEND_AGAIN_S = 30.0
"""Least time between two writes of a class that somebody else changes back: each makes the scheduler look again."""


@dataclass(frozen=True)
class ClassSettings:
    """Which DeviceClasses there should be."""

    vendors: tuple[str, ...] | None = None
    """One for all vendors, and one for each of these; None: no class at all."""
    owner: str = ""
    """Name of the release's ClusterRole, with which they go, and the driver's name too; empty: they stay."""

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

    def __init__(
        self,
        kube: KubeClient,
        driver: str,
        version: str,
        settings: ClassSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write in the version `version` of resource.k8s.io."""
        self._kube = kube
        self._clock = clock
        self._mended_s: dict[str, float] = {}
        """By class, when it was mended last."""
        self._driver = driver
        self._resource = kube_api.device_classes(version)
        self._wanted = settings.wanted(driver)
        self._owner = settings.owner

    def sync_all(self) -> None:
        """Make those that are wanted, and remove those that a controller with other settings made.

        Raises:
            KubeError: the API server refused or did not answer; try again later.
        """
        for obj in self._made():
            if obj["metadata"]["name"] not in self._wanted and not self._other_owner(obj):
                self._kube.delete(self._resource, obj)
                log.info("DeviceClass deleted", extra={"device_class": obj["metadata"]["name"]})
        for name in self._wanted:
            self.sync(name)

    def sync(self, name: str) -> float | None:
        """Make a class, or what somebody changed of it, as it should be. One that somebody else made stays as it is.

        Returns:
            After how many seconds to come again; None: when it changes.

        Raises:
            KubeError: as above; also while the ClusterRole that should own it is not there.
        """
        if name not in self._wanted:
            return None
        try:
            return self._mend(name, self._kube.get(self._resource, name))
        except NotFoundError:
            self._kube.create(self._resource, self._render(name, {}))
            log.info("DeviceClass created", extra={"device_class": name})
            return None

    def _made(self) -> list[Object]:
        return list(self._kube.list(self._resource, Selection(labels=f"{_MADE_BY}={self._driver}"))["items"])

    def _mend(self, name: str, stored: Mapping[str, Any]) -> float | None:
        if (stored["metadata"].get("labels") or {}).get(_MADE_BY) != self._driver:
            log.warning("DeviceClass left as it is: another made it", extra={"device_class": name})
            return None
        wanted = self._render(name, stored)
        if wanted == stored or self._other_owner(stored):
            return None
        wait_s = self._mended_s.get(name, float("-inf")) + _MEND_AGAIN_S - self._clock()
        if wait_s > 0:
            return wait_s
        self._kube.replace(self._resource, wanted)
        self._mended_s[name] = self._clock()
        log.info("DeviceClass mended", extra={"device_class": name})
        return None

    def _other_owner(self, stored: Object) -> str:
        """Return the ClusterRole of another release with which a class goes; empty: there is none.

        When that release goes, so does the class, and another one is made.
        """
        role = owning_role(stored)
        return role if self._owner and role != self._owner else ""

    def _render(self, name: str, stored: Mapping[str, Any]) -> Object:
        """Return a class with all that is ours of it; what others added (an extended resource, say) stays."""
        metadata = dict(stored.get("metadata") or {"name": name})
        metadata["labels"] = {**(metadata.get("labels") or {}), _MADE_BY: self._driver}
        if self._owner:
            metadata["ownerReferences"] = [owner_reference(self._kube, self._owner)]
        return {
            **stored,
            "apiVersion": self._resource.api_version,
            "kind": "DeviceClass",
            "metadata": metadata,
            "spec": {**(stored.get("spec") or {}), "selectors": [{"cel": {"expression": self._wanted[name]}}]},
        }
