"""The edge to the Kubernetes API: objects are plain JSON, errors are ours, versions are discovered.

`KubeClient` is the interface that the controller and the node agent use; `api.httpkube.HTTPKubeClient` speaks to an API
server; `api.kubefake.FakeKube` keeps objects in memory for tests.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from api import names
from api.endings import Ending
from api.errors import ConfigError, KubeError

JSON = dict[str, Any]

MERGE_PATCH: Final = "application/merge-patch+json"


@dataclass(frozen=True)
class Resource:
    """A kind of objects, as it stands in URLs."""

    group: str
    version: str
    plural: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        """The `apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the URL path of the collection, or of one object."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return "/".join(part for part in (f"{root}{scope}/{self.plural}", name, subresource) if part)


NODES = Resource("", "v1", "nodes", namespaced=False)
PODS = Resource("", "v1", "pods", namespaced=True)
LEASES = Resource("coordination.k8s.io", "v1", "leases", namespaced=True)
RUNTIME_CLASSES = Resource("node.k8s.io", "v1", "runtimeclasses", namespaced=False)
EVENTS = Resource("events.k8s.io", "v1", "events", namespaced=True)
NODE_INVENTORIES = Resource(names.API_GROUP, names.API_VERSION, names.NODE_INVENTORY_PLURAL, namespaced=False)


def claims(version: str) -> Resource:
    """ResourceClaims of a version of resource.k8s.io."""
    return Resource(names.RESOURCE_GROUP, version, "resourceclaims", namespaced=True)


def slices(version: str) -> Resource:
    """ResourceSlices of a version of resource.k8s.io."""
    return Resource(names.RESOURCE_GROUP, version, "resourceslices", namespaced=False)


def device_classes(version: str) -> Resource:
    """DeviceClasses of a version of resource.k8s.io."""
    return Resource(names.RESOURCE_GROUP, version, "deviceclasses", namespaced=False)


def taint_rules(version: str) -> Resource:
    """DeviceTaintRules of a version of resource.k8s.io."""
    return Resource(names.RESOURCE_GROUP, version, "devicetaintrules", namespaced=False)


@dataclass(frozen=True)
class Selection:
    """Which objects of a kind: all, or those of a namespace, and those that match selectors."""

    namespace: str | None = None
    fields: str = ""
    labels: str = ""


_EVERYTHING = Selection()


@dataclass(frozen=True)
class Wanted:
    """An object to be got, or all of a kind."""

    resource: Resource
    name: str | None = None
    """None: all of the kind, as a list object."""
    namespace: str | None = None

    @property
    def path(self) -> str:
        """The URL path."""
        return self.resource.path(self.namespace, self.name)


@dataclass(frozen=True)
class WatchEvent:
    """A change that a watch reports."""

    type: str
    """ADDED, MODIFIED, DELETED or BOOKMARK."""
    object: JSON


class KubeClient(ABC):
    """What the driver needs of the Kubernetes API. All methods raise KubeError or one of its kinds."""

    @abstractmethod
    def get(self, resource: Resource, name: str, namespace: str | None = None) -> JSON:
        """Return an object; NotFoundError if there is none."""

    def get_all(self, wanted: Sequence[Wanted]) -> Sequence[JSON | KubeError]:
        """Return what is wanted, in that order; instead of what cannot be got, its error."""
        return [self._get_or_error(one) for one in wanted]

    def _get_or_error(self, wanted: Wanted) -> JSON | KubeError:
        try:
            if wanted.name is None:
                return self.list(wanted.resource, Selection(wanted.namespace))
            return self.get(wanted.resource, wanted.name, wanted.namespace)
        except KubeError as error:
            return error

    @abstractmethod
    def list(self, resource: Resource, selection: Selection = _EVERYTHING) -> JSON:
        """Return a list object: `items`, and `metadata.resourceVersion` to watch from."""

    @abstractmethod
    def watch(
        self,
        resource: Resource,
        resource_version: str,
        selection: Selection = _EVERYTHING,
        timeout_s: int = 300,
        ending: Ending | None = None,
    ) -> Iterator[WatchEvent]:
        """Yield changes after a resourceVersion until `timeout_s` has passed; GoneError if that is too long ago.

        It ends at once when `ending` is set, with a KubeError or without.
        """

    @abstractmethod
    def create(self, resource: Resource, obj: Mapping[str, Any]) -> JSON:
        """Create an object (in its metadata.namespace) and return it as stored; ConflictError if it exists."""

    @abstractmethod
    def replace(self, resource: Resource, obj: Mapping[str, Any], subresource: str | None = None) -> JSON:
        """Replace an object; ConflictError if its metadata.resourceVersion is no longer the stored one."""

    @abstractmethod
    def patch(
        self, resource: Resource, target: Mapping[str, Any], patch: Mapping[str, Any], subresource: str | None = None
    ) -> JSON:
        """Apply a JSON merge patch to the object with target's metadata (name, namespace) and return the result."""

    @abstractmethod
    def delete(self, resource: Resource, obj: Mapping[str, Any], grace_s: int | None = None) -> None:
        """Delete an object; NotFoundError if it is gone. The uid and resourceVersion it carries are preconditions.

        `grace_s` is for pods: how long their containers have for their end, None for what the pod says. With 0 the
        object goes at once: that is for whoever runs the pod, when its containers have ended.
        """

    @abstractmethod
    def served_versions(self, group: str) -> tuple[str, ...]:
        """Return the versions of an API group that the server serves; empty if it does not know the group."""

    @abstractmethod
    def served_kinds(self, group: str, version: str) -> frozenset[str]:
        """Return the plurals that a version of an API group serves; empty if the server does not know the version."""

    @abstractmethod
    def server_minor(self) -> int:
        """Return the minor version of the API server: 34 for Kubernetes 1.34."""

    def resource_api_version(self) -> str:
        """Return the best version of resource.k8s.io that server and driver share.

        Raises:
            ConfigError: the server serves none: Dynamic Resource Allocation is off.
        """
        served = self.served_versions(names.RESOURCE_GROUP)
        for version in names.RESOURCE_VERSIONS:
            if version in served:
                return version
        expected = ", ".join(names.RESOURCE_VERSIONS)
        raise ConfigError(
            f"API group {names.RESOURCE_GROUP}: the API server serves {', '.join(served) or 'none'}, expected one of "
            f"{expected}; turn on Dynamic Resource Allocation (Kubernetes 1.32 or later)"
        )
