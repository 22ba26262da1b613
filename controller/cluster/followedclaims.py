"""Which claims of each node can change while they are prepared. Used by `indexing`; `telling` tells the nodes.

The controller watches claims anyway. What it tells a node is which claims are worth a look: the node agent reads the
annotation and the pods from the claim itself.
"""

from collections.abc import Iterable, Mapping

from api.names import ClaimUID
from api.nodeinventory import FollowedClaim


class FollowedClaims:
    """Kept up to date claim by claim. Not thread-safe: its owner locks."""

    def __init__(self) -> None:
        self._nodes: dict[ClaimUID, frozenset[str]] = {}
        self._digests: dict[str, dict[ClaimUID, str]] = {}
        """By node."""

    def note(self, uid: ClaimUID, nodes: Iterable[str] = (), digest: str = "") -> frozenset[str]:
        """Take over a claim as it is now; return the nodes that are to be told something new.

        Args:
            uid: of the claim.
            nodes: on which it is; none: it is gone.
            digest: see `ClaimView.digest`.
        """
        after: Mapping[str, str] = dict.fromkeys(nodes, digest) if digest else {}
        before = {node: self._digests[node].pop(uid) for node in self._nodes.pop(uid, ())}
        if after:
            self._nodes[uid] = frozenset(after)
        for node, found in after.items():
            self._digests.setdefault(node, {})[uid] = found
        for node in before:
            if not self._digests[node]:
                del self._digests[node]
        return frozenset(node for node in {*before, *after} if before.get(node) != after.get(node))

    def of(self, node: str) -> tuple[FollowedClaim, ...]:
        """Return the claims of a node that are worth a look, in an order that does not change by itself."""
        found = sorted(self._digests.get(node, {}).items())
        return tuple(FollowedClaim(uid=uid, digest=digest) for uid, digest in found)
