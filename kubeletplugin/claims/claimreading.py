"""Reads claims when the kubelet asks to prepare them, and what else is to be known then. Called by preparing.

Always a GET, never a cache: between two pods a claim of the same UID can be given another allocation, and a watch
that lags (or hangs in a dead connection) would hand out the old one. One GET on a connection that is kept alive costs
about a millisecond (tests/bench/prepare.py).
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from api import kube, names
from api.claims import ClaimView
from api.deadlines import left_s
from api.errors import ClaimError, KubeError, NotFoundError, VGPUError
from api.kube import JSON, KubeClient, Resource, Wanted
from api.names import ClaimUID

_log = logging.getLogger(__name__)

_SLOW_S, _SILENCE_S = 5.0, 5.0
"""A request that ends without an answer after so long has found a silent server, not one that is away. Calls that come
in the time after it get its error at once: hundreds of calls that wait in turn would all miss the kubelet's 45 s."""
_PATIENCE_S = 5.0
"""For how long a busy API server is waited for that says when to come again (Retry-After), mostly after a second. The
kubelet waits much longer before it tries again; but calls that wait take the threads of those that undo claims."""


@dataclass(frozen=True)
class ClaimReference:
    """A claim as the kubelet names it."""

    namespace: str
    name: str
    uid: ClaimUID
    asked_s: float = field(default=math.inf, compare=False)
    """When the kubelet asked, by time.monotonic(); infinite: just now, whenever that is."""

    def __str__(self) -> str:
        return f"ResourceClaim {self.namespace}/{self.name}"


class ClaimGoneError(ClaimError):
    """There is no such claim any more: it was deleted, maybe created again under its name."""


@dataclass(frozen=True)
class _Rest:
    """An API server that is left alone: it takes requests and does not answer, or asked for it."""

    until_s: float
    error: KubeError


@dataclass(frozen=True)
class Found:
    """What the API server has at one moment."""

    claims: Sequence[ClaimView | VGPUError]
    """In the order of what was asked for; instead of one that cannot be read, its error."""
    beside: Sequence[JSON | KubeError] = ()
    """What was wanted beside them; empty where nobody was asked."""


class ClaimReader:
    """Gets claims from the API server, in the best version that it serves now. Safe to use from several threads."""

    def __init__(
        self,
        client: KubeClient,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._client = client
        self._clock = clock
        self._sleep = sleep
        self._resource: Resource | None = None
        self._rest: _Rest | None = None

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

    def read_all(self, references: Sequence[ClaimReference], beside: Sequence[Wanted] = ()) -> Found:
        """Return claims as they are now, and what is wanted beside them, in one round of requests."""
        rest, started_s = self._rest, self._clock()
        if rest is not None and started_s < rest.until_s:
            return Found([rest.error for _ in references])
        try:
            asked = self._version()
            found = self._client.get_all([*(Wanted(asked, one.name, one.namespace) for one in references), *beside])
        except VGPUError as error:  # not even what is served
            self._note(error, self._clock() - started_s)
            return Found([error for _ in references])
        waited_s = self._clock() - started_s
        claims: list[ClaimView | VGPUError] = []
        for reference, one in zip(references, found, strict=False):
            if isinstance(one, NotFoundError):
                claims.append(self._read_or_error(reference))  # for the reason that there can be to ask again
            elif isinstance(one, KubeError):
                self._note(one, waited_s)
                claims.append(one)
            else:
                claims.append(_view_or_error(reference, one))
        return Found(claims, found[len(references) :])

    def read_patiently(self, reference: ClaimReference, beside: Sequence[Wanted] = ()) -> Found:
        """Do the same for one claim; where the API server is busy and says when to come again, do so for a while."""
        patience_s = left_s(_PATIENCE_S)
        while True:
            found = self.read_all([reference], beside)
            (error,) = found.claims
            rest = self._rest
            pause_s = rest.until_s - self._clock() if rest is not None else 0.0
            if not isinstance(error, KubeError) or not error.wait_s or pause_s >= patience_s:
                return found
            self._sleep(max(pause_s, 0.0))
            patience_s -= error.wait_s

    def find(self, reference: ClaimReference) -> ClaimView | None:
        """Return a claim as it is now, None if there is none (any more); raises what `read` raises otherwise."""
        try:
            return self.read(reference)
        except ClaimGoneError:
            return None

    def _ask(self, reference: ClaimReference) -> JSON:
        """Get a claim; as long as the API server is left alone, do not ask it."""
        rest, started_s = self._rest, self._clock()
        if rest is not None and started_s < rest.until_s:
            raise rest.error
        try:
            found = self._get(reference)
        except KubeError as error:
            self._note(error, self._clock() - started_s)
            raise
        self._rest = None
        return found

    def _note(self, error: VGPUError, waited_s: float) -> None:
        """Leave an API server alone for a while that lets requests time out, or is busy and says until when."""
        if not isinstance(error, KubeError):
            return
        rest_s = _SILENCE_S if error.status is None and waited_s > _SLOW_S else error.wait_s
        if rest_s:
            self._rest = _Rest(self._clock() + rest_s, error)

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
