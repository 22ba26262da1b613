"""Reads claims when the kubelet asks to prepare them. Called by preparing.

Always a GET, never a cache: between two pods a claim of the same UID can be given another allocation, and a watch
that lags (or hangs in a dead connection) would hand out the old one. One GET on a connection that is kept alive costs
about a millisecond (tests/bench/prepare.py).
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from api import kube, names
from api.claims import ClaimView
from api.errors import ClaimError, KubeError, NotFoundError
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
        claim = ClaimView.from_object(self._ask(reference))
        if claim.uid != reference.uid:
            raise ClaimGoneError(
                f"{reference}: found uid {claim.uid}, expected {reference.uid}: it was deleted and created again"
            )
        return claim

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
            ended_s = self._clock()
            if error.status is None and ended_s - started_s > _SLOW_S:
                self._silence = _Silence(ended_s + _SILENCE_S, error)
            raise
        self._silence = None
        return found

    def _get(self, reference: ClaimReference) -> JSON:
        # Asked late: the agent starts, and undoes what is to be undone, without an API server. Asked each time while it
        # is an older version: once a newer one is served, the older one may lack what was consumed of a device.
        if self._resource is None or self._resource.version != names.RESOURCE_VERSIONS[0]:
            self.refresh()
        asked = self._resource
        try:
            return self._get_as(asked, reference)
        except NotFoundError:
            # That version is not served (any more), at least not by the server that answered: during an upgrade there
            # are several behind one address, and what discovery says is the word of another.
            self.refresh()
            if self._resource == asked:
                raise
            return self._get_as(self._resource, reference)

    def _get_as(self, resource: Resource | None, reference: ClaimReference) -> JSON:
        assert resource is not None
        try:
            return self._client.get(resource, reference.name, reference.namespace)
        except NotFoundError as error:
            if error.missing != (resource.plural, reference.name):
                raise
            raise ClaimGoneError(f"{reference}: found none, expected the one with uid {reference.uid}") from error
