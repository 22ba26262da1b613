"""Prepares claims: reads them, has their shares planned, and brings the node to that plan.

Called by the gRPC service, from several threads, with one claim or with all of a call. The answer is given only when
everything is on disk. A claim that is prepared already is checked and mended, and answered with the same ids.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from api.claims import ClaimView
from api.errors import CapacityError, ClaimError, ConfigError, KubeError, TransientError, VGPUError
from api.kube import JSON, Wanted
from api.names import ClaimUID
from kubeletplugin.claims.annotations import take_over
from kubeletplugin.claims.claimreading import ClaimReader, ClaimReference, Found
from kubeletplugin.claims.planning import kept, plan
from kubeletplugin.claims.rounds import Rounds
from kubeletplugin.hardware.nodeviews import NodeView
from kubeletplugin.state.ledgers import Prepared
from kubeletplugin.state.nodestates import NodeState
from kubeletplugin.state.preparedclaims import PreparedClaim

_log = logging.getLogger(__name__)


class Guard(Protocol):
    """Keeps out claims that must not be prepared, whatever they were allocated."""

    def asks(self) -> Sequence[Wanted]:
        """Return what is to be read together with claims."""

    def hears(self, answers: Sequence[JSON | KubeError]) -> None:
        """Take what was read."""

    def refusals(self, claims: Sequence[ClaimView]) -> Mapping[ClaimUID, VGPUError]:
        """Return the claims that are kept out, and why."""


class _Open:
    """Lets all in."""

    def asks(self) -> Sequence[Wanted]:
        return ()

    def hears(self, answers: Sequence[JSON | KubeError]) -> None:
        pass

    def refusals(self, claims: Sequence[ClaimView]) -> Mapping[ClaimUID, VGPUError]:  # noqa: ARG002
        return {}


@dataclass(frozen=True)
class Hooks:
    """What others do about claims that are prepared."""

    guard: Guard = _Open()  # noqa: RUF009 - it has no state
    """Keeps claims out."""
    make_room: Callable[[Iterable[str]], bool] = lambda _uids: False
    """Gives up those of some claims, by UID, that are gone; returns whether there were any. No lock is held."""
    is_undone_since: Callable[[ClaimReference], bool] = lambda _reference: False
    """Returns whether a claim was undone since the kubelet asked for it; its lock is held."""
    on_prepared: Callable[[PreparedClaim], None] = lambda _claim: None
    """Is told of each claim."""


_NO_HOOKS = Hooks()


class LateCallError(TransientError):
    """The kubelet has undone the claim since it made this call: it has given the call up."""


@dataclass(frozen=True)
class _Reserved:
    """A claim that is counted, and not yet in its place."""

    claim: ClaimView
    planned: PreparedClaim
    former: PreparedClaim | None


_Outcomes = dict[ClaimUID, PreparedClaim | Exception]
_Read = Callable[[Sequence[ClaimReference], Sequence[Wanted]], Found]


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
        self._rounds = Rounds(self._prepare_round)

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

    def prepare_together(self, references: Sequence[ClaimReference]) -> _Outcomes:
        """Prepare claims in one go, together with those of other calls that come now.

        Returns:
            What became of each. Not in it is what is to be prepared alone, because it has to wait for somebody: claims
            that another call is at, those that there is no room for, and those that a busy API server put off.

        Raises:
            TransientError: other calls took all the time.
        """
        return self._rounds.do({reference.uid: reference for reference in references})

    def _prepare_round(self, references: Mapping[ClaimUID, ClaimReference]) -> _Outcomes:
        """Prepare claims in one round of requests, with one decision, and one wait for the disk."""
        with self._state.locks.hold_free(references) as held:
            wanted = [reference for uid, reference in references.items() if uid in held]
            outcomes = self._bring(wanted, self._reader.read_all)
        return {uid: outcome for uid, outcome in outcomes.items() if not _can_wait(outcome)}

    def _prepare(self, reference: ClaimReference) -> PreparedClaim:
        with self._state.locks.hold(reference.uid):
            outcome = self._bring([reference], lambda _, beside: self._reader.read_patiently(reference, beside))[
                reference.uid
            ]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _bring(self, references: Sequence[ClaimReference], read: _Read) -> _Outcomes:
        """Bring the node to what some claims say, whose locks are held; return what became of each."""
        outcomes: _Outcomes = {}
        claims = self._read(references, read, outcomes)
        reserved = self._reserve(claims, outcomes)
        self._settle(reserved, outcomes)
        for one in reserved:
            if one.planned.uid not in outcomes:
                with _noting(outcomes, one.planned.uid):
                    outcomes[one.planned.uid] = self._put(one)
        for one in reserved:
            if isinstance(outcomes[one.planned.uid], Exception):
                self._undo(one.planned, one.former)
        return outcomes

    def _read(self, references: Sequence[ClaimReference], read: _Read, outcomes: _Outcomes) -> list[ClaimView]:
        """Return the claims that are to be decided about."""
        guard = self._hooks.guard
        found = read(references, guard.asks())
        guard.hears(found.beside)
        claims: list[ClaimView] = []
        for reference, one in zip(references, found.claims, strict=True):
            with _noting(outcomes, reference.uid):
                if self._hooks.is_undone_since(reference):
                    raise LateCallError(f"{reference}: the kubelet has undone it since this call came")
                if isinstance(one, KubeError):
                    outcomes[reference.uid] = self._answer_from_record(reference, one)
                elif isinstance(one, Exception):
                    raise one
                elif not one.reserved_for:
                    raise ClaimError(f"{one}: found it reserved for nobody, expected a pod: it has ended since")
                else:
                    claims.append(one)
        refused = guard.refusals(claims)
        outcomes.update(refused)
        return [claim for claim in claims if claim.uid not in refused]

    def _reserve(self, claims: Sequence[ClaimView], outcomes: _Outcomes) -> list[_Reserved]:
        reserved: list[_Reserved] = []
        if not claims:
            return reserved
        try:
            view = self._view()
            with self._state.ledger.reserving() as reserve:
                for claim in claims:
                    with _noting(outcomes, claim.uid):
                        planned, former = reserve(claim.uid, functools.partial(_decide, claim, view))
                        reserved.append(_Reserved(claim, planned, former))
        except (OSError, VGPUError) as error:  # nobody can be decided about
            outcomes.update({claim.uid: error for claim in claims if claim.uid not in outcomes})
        return reserved

    def _settle(self, reserved: Sequence[_Reserved], outcomes: _Outcomes) -> None:
        try:
            self._state.ledger.settle(*(one.planned.uid for one in reserved))
        except OSError:
            for one in reserved:  # whose fault it is shows alone
                with _noting(outcomes, one.planned.uid):
                    self._state.ledger.settle(one.planned.uid)

    def _put(self, one: _Reserved) -> PreparedClaim:
        self._state.put(one.planned, one.former)
        self._take_over_annotation(one.planned, one.claim)
        _log.info("claim prepared", extra=_facts(one.planned) | {"again": one.planned == one.former})
        self._hooks.on_prepared(one.planned)
        return one.planned

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


def _can_wait(outcome: PreparedClaim | Exception) -> bool:
    """Return whether a claim that is prepared alone may fare better.

    Others give up room, the server is busy, or of two calls for it only the first came late.
    """
    return isinstance(outcome, CapacityError | LateCallError) or (isinstance(outcome, KubeError) and outcome.wait_s > 0)


@contextmanager
def _noting(outcomes: _Outcomes, uid: ClaimUID) -> Iterator[None]:
    """Note an error as what became of a claim: whatever it is, it must not touch the other claims of the call."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - told to the kubelet by the caller
        outcomes[uid] = error


def _decide(claim: ClaimView, view: NodeView, others: Prepared) -> PreparedClaim:
    return kept(claim, view, others) or plan(claim, view, others)


def _facts(claim: PreparedClaim) -> dict[str, object]:
    return {
        "claim_uid": claim.uid,
        "claim": f"{claim.namespace}/{claim.name}",
        "devices": [device.device for device in claim.devices],
    }
