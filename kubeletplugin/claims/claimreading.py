"""Reads claims when the kubelet asks to prepare them. Called by preparing.

Always a GET, never a cache: between two pods a claim of the same UID can be given another allocation, and a watch
that lags (or hangs in a dead connection) would hand out the old one. One GET on a connection that is kept alive costs
about a millisecond (tests/bench/prepare.py).
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from api import kube, names
from api.claims import ClaimView
from api.errors import ClaimError, KubeError, NotFoundError, VGPUError
from api.kube import JSON, KubeClient, Resource
from api.names import ClaimUID

_log = logging.getLogger(__name__)

_SLOW_S, _SILENCE_S = 5.0, 5.0
"""A request that ends without an answer after so long has found a silent server, not one that is away. Calls that come
in the time after it get its error at once: hundreds of calls that wait in turn would all miss the kubelet's 45 s."""


@dataclass(frozen=True)
class ClaimReference:
    """A claim as the kubelet names it."""

    namespace: str
    name: str
    uid: ClaimUID

    def __str__(self) -> str:
        return f"ResourceClaim {self.namespace}/{self.name}"


class ClaimGoneError(ClaimError):
    """There is no such claim any more: it was deleted, maybe created again under its name."""


@dataclass(frozen=True)
class _Silence:
    """An API server that takes requests and does not answer."""

    until_s: float
    error: KubeError


class ClaimReader:
    """Gets claims from the API server, in the best version that it serves now. Safe to use from several threads."""

    def __init__(self, client: KubeClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._resource: Resource | None = None
        self._silence: _Silence | None = None

    def refresh(self) -> None:
        """Ask anew what the API server serves. Called at each heartbeat, so that no claim has to wait for it.

        It can be upgraded while the agent runs, and an older version of a claim may lack what was consumed.

        Raises:
            KubeError: the API server did not answer.
            ConfigError: it serves no version of resource.k8s.io that we know.
        """
        found = kube.claims(self._client.resource_api_version())
        if self._resource is not None and found != self._resource:
            _log.info("the API server serves another version", extra={"version": found.version})
        self._resource = found

    def read(self, reference: ClaimReference) -> ClaimView:
        """Return a claim as it is now.

        Raises:
            ClaimGoneError: there is no such claim any more.
            ClaimError: it cannot be read as one.
            ConfigError: the API server serves no version of resource.k8s.io that we know.
            KubeError: the API server did not answer, or refused.
        """
        return _view(reference, self._ask(reference))

    def read_all(self, references: Sequence[ClaimReference]) -> list[ClaimView | VGPUError]:
        """Return claims as they are now, in one round of requests; instead of one that cannot be read, its error."""
        if len(references) == 1:
            return [self._read_or_error(references[0])]
        started_s = self._clock()
        if self._silence is not None and started_s < self._silence.until_s:
            return [self._silence.error for _ in references]
        try:
            found = self._client.get_all(self._version(), [(one.name, one.namespace) for one in references])
        except VGPUError:  # not even what is served
            found = ()
        waited_s = self._clock() - started_s
        views: list[ClaimView | VGPUError] = []
        for reference, one in zip_longest(references, found):
            if isinstance(one, KubeError):
                self._note_silence(one, waited_s)
            if one is None or isinstance(one, KubeError):
                views.append(self._read_or_error(reference))  # for the reasons that there can be to ask again
            else:
                views.append(_view_or_error(reference, one))
        return views

    def find(self, reference: ClaimReference) -> ClaimView | None:
        """Return a claim as it is now, None if there is none (any more); raises what `read` raises otherwise."""
        try:
            return self.read(reference)
        except ClaimGoneError:
            return None

    def _ask(self, reference: ClaimReference) -> JSON:
        """Get a claim; as long as the API server is known to let every request time out, do not wait for it."""
        started_s = self._clock()
        if self._silence is not None and started_s < self._silence.until_s:
            raise self._silence.error
        try:
            found = self._get(reference)
        except KubeError as error:
            self._note_silence(error, self._clock() - started_s)
            raise
        self._silence = None
        return found

    def _note_silence(self, error: KubeError, waited_s: float) -> None:
        if error.status is None and waited_s > _SLOW_S:
            self._silence = _Silence(self._clock() + _SILENCE_S, error)

    def _version(self) -> Resource:
        # Asked late: the agent starts, and undoes what is to be undone, without an API server. Asked each time while it
        # is an older version: once a newer one is served, the older one may lack what was consumed of a device.
        if self._resource is None or self._resource.version != names.RESOURCE_VERSIONS[0]:
            self.refresh()
        assert self._resource is not None
        return self._resource

    def _read_or_error(self, reference: ClaimReference) -> ClaimView | VGPUError:
        try:
            return self.read(reference)
        except VGPUError as error:
            return error

    def _get(self, reference: ClaimReference) -> JSON:
        asked = self._version()
        try:
            return self._get_as(asked, reference)
        except NotFoundError:
            # That version is not served (any more), at least not by the server that answered: during an upgrade there
            # are several behind one address, and what discovery says is the word of another.
            self.refresh()
            now = self._resource
            if now is None or now == asked:
                raise
            return self._get_as(now, reference)

    def _get_as(self, resource: Resource, reference: ClaimReference) -> JSON:
        try:
            return self._client.get(resource, reference.name, reference.namespace)
        except NotFoundError as error:
            if error.missing != (resource.plural, reference.name):
                raise
            raise ClaimGoneError(f"{reference}: found none, expected the one with uid {reference.uid}") from error


def _view(reference: ClaimReference, found: JSON) -> ClaimView:
    claim = ClaimView.from_object(found)
    if claim.uid != reference.uid:
        raise ClaimGoneError(
            f"{reference}: found uid {claim.uid}, expected {reference.uid}: it was deleted and created again"
        )
    return claim


def _view_or_error(reference: ClaimReference, found: JSON) -> ClaimView | VGPUError:
    try:
        return _view(reference, found)
    except VGPUError as error:
        return error
