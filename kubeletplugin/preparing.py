"""Prepares claims: reads the claim, has its share planned, and brings the node to that plan.

Called by the gRPC service, from several threads. The answer is given only when everything is on disk. A claim that is
prepared already is checked and mended, and answered with the same ids.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from api.claims import ClaimView
from api.errors import CapacityError, ConfigError, KubeError, VGPUError
from kubeletplugin.annotations import take_over
from kubeletplugin.claimreading import ClaimReader, ClaimReference
from kubeletplugin.ledgers import Prepared
from kubeletplugin.nodestates import NodeState
from kubeletplugin.planning import NodeView, kept, plan
from kubeletplugin.preparedclaims import PreparedClaim

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hooks:
    """What others do about claims that are prepared."""

    check: Callable[[ClaimView], None] = lambda _claim: None
    """Raises a VGPUError for a claim that must not be prepared, whatever it was allocated."""
    make_room: Callable[[Iterable[str]], bool] = lambda _uids: False
    """Gives up those of some claims, by UID, that are gone; returns whether there were any. No lock is held."""
    on_prepared: Callable[[PreparedClaim], None] = lambda _claim: None
    """Is told of each claim."""


_NO_HOOKS = Hooks()


class Preparer:
    """Prepares claims on one node."""

    def __init__(
        self,
        reader: ClaimReader,
        state: NodeState,
        view: Callable[[], NodeView],
        hooks: Hooks = _NO_HOOKS,
    ) -> None:
        """Take what is needed.

        Args:
            reader: of claims.
            state: of the node.
            view: returns the node as it was discovered last.
            hooks: what others do.
        """
        self._reader = reader
        self._state = state
        self._view = view
        self._hooks = hooks

    def prepare(self, reference: ClaimReference) -> PreparedClaim:
        """Prepare a claim, however often.

        Raises:
            ClaimError, ConfigError, CapacityError: it cannot be served as it stands.
            KubeError: the API server did not say what was allocated.
            StateError, OSError: this node could not write what it must.
            TransientError: another call for this claim did not end in time.
        """
        try:
            return self._prepare(reference)
        except CapacityError as error:
            # The scheduler may know better: of claims that are gone, and that nobody undid here.
            if not self._hooks.make_room(error.holders):
                raise
        return self._prepare(reference)

    def _prepare(self, reference: ClaimReference) -> PreparedClaim:
        with self._state.locks.hold(reference.uid):
            try:
                claim = self._reader.read(reference)
            except KubeError as error:
                return self._answer_from_record(reference, error)
            self._hooks.check(claim)
            view = self._view()
            planned, former = self._state.ledger.reserve(reference.uid, lambda others: _decide(claim, view, others))
            try:
                self._state.ledger.settle(planned.uid)
                self._state.put(planned, former)
                self._take_over_annotation(planned, claim)
            except BaseException:
                self._undo(planned, former)
                raise
            _log.info("claim prepared", extra=_facts(planned) | {"again": planned == former})
            self._hooks.on_prepared(planned)
            return planned

    def _take_over_annotation(self, planned: PreparedClaim, claim: ClaimView) -> None:
        if claim.limits_annotation is None:
            return  # removed since the share was made: the follower gives back what the claim says
        try:
            take_over(planned, claim, self._state.paths.shares_dir)
        except ConfigError as error:
            # Whoever may annotate must not be able to keep a pod from starting; the follower tells the mistake.
            _log.warning("annotation not taken over", extra=_facts(planned) | {"error": str(error)})

    def _answer_from_record(self, reference: ClaimReference, error: KubeError) -> PreparedClaim:
        recorded = self._state.ledger.get(reference.uid)
        if recorded is None or not recorded.is_complete:
            raise error
        # The kubelet repeats calls for claims whose pods run already; they need not wait for the API server.
        self._state.put(recorded)
        _log.warning("claim answered from its record", extra=_facts(recorded) | {"error": str(error)})
        return recorded

    def _undo(self, planned: PreparedClaim, former: PreparedClaim | None) -> None:
        """Return to what was before, as far as the disk lets us; the next try or unprepare does the rest."""
        try:
            if former is None:
                self._state.remove(planned.uid)
            elif planned != former:
                self._state.ledger.take_back(planned.uid, former)
                self._state.put(former, planned)  # some shares may have new limits already
        except (OSError, VGPUError) as error:
            _log.error("half-prepared claim not undone", extra=_facts(planned) | {"error": str(error)})


def _decide(claim: ClaimView, view: NodeView, others: Prepared) -> PreparedClaim:
    return kept(claim, view, others) or plan(claim, view, others)


def _facts(claim: PreparedClaim) -> dict[str, object]:
    return {
        "claim_uid": claim.uid,
        "claim": f"{claim.namespace}/{claim.name}",
        "devices": [device.device for device in claim.devices],
    }
