"""The edge to a real API server: requests, watches and errors over HTTPS.

Made by `dra_driver` and by tests; everybody else takes a `KubeClient`. Where the server is, and how to get there, is
read by `kubeconfigs`.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlencode

import urllib3
from kubernetes.config.config_exception import ConfigException
from typing_extensions import override

from api import kubeconfigs
from api.deadlines import left_s
from api.endings import Ending
from api.errors import ConfigError, ConflictError, GoneError, KubeError, NotFoundError
from api.httpreading import Answer
from api.jsonreading import read_json
from api.keptconnections import KeptConnections
from api.kube import JSON, MERGE_PATCH, KubeClient, Resource, Selection, Wanted, WatchEvent

_Query = Sequence[tuple[str, str]]

_CONNECT_TIMEOUT_S = 5.0
_TIMEOUT_S = 15.0
"""For the answer to one request."""
_LONGEST_WAIT_S = 60.0
"""So long the API server can put us off at most."""
_UNAUTHORIZED = 401
_EVERYTHING = Selection()
# A server that says nothing would say nothing to a second request either, each time for as long.
_RETRIES: Final = urllib3.Retry(
    connect=False, read=False, status=0, other=0, redirect=3, respect_retry_after_header=False
)
_REPEATABLE: Final = frozenset({"GET", "PUT", "DELETE"})
"""What has the same outcome when it arrives twice: replaced and deleted objects carry their resourceVersion."""


class HTTPKubeClient(KubeClient):
    """A KubeClient over HTTPS. Safe to use from several threads."""

    def __init__(self, kubeconfig: str | None = None) -> None:
        """Read a kubeconfig; without one, the service account of the pod, else ~/.kube/config.

        Raises:
            ConfigError: there is no usable configuration.
        """
        self._kubeconfig = kubeconfig
        self._configuration = configuration = kubeconfigs.load(kubeconfig)
        self._is_refused = False
        """Whether the server did not take our credentials lately."""
        self._pool = kubeconfigs.connection_pool(configuration)
        direct = KeptConnections.can_serve(configuration)
        self._connections = KeptConnections(configuration, _TIMEOUT_S) if direct else None

    @override
    def get(self, resource: Resource, name: str, namespace: str | None = None) -> JSON:
        return self._get(resource.path(namespace, name))

    @override
    def get_all(self, wanted: Sequence[Wanted]) -> Sequence[JSON | KubeError]:
        if self._connections is None:
            return super().get_all(wanted)
        paths = [one.path for one in wanted]
        answers = self._connections.get_all(paths, self._headers("application/json"))
        for answer in answers:
            self._note(None if isinstance(answer, KubeError) else answer.status)
        return [_object_or_error(path, answer) for path, answer in zip(paths, answers, strict=True)]

    @override
    def list(self, resource: Resource, selection: Selection = _EVERYTHING) -> JSON:
        return self._request("GET", resource.path(selection.namespace), query=_query(selection))

    @override
    def watch(
        self,
        resource: Resource,
        resource_version: str,
        selection: Selection = _EVERYTHING,
        timeout_s: int = 300,
        ending: Ending | None = None,
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
            with (ending or Ending()).interrupted_by(lambda: _hang_up(response)):
                for line in _lines(response, path):
                    event = read_json(line)
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
            found = self._get(f"/apis/{group}")
        except NotFoundError:
            return ()
        return tuple(version["version"] for version in found["versions"])

    @override
    def served_kinds(self, group: str, version: str) -> frozenset[str]:
        try:
            found = self._get(f"/apis/{group}/{version}")
        except NotFoundError:
            return frozenset()
        return frozenset(kind["name"] for kind in found["resources"])

    @override
    def server_minor(self) -> int:
        found = self._get("/version")
        # Providers of clusters write "34+".
        digits = re.match(r"\d+", str(found.get("minor", "")))
        if digits is None:
            raise KubeError(f"GET /version: found minor {found.get('minor')!r}, expected a number")
        return int(digits[0])

    def _get(self, path: str) -> JSON:
        if self._connections is None:
            return self._request("GET", path)
        answer = self._connections.get(path, self._headers("application/json"))
        self._note(answer.status)
        return _object(path, answer)

    def _request(self, method: str, path: str, **options: Any) -> JSON:
        response = self._send(method, path, **options)
        return _answer(response.data, f"{method} {path}")

    def _send(
        self, method: str, path: str, *, query: _Query = (), body: Mapping[str, Any] | None = None, **options: Any
    ) -> urllib3.BaseHTTPResponse:
        url = self._configuration.host + path + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers(options.pop("content_type", "application/json"))
        timeout = urllib3.Timeout(connect=left_s(_CONNECT_TIMEOUT_S), read=left_s(options.pop("timeout_s", _TIMEOUT_S)))
        options |= {"body": data, "headers": headers, "timeout": timeout, "retries": _RETRIES}
        try:
            response = self._ask(method, url, options)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise KubeError(f"{method} {path}: no answer from the API server: {error}") from error
        self._note(response.status)
        if response.status >= 400:
            retry_after = response.headers.get("Retry-After")
            raise _refusal(f"{method} {path}", Answer(response.status, response.data, False, retry_after))
        return response

    def _ask(self, method: str, url: str, options: Mapping[str, Any]) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request(method, url, **options)
        except urllib3.exceptions.ProtocolError:
            # The server closed a connection that was idle, just when it was taken for this request.
            if method not in _REPEATABLE:
                raise
        return self._pool.request(method, url, **options)

    def _note(self, status: int | None) -> None:
        self._is_refused = self._is_refused or status == _UNAUTHORIZED

    def _headers(self, content_type: str) -> dict[str, str]:
        # Asked anew each time: the kubernetes package refreshes tokens that expire (service accounts, exec plug-ins) by
        # the wall clock, which may be set back, and no `tokenFile`. So all is read anew once the server refused.
        try:
            if self._is_refused:
                self._configuration = kubeconfigs.load(self._kubeconfig)
                self._is_refused = False
            settings: Mapping[str, Any] = self._configuration.auth_settings()
        except (
            ConfigError,
            ConfigException,
            OSError,
        ) as error:  # in the middle of their replacement, or after an outage
            raise KubeError(f"credentials for the API server cannot be read: {error}", _UNAUTHORIZED) from error
        authorization = {setting["key"]: setting["value"] for setting in settings.values()}
        return {"Accept": "application/json", "Content-Type": content_type, **authorization}


def _hang_up(response: urllib3.BaseHTTPResponse) -> None:
    """Wake up who reads an answer; from any thread."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # it is at its end already
        response.shutdown()


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


def _object(path: str, answer: Answer) -> JSON:
    if answer.status >= 400:
        raise _refusal(f"GET {path}", answer)
    return _answer(answer.body, f"GET {path}")


def _object_or_error(path: str, answer: Answer | KubeError) -> JSON | KubeError:
    try:
        return answer if isinstance(answer, KubeError) else _object(path, answer)
    except KubeError as error:
        return error


def _answer(body: bytes, request: str) -> JSON:
    try:
        answer: JSON = read_json(body)
    except ValueError as error:
        # A proxy on the way that has something to say of its own.
        start = body[:200].decode(errors="replace")
        raise KubeError(f"{request}: found {start!r}, expected JSON from the API server") from error
    return answer


def _refusal(request: str, answer: Answer) -> KubeError:
    refusal = _error(answer.status, f"{request}: {_message(answer.body, answer.status)}", answer.body)
    refusal.wait_s = _wait_s(answer.retry_after)
    return refusal


def _wait_s(retry_after: str | None) -> float:
    """Return the seconds of a Retry-After; the API server writes no dates there."""
    return min(float(retry_after), _LONGEST_WAIT_S) if retry_after and re.fullmatch(r"[0-9]{1,9}", retry_after) else 0.0


def _message(body: bytes, status: int) -> str:
    try:
        return str(read_json(body)["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {status}: {body[:200].decode(errors='replace')}"


def _missing(body: bytes) -> tuple[str, str] | None:
    """Return what a 404 names as missing. Source: metav1.StatusDetails, whose `kind` is the plural of the resource."""
    try:
        details = read_json(body)["details"]
        return str(details["kind"]), str(details["name"])
    except (ValueError, KeyError, TypeError):
        return None


def _error(status: int | None, message: str, body: bytes = b"") -> KubeError:
    if status == 404:
        return NotFoundError(message, status, _missing(body))
    kinds: dict[int | None, type[KubeError]] = {409: ConflictError, 410: GoneError}
    return kinds.get(status, KubeError)(message, status)
