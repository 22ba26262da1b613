"""One release for each driver name: two that publish under one name would undo each other's slices. Used by `terms`.

Whose a name is says a ResourceSlice of that name, of a node that cannot exist: cluster-wide, so that two releases in
two namespaces meet there, and made by a create, of which the API server lets one through. It goes with the ClusterRole
of its release, by garbage collection. A Lease would not do: two releases would have to share a namespace for it.
"""

from typing import Any

from api import kube as kube_api
from api.claims import Object
from api.errors import ConfigError
from api.kube import KubeClient, Resource, Selection
from controller.offers.probing import PROBE_NODE

CLUSTER_ROLES = Resource("rbac.authorization.k8s.io", "v1", "clusterroles", namespaced=False)


def owner_reference(kube: KubeClient, role: str) -> dict[str, Any]:
    """Return what makes a ClusterRole the owner of an object.

    Raises:
        KubeError: there is no such ClusterRole, or the API server did not answer.
    """
    found = kube.get(CLUSTER_ROLES, role)
    reference = {"apiVersion": f"{CLUSTER_ROLES.group}/{CLUSTER_ROLES.version}", "kind": "ClusterRole", "name": role}
    return {**reference, "uid": found["metadata"]["uid"]}


def owning_role(obj: Object) -> str:
    """Return the ClusterRole that owns an object; empty: none does."""
    owners = obj["metadata"].get("ownerReferences") or []
    return next((str(owner["name"]) for owner in owners if owner["kind"] == "ClusterRole"), "")


class DriverName:
    """The name of the driver, for the release of one ClusterRole."""

    def __init__(self, kube: KubeClient, driver: str, owner: str) -> None:
        """Take the driver's name and its release's ClusterRole; without one there is nothing to tell releases by."""
        self._kube = kube
        self._driver = driver
        self._owner = owner
        self._name = f"{driver}.name"

    def hold(self, version: str) -> None:
        """Make the name this release's, if it is nobody's.

        Args:
            version: of resource.k8s.io.

        Raises:
            ConfigError: it is another release's.
            KubeError: that cannot be told, or another one was faster by a moment; try again later.
        """
        if not self._owner:
            return
        slices = kube_api.slices(version)
        wanted = self._render(slices)
        found = self._kube.list(slices, Selection(fields=f"metadata.name={self._name}"))["items"]
        if not found:
            self._kube.create(slices, wanted)
            return
        (stored,) = found
        other = owning_role(stored)
        if other and other != self._owner:
            raise ConfigError(
                f"driver {self._driver}: found ResourceSlice {self._name} of another release (ClusterRole {other}), "
                "expected none: a cluster has one release with a driver's name; remove one, or give one another "
                "driverName. If that release had the name once and has another now: kubectl delete resourceslice "
                f"{self._name}"
            )
        owners = wanted["metadata"]["ownerReferences"]
        if stored["metadata"].get("ownerReferences") != owners:
            self._kube.replace(slices, {**stored, "metadata": {**stored["metadata"], "ownerReferences": owners}})

    def _render(self, slices: Resource) -> dict[str, Any]:
        return {
            "apiVersion": slices.api_version,
            "kind": "ResourceSlice",
            "metadata": {"name": self._name, "ownerReferences": [owner_reference(self._kube, self._owner)]},
            "spec": {
                "driver": self._driver,
                "nodeName": PROBE_NODE,
                "pool": {"name": PROBE_NODE, "generation": 1, "resourceSliceCount": 1},
                "devices": [],
            },
        }
