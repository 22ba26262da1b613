"""The edge to the Kubernetes API: objects are plain JSON, errors are ours, versions are discovered.

`KubeClient` is the interface that the controller and the node agent use; `HTTPKubeClient` speaks to an API server
through the kubernetes package (kubeconfig, in-cluster token, TLS, connection pool); `api.kubefake.FakeKube` keeps
objects in memory for tests.
"""

import json
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import urllib3
from kubernetes import client, config
from kubernetes.config.config_exception import ConfigException
from typing_extensions import override
from urllib3.connection import HTTPConnection

from api import names
from api.errors import ConfigError, ConflictError, GoneError, KubeError, NotFoundError
from api.keptconnections import KeptConnections

JSON = dict[str, Any]
_Query = Sequence[tuple[str, str]]

MERGE_PATCH: Final = "application/merge-patch+json"

_CONNECTIONS = 128
"""Kept alive: the node agent answers many kubelet calls at once, each with a GET."""
_TIMEOUT_S = 15.0
"""For one request; three of them fit into the kubelet's 45 s for a call."""
# A watch may be quiet for minutes: the network is asked whether the server is there, as Go's clients do.
_KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


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


@dataclass(frozen=True)
class Selection:
    """Which objects of a kind: all, or those of a namespace, and those that match selectors."""

    namespace: str | None = None
    fields: str = ""
    labels: str = ""


_EVERYTHING = Selection()


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

    @abstractmethod
    def list(self, resource: Resource, selection: Selection = _EVERYTHING) -> JSON:
        """Return a list object: `items`, and `metadata.resourceVersion` to watch from."""

    @abstractmethod
    def watch(
        self, resource: Resource, resource_version: str, selection: Selection = _EVERYTHING, timeout_s: int = 300
    ) -> Iterator[WatchEvent]:
        """Yield changes after a resourceVersion until `timeout_s` has passed; GoneError if that is too long ago."""

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


class HTTPKubeClient(KubeClient):
    """A KubeClient over HTTPS. Safe to use from several threads."""

    def __init__(self, kubeconfig: str | None = None) -> None:
        """Read a kubeconfig; without one, the service account of the pod, else ~/.kube/config.

        Raises:
            ConfigError: there is no usable configuration.
        """
        configuration = client.Configuration()
        try:
            if kubeconfig is not None:
                config.load_kube_config(kubeconfig, client_configuration=configuration)  # type: ignore[no-untyped-call]
            else:
                _load_default(configuration)
        except (ConfigException, OSError) as error:
            raise ConfigError(
                f"Kubernetes configuration {kubeconfig or '(in-cluster, then ~/.kube/config)'}: {error}"
            ) from error
        self._configuration = configuration
        self._pool = urllib3.PoolManager(
            maxsize=_CONNECTIONS,
            cert_reqs="CERT_REQUIRED" if configuration.verify_ssl else "CERT_NONE",
            ca_certs=configuration.ssl_ca_cert,
            cert_file=configuration.cert_file,
            key_file=configuration.key_file,
            socket_options=[*HTTPConnection.default_socket_options, *_KEEP_ALIVE],
        )
        direct = KeptConnections.can_serve(configuration)
        self._connections = KeptConnections(configuration, _TIMEOUT_S) if direct else None

    @override
    def get(self, resource: Resource, name: str, namespace: str | None = None) -> JSON:
        path = resource.path(namespace, name)
        if self._connections is None:
            return self._request("GET", path)
        status, body = self._connections.get(path, self._headers("application/json"))
        if status >= 400:
            raise _error(status, f"GET {path}: {_message(body, status)}")
        return _answer(body, f"GET {path}")

    @override
    def list(self, resource: Resource, selection: Selection = _EVERYTHING) -> JSON:
        return self._request("GET", resource.path(selection.namespace), query=_query(selection))

    @override
    def watch(
        self, resource: Resource, resource_version: str, selection: Selection = _EVERYTHING, timeout_s: int = 300
    ) -> Iterator[WatchEvent]:
        query = [
            *_query(selection),
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", resource_version),
            ("timeoutSeconds", str(timeout_s)),
        ]
        path = resource.path(selection.namespace)
        response = self._send("GET", path, query=query, timeout_s=timeout_s + _TIMEOUT_S, preload_content=False)
        try:
            for line in _lines(response, path):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise _error(status.get("code"), f"watch {path}: {status.get('message', status)}")
                yield WatchEvent(event["type"], event["object"])
        finally:
            # Closed and not returned to the pool: the stream may not be at its end.
            response.close()
            response.release_conn()

    @override
    def create(self, resource: Resource, obj: Mapping[str, Any]) -> JSON:
        return self._request("POST", resource.path(obj["metadata"].get("namespace")), body=obj)

    @override
    def replace(self, resource: Resource, obj: Mapping[str, Any], subresource: str | None = None) -> JSON:
        return self._request("PUT", _path(resource, obj, subresource), body=obj)

    @override
    def patch(
        self, resource: Resource, target: Mapping[str, Any], patch: Mapping[str, Any], subresource: str | None = None
    ) -> JSON:
        return self._request("PATCH", _path(resource, target, subresource), body=patch, content_type=MERGE_PATCH)

    @override
    def delete(self, resource: Resource, obj: Mapping[str, Any], grace_s: int | None = None) -> None:
        metadata = obj["metadata"]
        preconditions = {key: metadata[key] for key in ("uid", "resourceVersion") if metadata.get(key)}
        options: JSON = {"preconditions": preconditions} if preconditions else {}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        self._request("DELETE", _path(resource, obj), body=options or None)

    @override
    def served_versions(self, group: str) -> tuple[str, ...]:
        try:
            found = self._request("GET", f"/apis/{group}")
        except NotFoundError:
            return ()
        return tuple(version["version"] for version in found["versions"])

    def _request(self, method: str, path: str, **options: Any) -> JSON:
        response = self._send(method, path, **options)
        return _answer(response.data, f"{method} {path}")

    def _send(
        self, method: str, path: str, *, query: _Query = (), body: Mapping[str, Any] | None = None, **options: Any
    ) -> urllib3.BaseHTTPResponse:
        url = self._configuration.host + path + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers(options.pop("content_type", "application/json"))
        timeout = urllib3.Timeout(connect=_TIMEOUT_S, read=options.pop("timeout_s", _TIMEOUT_S))
        try:
            response = self._pool.request(method, url, body=data, headers=headers, timeout=timeout, **options)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise KubeError(f"{method} {path}: no answer from the API server: {error}") from error
        if response.status >= 400:
            raise _error(response.status, f"{method} {path}: {_message(response.data, response.status)}")
        return response

    def _headers(self, content_type: str) -> dict[str, str]:
        # Asked anew each time: the kubernetes package refreshes tokens that expire (service accounts, exec plug-ins).
        settings: Mapping[str, Any] = self._configuration.auth_settings()
        authorization = {setting["key"]: setting["value"] for setting in settings.values()}
        return {"Accept": "application/json", "Content-Type": content_type, **authorization}


def _load_default(configuration: client.Configuration) -> None:
    try:
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except ConfigException:
        config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]


def _query(selection: Selection) -> list[tuple[str, str]]:
    selectors = [("fieldSelector", selection.fields), ("labelSelector", selection.labels)]
    return [(key, value) for key, value in selectors if value]


def _path(resource: Resource, obj: Mapping[str, Any], subresource: str | None = None) -> str:
    metadata = obj["metadata"]
    return resource.path(metadata.get("namespace"), metadata["name"], subresource)


def _lines(response: urllib3.BaseHTTPResponse, path: str) -> Iterator[bytes]:
    rest = b""
    try:
        for chunk in response.stream(amt=None, decode_content=True):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line for line in lines if line.strip())
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise KubeError(f"watch {path}: the connection broke: {error}") from error


def _answer(body: bytes, request: str) -> JSON:
    try:
        answer: JSON = json.loads(body)
    except ValueError as error:
        # A proxy on the way that has something to say of its own.
        start = body[:200].decode(errors="replace")
        raise KubeError(f"{request}: found {start!r}, expected JSON from the API server") from error
    return answer


def _message(body: bytes, status: int) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {status}: {body[:200].decode(errors='replace')}"


def _error(status: int | None, message: str) -> KubeError:
    kinds: dict[int | None, type[KubeError]] = {404: NotFoundError, 409: ConflictError, 410: GoneError}
    return kinds.get(status, KubeError)(message, status)
