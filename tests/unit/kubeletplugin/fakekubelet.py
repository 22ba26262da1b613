"""A kubelet as a plugin meets it: finds it by its registration socket, calls it over gRPC, repeats what failed.

It does what the real one does (k8s.io/kubernetes/pkg/kubelet/cm/dra): takes the first version that it knows; fails a
pod if any claim has an error or no answer, and then sends all claims again; undoes claims by uid, whatever became of
them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from kubeletplugin.proto import (
    dra_v1_pb2,
    dra_v1_pb2_grpc,
    dra_v1beta1_pb2,
    dra_v1beta1_pb2_grpc,
    health_v1_pb2,
    health_v1_pb2_grpc,
    health_v1alpha1_pb2,
    health_v1alpha1_pb2_grpc,
    registration_pb2,
    registration_pb2_grpc,
)

CALL_TIMEOUT_S = 45.0
_DRA = {
    "v1.DRAPlugin": (dra_v1_pb2, dra_v1_pb2_grpc),
    "v1beta1.DRAPlugin": (dra_v1beta1_pb2, dra_v1beta1_pb2_grpc),
}
_HEALTH = {
    "v1.DRAResourceHealth": (health_v1_pb2, health_v1_pb2_grpc),
    "v1alpha1.DRAResourceHealth": (health_v1alpha1_pb2, health_v1alpha1_pb2_grpc),
}


class PrepareError(Exception):
    """The pod does not start."""


@dataclass(frozen=True)
class Ref:
    """A claim as the kubelet names it."""

    uid: str
    namespace: str = "default"
    name: str = "claim"


@dataclass
class FakeKubelet:
    """A kubelet that knows some versions of the APIs."""

    directory: Path
    dra_versions: tuple[str, ...] = ("v1.DRAPlugin", "v1beta1.DRAPlugin")
    health_versions: tuple[str, ...] = ("v1.DRAResourceHealth", "v1alpha1.DRAResourceHealth")
    info: Any = None
    version: str = ""
    _channels: dict[Path, grpc.Channel] = field(default_factory=dict)

    def register(self, refusal: str = "", pod_uid: str = "") -> None:
        """Find the plugin's socket (of several: that of a pod), ask what it is, and tell it the outcome."""
        (socket,) = sorted((self.directory / "plugins_registry").glob(f"*{pod_uid}-reg.sock"))
        stub = registration_pb2_grpc.RegistrationStub(self._channel(socket))
        self.info = stub.GetInfo(registration_pb2.InfoRequest(), timeout=CALL_TIMEOUT_S)
        self.version = next(version for version in self.info.supported_versions if version in self.dra_versions)
        stub.NotifyRegistrationStatus(
            registration_pb2.RegistrationStatus(plugin_registered=not refusal, error=refusal), timeout=CALL_TIMEOUT_S
        )

    def restart(self) -> None:
        """Forget all connections, as a new kubelet process would, and find the plugin anew."""
        self.close()
        self.register()

    def prepare(self, *claims: Ref) -> dict[str, list[Any]]:
        """Prepare the claims of a pod; returns devices by claim uid.

        Raises:
            PrepareError: any of them failed; the kubelet would send all of them again.
        """
        answers = self.call_prepare(claims)
        errors = [answers[claim.uid].error if claim.uid in answers else "no answer" for claim in claims]
        if any(errors):
            raise PrepareError("; ".join(error for error in errors if error))
        return {uid: list(answer.devices) for uid, answer in answers.items()}

    def call_prepare(self, claims: Iterable[Ref]) -> dict[str, Any]:
        """Call NodePrepareResources; returns the answers by claim uid."""
        messages, stub = self._dra()
        request = messages.NodePrepareResourcesRequest(claims=[_message(messages, claim) for claim in claims])
        return dict(stub.NodePrepareResources(request, timeout=CALL_TIMEOUT_S).claims)

    def begin_prepare(self, *claims: Ref) -> Any:
        """Call NodePrepareResources without waiting for the answer; returns the call, which cancel() ends."""
        messages, stub = self._dra()
        request = messages.NodePrepareResourcesRequest(claims=[_message(messages, claim) for claim in claims])
        return stub.NodePrepareResources.future(request, timeout=CALL_TIMEOUT_S)

    def unprepare(self, *claims: Ref) -> dict[str, str]:
        """Call NodeUnprepareResources; returns errors by claim uid."""
        messages, stub = self._dra()
        request = messages.NodeUnprepareResourcesRequest(claims=[_message(messages, claim) for claim in claims])
        answer = stub.NodeUnprepareResources(request, timeout=CALL_TIMEOUT_S)
        return {uid: result.error for uid, result in answer.claims.items()}

    def healths(self) -> Iterator[Any]:
        """Watch the health of devices; cancel() ends it."""
        version = next(version for version in self.info.supported_versions if version in self.health_versions)
        messages, services = _HEALTH[version]
        stub = services.DRAResourceHealthStub(self._channel(Path(self.info.endpoint)))
        return stub.NodeWatchResources(messages.NodeWatchResourcesRequest())  # type: ignore[no-any-return]

    def close(self) -> None:
        """Drop all connections."""
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    def _dra(self) -> tuple[Any, Any]:
        messages, services = _DRA[self.version]
        return messages, services.DRAPluginStub(self._channel(Path(self.info.endpoint)))

    def _channel(self, socket: Path) -> grpc.Channel:
        if socket not in self._channels:
            self._channels[socket] = grpc.insecure_channel(f"unix:{socket}")
        return self._channels[socket]


def _message(messages: Any, claim: Ref) -> Any:
    return messages.Claim(uid=claim.uid, namespace=claim.namespace, name=claim.name)
