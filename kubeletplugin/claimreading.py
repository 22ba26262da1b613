"""Reads claims when the kubelet asks to prepare them. Called by preparing.

Always a GET, never a cache: between two pods a claim of the same UID can be given another allocation, and a watch
that lags (or hangs in a dead connection) would hand out the old one. One GET on a connection that is kept alive costs
about a millisecond (tests/bench/prepare.py).
"""

from dataclasses import dataclass

from api import kube
from api.claims import ClaimView
from api.errors import ClaimError, NotFoundError
from api.kube import KubeClient, Resource
from api.names import ClaimUID


@dataclass(frozen=True)
class ClaimReference:
    """A claim as the kubelet names it."""

    namespace: str
    name: str
    uid: ClaimUID

    def __str__(self) -> str:
        return f"ResourceClaim {self.namespace}/{self.name}"


class ClaimReader:
    """Gets claims from the API server, in the version that it serves."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._resource: Resource | None = None

    def read(self, reference: ClaimReference) -> ClaimView:
        """Return a claim as it is now.

        Raises:
            ClaimError: there is no such claim any more, or it cannot be read as one.
            KubeError: the API server did not answer, or refused.
        """
        try:
            found = self._client.get(self._claims(), reference.name, reference.namespace)
        except NotFoundError as error:
            raise ClaimError(f"{reference}: found none, expected the one with uid {reference.uid}") from error
        claim = ClaimView.from_object(found)
        if claim.uid != reference.uid:
            raise ClaimError(
                f"{reference}: found uid {claim.uid}, expected {reference.uid}: it was deleted and created again"
            )
        return claim

    def _claims(self) -> Resource:
        if self._resource is None:
            # Asked late: the agent starts, and undoes what is to be undone, without an API server.
            self._resource = kube.claims(self._client.resource_api_version())
        return self._resource
