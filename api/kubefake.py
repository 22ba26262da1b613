"""FakeKube: a KubeClient that keeps objects in memory, for tests that need no API server.

It follows the API server in what the driver relies on: uids, resourceVersions, conflicts, preconditions, merge
patches, status as a subresource, field selectors on metadata and spec, watches that resume. It can be told to fail,
to prove what happens then.
"""

import copy
import threading
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from typing_extensions import override

from api import names
from api.endings import Ending
from api.errors import ConflictError, GoneError, KubeError, NotFoundError
from api.kube import JSON, KubeClient, Resource, Selection, WatchEvent

_Key = tuple[Resource, str, str]
_Objects = list[JSON]
_Events = list[tuple[int, WatchEvent]]
_EVERYTHING = Selection()


class FakeKube(KubeClient):
    """An API server's storage in memory. Safe to use from several threads."""

    def __init__(self, versions: Mapping[str, tuple[str, ...]] | None = None) -> None:
        """Start empty; `versions` says which versions of API groups are served (default: resource.k8s.io/v1)."""
        self._versions = dict(versions if versions is not None else {names.RESOURCE_GROUP: ("v1",)})
        self._kinds: set[Resource] = set()
        self._objects: dict[_Key, JSON] = {}
        self._events: list[tuple[int, Resource, WatchEvent]] = []
        self._changed = threading.Condition()
        self._version = 0
        self._forgotten = 0
        self._failures: deque[tuple[str, KubeError]] = deque()
        self._down = False
        self.minor = 36
        self.requests: list[tuple[str, str]] = []
        """Every request so far: verb and path."""

    def fail_next(self, *errors: KubeError, path: str = "") -> None:
        """Let the next requests fail, one error each; those whose path has a part, where other threads ask too."""
        with self._changed:
            self._failures.extend((path, error) for error in errors)

    def set_down(self, down: bool) -> None:
        """Stop or resume answering; running watches break."""
        with self._changed:
            self._down = down
            self._changed.notify_all()

    def set_versions(self, versions: Mapping[str, tuple[str, ...]]) -> None:
        """Serve other versions from now on, as after an upgrade; objects stay in the version that they came in."""
        with self._changed:
            self._versions = dict(versions)

    def set_kinds(self, *kinds: Resource) -> None:
        """Name the kinds that not every API server serves, and this one does from now on."""
        with self._changed:
            self._kinds = set(kinds)

    def objects(self, resource: Resource) -> _Objects:
        """Return copies of all objects of a kind, by namespace and name."""
        with self._changed:
            keys = sorted((key for key in self._objects if key[0] == resource), key=lambda key: key[1:])
            return [copy.deepcopy(self._objects[key]) for key in keys]

    @override
    def get(self, resource: Resource, name: str, namespace: str | None = None) -> JSON:
        with self._changed:
            self._answer("get", resource.path(namespace, name))
            return copy.deepcopy(self._stored(resource, namespace or "", name))

    @override
    def list(self, resource: Resource, selection: Selection = _EVERYTHING) -> JSON:
        with self._changed:
            self._answer("list", resource.path(selection.namespace))
            items = [obj for obj in self.objects(resource) if _matches(obj, selection)]
            return {"items": items, "metadata": {"resourceVersion": str(self._version)}}

    @override
    def watch(
        self,
        resource: Resource,
        resource_version: str,
        selection: Selection = _EVERYTHING,
        timeout_s: int = 300,
        ending: Ending | None = None,
    ) -> Iterator[WatchEvent]:
        position = int(resource_version)
        ending = ending or Ending()
        with self._changed:
            self._answer("watch", resource.path(selection.namespace))
        with ending.interrupted_by(self._wake_up):
            while not ending.is_set():
                with self._changed:
                    found = self._events_after(position, resource)
                    if not found and not ending.is_set() and not self._changed.wait(timeout_s):
                        return
                    if self._down:
                        raise KubeError(f"watch {resource.path()}: the connection broke")
                    found = found or self._events_after(position, resource)
                for version, event in found:
                    position = version
                    if _matches(event.object, selection):
                        yield WatchEvent(event.type, copy.deepcopy(event.object))

    def _wake_up(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def forget_events(self) -> None:
        """Drop the history: watches that start in the past now get 410 Gone."""
        with self._changed:
            self._forgotten = self._version
            self._events.clear()

    @override
    def create(self, resource: Resource, obj: Mapping[str, Any]) -> JSON:
        with self._changed:
            key = _key(resource, obj)
            self._answer("create", resource.path(key[1] or None))
            if key in self._objects:
                raise ConflictError(f"create {resource.path(key[1] or None, key[2])}: already exists", 409)
            stored = copy.deepcopy(dict(obj))
            stored["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": "2026-01-01T00:00:00Z"}
            return self._store(key, stored, "ADDED")

    @override
    def replace(self, resource: Resource, obj: Mapping[str, Any], subresource: str | None = None) -> JSON:
        with self._changed:
            key = _key(resource, obj)
            self._answer("replace", resource.path(key[1] or None, key[2], subresource))
            stored = self._stored(*key)
            self._check(key, stored, obj["metadata"])
            return self._store(key, _merged(stored, copy.deepcopy(dict(obj)), subresource), "MODIFIED")

    @override
    def patch(
        self, resource: Resource, target: Mapping[str, Any], patch: Mapping[str, Any], subresource: str | None = None
    ) -> JSON:
        with self._changed:
            key = _key(resource, target)
            self._answer("patch", resource.path(key[1] or None, key[2], subresource))
            stored = self._stored(*key)
            self._check(key, stored, patch.get("metadata", {}))
            patched = _merge_patch(stored, patch)
            return self._store(key, _merged(stored, patched, subresource), "MODIFIED")

    @override
    def delete(self, resource: Resource, obj: Mapping[str, Any], grace_s: int | None = None) -> None:
        with self._changed:
            key = _key(resource, obj)
            self._answer("delete", resource.path(key[1] or None, key[2]))
            stored = self._stored(*key)
            self._check(key, stored, obj["metadata"])
            del self._objects[key]
            self._emit(resource, "DELETED", stored)

    @override
    def served_versions(self, group: str) -> tuple[str, ...]:
        with self._changed:
            self._answer("get", f"/apis/{group}")
            return self._versions.get(group, ())

    @override
    def served_kinds(self, group: str, version: str) -> frozenset[str]:
        with self._changed:
            self._answer("get", f"/apis/{group}/{version}")
            return frozenset(kind.plural for kind in self._kinds if (kind.group, kind.version) == (group, version))

    @override
    def server_minor(self) -> int:
        with self._changed:
            self._answer("get", "/version")
            return self.minor

    def _answer(self, verb: str, path: str) -> None:
        self.requests.append((verb, path))
        if self._down:
            raise KubeError(f"{verb} {path}: no answer from the API server")
        if self._failures and self._failures[0][0] in path:
            raise self._failures.popleft()[1]

    def _stored(self, resource: Resource, namespace: str, name: str) -> JSON:
        path = resource.path(namespace or None, name)
        if resource.version not in self._versions.get(resource.group, (resource.version,)):
            raise NotFoundError(f"{path}: the server could not find the requested resource")
        try:
            return self._objects[resource, namespace, name]
        except KeyError:
            raise NotFoundError(f"{path}: not found", missing=(resource.plural, name)) from None

    def _check(self, key: _Key, stored: JSON, preconditions: Mapping[str, Any]) -> None:
        for name in ("uid", "resourceVersion"):
            wanted = preconditions.get(name)
            if wanted and wanted != stored["metadata"][name]:
                raise ConflictError(f"{key[0].path(key[1] or None, key[2])}: {name} is not {wanted}", 409)

    def _store(self, key: _Key, obj: JSON, event: str) -> JSON:
        self._objects[key] = obj
        self._emit(key[0], event, obj)
        return copy.deepcopy(obj)

    def _emit(self, resource: Resource, event: str, obj: JSON) -> None:
        self._version += 1
        obj["metadata"]["resourceVersion"] = str(self._version)
        self._events.append((self._version, resource, WatchEvent(event, copy.deepcopy(obj))))
        self._changed.notify_all()

    def _events_after(self, position: int, resource: Resource) -> _Events:
        if position < self._forgotten:
            raise GoneError(f"watch {resource.path()}: too old resource version: {position}", 410)
        return [(version, event) for version, kind, event in self._events if version > position and kind == resource]


def _key(resource: Resource, obj: Mapping[str, Any]) -> _Key:
    metadata = obj["metadata"]
    return (resource, metadata.get("namespace", "") if resource.namespaced else "", metadata["name"])


def _merged(stored: JSON, given: JSON, subresource: str | None) -> JSON:
    """Take the status from one and the rest from the other, as the subresource says."""
    outer, inner = (stored, given) if subresource == "status" else (given, stored)
    result = copy.deepcopy({key: value for key, value in outer.items() if key != "status"})
    if "status" in inner:
        result["status"] = copy.deepcopy(inner["status"])
    result["metadata"] = {**copy.deepcopy(stored["metadata"]), **result["metadata"]}
    return result


def _merge_patch(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7396)."""
    if not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    result = copy.deepcopy(dict(target)) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merge_patch(result.get(key), value)
    return result


def _matches(obj: JSON, selection: Selection) -> bool:
    if selection.namespace and obj["metadata"].get("namespace") != selection.namespace:
        return False
    labels = obj["metadata"].get("labels", {})
    if selection.labels and any(labels.get(key) != value for key, value in _pairs(selection.labels)):
        return False
    return all(str(_field(obj, path)) == value for path, value in _pairs(selection.fields))


def _pairs(selector: str) -> list[tuple[str, str]]:
    parts = (part.partition("=") for part in selector.replace("==", "=").split(",") if part)
    return [(key, value) for key, _, value in parts]


def _field(obj: JSON, path: str) -> object:
    found: Any = obj
    for part in path.split("."):
        found = found.get(part, "") if isinstance(found, Mapping) else ""
    return found
