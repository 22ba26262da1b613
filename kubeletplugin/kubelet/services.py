"""The gRPC services that the kubelet calls: DRA v1 and v1beta1, and the health of devices.

Built by the agent and served on one socket. Both DRA versions are one implementation: they differ in the modules of
their messages, and in that v1 tells the share id.
"""

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from api.deadlines import within
from api.errors import VGPUError
from api.names import ClaimUID
from kubeletplugin.claims.claimreading import ClaimReference
from kubeletplugin.claims.preparing import Preparer
from kubeletplugin.claims.unpreparing import Unpreparer
from kubeletplugin.kubelet.healths import DeviceHealth, HealthBoard
from kubeletplugin.monitoring.metrics import CallDurations
from kubeletplugin.proto import (
    dra_v1_pb2,
    dra_v1_pb2_grpc,
    dra_v1beta1_pb2,
    dra_v1beta1_pb2_grpc,
    health_v1_pb2,
    health_v1_pb2_grpc,
    health_v1alpha1_pb2,
    health_v1alpha1_pb2_grpc,
)
from kubeletplugin.state.nodestates import NodeState
from kubeletplugin.state.preparedclaims import PreparedClaim, PreparedDevice
from kubeletplugin.state.sharefolders import is_claim_uid

_log = logging.getLogger(__name__)

SUPPORTED_VERSIONS = ("v1.DRAPlugin", "v1beta1.DRAPlugin", "v1.DRAResourceHealth", "v1alpha1.DRAResourceHealth")
"""As the kubelet names them in a registration, best first: it takes the first that it knows."""

HEALTH_TIMEOUT_S = 60
"""Sent with each health: after so long without news a device is unknown."""


class _ClaimMessage(Protocol):
    namespace: str
    uid: str
    name: str


class DRAService:
    """NodePrepareResources and NodeUnprepareResources, in one version of the API."""

    def __init__(
        self, messages: Any, preparer: Preparer, unpreparer: Unpreparer, state: NodeState, durations: CallDurations
    ) -> None:
        """Take the module of the version's messages, what does the work, and what keeps its time."""
        self._messages = messages
        self._durations = durations
        self._preparer = preparer
        self._unpreparer = unpreparer
        self._state = state
        self._tells_share_id = "share_id" in messages.Device.DESCRIPTOR.fields_by_name
        self._pool = ThreadPoolExecutor(_CLAIM_THREADS, thread_name_prefix="claims")

    def NodePrepareResources(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Prepare each claim; one that fails has its error in the answer and touches no other."""
        asked_s = time.monotonic()
        end_s = asked_s + _time_for(context)
        claims = {claim.uid: claim for claim in request.claims}
        answers = self._prepare_together(claims, asked_s, end_s)
        answers.update(self._for_each(_left(claims, answers), functools.partial(self._prepare, asked_s), end_s))
        return self._messages.NodePrepareResourcesResponse(claims=answers)

    def NodeUnprepareResources(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Undo each claim; one that fails has its error in the answer and touches no other."""
        end_s = time.monotonic() + _time_for(context)
        claims = {claim.uid: claim for claim in request.claims}
        answers = self._unprepare_together(claims, end_s)
        answers.update(self._for_each(_left(claims, answers), self._unprepare, end_s))
        return self._messages.NodeUnprepareResourcesResponse(claims=answers)

    def close(self) -> None:
        """End the threads of the service."""
        self._pool.shutdown()

    def _for_each(
        self, claims: Mapping[str, _ClaimMessage], action: Callable[[_ClaimMessage], Any], end_s: float
    ) -> dict[str, Any]:
        def act(claim: _ClaimMessage) -> Any:
            with within(end_s - time.monotonic()):  # what it waited for a thread is gone
                return action(claim)

        if len(claims) <= 1:  # no thread for that
            return {uid: act(claim) for uid, claim in claims.items()}
        return dict(zip(claims, self._pool.map(act, claims.values()), strict=True))

    def _prepare_together(self, claims: Mapping[str, _ClaimMessage], asked_s: float, end_s: float) -> dict[str, Any]:
        """Return the answers of those claims of a call that need not be prepared alone."""
        began_s = time.monotonic()
        references = [_reference(claim, asked_s) for uid, claim in claims.items() if is_claim_uid(uid)]
        try:
            with within(end_s - began_s):
                outcomes = self._preparer.prepare_together(references)
        except Exception:  # noqa: BLE001 - as above, and the next try tells it
            _log.exception("claims not prepared together: each is tried alone", extra={"claims": list(claims)})
            return {}
        answers: dict[str, Any] = {}
        for uid, outcome in outcomes.items():
            failed = isinstance(outcome, Exception)
            self._durations.note(self._durations.prepare, time.monotonic() - began_s, "error" if failed else "ok")
            answers[uid] = self._answer(claims[uid], outcome)
        return answers

    def _unprepare_together(self, claims: Mapping[str, _ClaimMessage], end_s: float) -> dict[str, Any]:
        """Return the answers of those claims of a call that need not be undone alone."""
        began_s = time.monotonic()
        try:
            with within(end_s - began_s):
                undone = self._unpreparer.unprepare_together([ClaimUID(uid) for uid in claims])
        except Exception:  # noqa: BLE001 - as above
            _log.exception("claims not unprepared together: each is tried alone", extra={"claims": list(claims)})
            return {}
        for _ in undone:
            self._durations.note(self._durations.unprepare, time.monotonic() - began_s, "ok")
        return {uid: self._messages.NodeUnprepareResourceResponse() for uid in undone}

    def _prepare(self, asked_s: float, claim: _ClaimMessage) -> Any:
        try:
            with self._durations.measure(self._durations.prepare):
                prepared = self._preparer.prepare(_reference(claim, asked_s))
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not fail the other claims of the call
            return self._answer(claim, error)
        return self._answer(claim, prepared)

    def _answer(self, claim: _ClaimMessage, outcome: PreparedClaim | Exception) -> Any:
        if isinstance(outcome, Exception):
            return self._messages.NodePrepareResourceResponse(error=_report("prepare", claim, outcome))
        return self._messages.NodePrepareResourceResponse(devices=self._devices(outcome))

    def _unprepare(self, claim: _ClaimMessage) -> Any:
        try:
            with self._durations.measure(self._durations.unprepare):
                self._unpreparer.unprepare(ClaimUID(claim.uid))
        except Exception as error:  # noqa: BLE001 - as above
            return self._messages.NodeUnprepareResourceResponse(error=_report("unprepare", claim, error))
        return self._messages.NodeUnprepareResourceResponse()

    def _devices(self, prepared: PreparedClaim) -> Iterator[Any]:
        for device in prepared.devices:
            # The kubelet looks for the name that a container gives: of an alternative, that is the request's alone.
            request, _, _ = device.request.partition("/")
            yield self._messages.Device(
                request_names=[request],
                pool_name=device.pool,
                device_name=device.device,
                cdi_device_ids=self._state.cdi_ids(device),
                **self._share_id(device),
            )

    def _share_id(self, device: PreparedDevice) -> dict[str, str]:
        return {"share_id": device.share_id} if self._tells_share_id and device.share_id is not None else {}


@dataclass(frozen=True)
class HealthSettings:
    """What the health services tell."""

    board: HealthBoard
    pool: str
    """Name of the node's pool."""
    interval_s: float
    """Longest silence; the kubelet forgets after 30 s."""


class HealthService:
    """NodeWatchResources in one version of the API: always all devices, on each change and now and then without."""

    def __init__(self, messages: Any, settings: HealthSettings, places: threading.BoundedSemaphore) -> None:
        """Take the module of the version's messages, and how many streams there may be."""
        self._messages = messages
        self._places = places
        self._board = settings.board
        self._pool = settings.pool
        self._interval_s = settings.interval_s

    def NodeWatchResources(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: ARG002, N802
        """Stream until the kubelet goes or the agent stops. A reader that is slow holds up nobody but itself."""
        if not self._places.acquire(blocking=False):
            message = f"found {_STREAMS} streams of device health, expected fewer: each keeps a thread"
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        try:
            yield from self._stream(context)
        finally:
            self._places.release()

    def _stream(self, context: grpc.ServicerContext) -> Iterator[Any]:
        context.add_callback(self._board.wake)  # a stream whose client went must not keep its thread
        wanted = True
        while wanted and context.is_active():
            version, healths = self._board.current()
            if healths is not None:
                yield self._response(healths)
            wanted = self._board.wait(version, self._interval_s)

    def _response(self, healths: Sequence[DeviceHealth]) -> Any:
        return self._messages.NodeWatchResourcesResponse(
            devices=[
                self._messages.DeviceHealth(
                    device=self._messages.DeviceIdentifier(pool_name=self._pool, device_name=health.device),
                    health=self._messages.HEALTHY if health.healthy else self._messages.UNHEALTHY,
                    last_updated_time=health.updated_s,
                    health_check_timeout_seconds=HEALTH_TIMEOUT_S,
                    message=health.message,
                )
                for health in healths
            ]
        )


_STREAMS = 4
"""Of the threads that answer calls. A kubelet has one stream, and a new one that comes beside the old one a second."""
_CLAIM_THREADS = 16
_CALL_S = 40.0
"""For a call of whoever says no limit; the kubelet says 45 s."""
_ANSWER_S = 5.0
"""Of the caller's limit, left for the disk and the way back: an error that comes too late tells nobody its reason."""


def _time_for(context: grpc.ServicerContext) -> float:
    """Return how long the claims of a call may take, in seconds."""
    left = context.time_remaining()
    return _CALL_S if left is None else min(left - _ANSWER_S, _CALL_S)


def add_dra_services(server: grpc.Server, services: Sequence[DRAService]) -> None:
    """Register the two DRA services, v1 first, with a server."""
    v1, v1beta1 = services
    dra_v1_pb2_grpc.add_DRAPluginServicer_to_server(v1, server)  # type: ignore[arg-type]
    dra_v1beta1_pb2_grpc.add_DRAPluginServicer_to_server(v1beta1, server)  # type: ignore[arg-type]


def dra_services(
    preparer: Preparer, unpreparer: Unpreparer, state: NodeState, durations: CallDurations
) -> tuple[DRAService, DRAService]:
    """Return the DRA services of both versions, v1 first."""
    return (
        DRAService(dra_v1_pb2, preparer, unpreparer, state, durations),
        DRAService(dra_v1beta1_pb2, preparer, unpreparer, state, durations),
    )


def add_health_services(server: grpc.Server, settings: HealthSettings) -> None:
    """Register the health services of both versions with a server."""
    places = threading.BoundedSemaphore(_STREAMS)
    v1 = HealthService(health_v1_pb2, settings, places)
    health_v1_pb2_grpc.add_DRAResourceHealthServicer_to_server(v1, server)  # type: ignore[arg-type]
    v1alpha1 = HealthService(health_v1alpha1_pb2, settings, places)
    health_v1alpha1_pb2_grpc.add_DRAResourceHealthServicer_to_server(v1alpha1, server)  # type: ignore[arg-type]


def _left(claims: Mapping[str, _ClaimMessage], answers: Mapping[str, Any]) -> dict[str, _ClaimMessage]:
    """Return the claims without an answer."""
    return {uid: claim for uid, claim in claims.items() if uid not in answers}


def _reference(claim: _ClaimMessage, asked_s: float) -> ClaimReference:
    if not is_claim_uid(claim.uid):
        raise ValueError(f"uid {claim.uid!r}: expected the UID of a ResourceClaim")
    return ClaimReference(claim.namespace, claim.name, ClaimUID(claim.uid), asked_s)


def _report(action: str, claim: _ClaimMessage, error: Exception) -> str:
    """Log an error once, here at the edge, and return what the kubelet shows in the pod's events."""
    facts = {"claim_uid": claim.uid, "claim": f"{claim.namespace}/{claim.name}", "error": str(error)}
    expected = isinstance(error, VGPUError | OSError | ValueError)
    _log.error("claim not %sd", action, extra=facts, exc_info=None if expected else error)
    return str(error) or repr(error)
