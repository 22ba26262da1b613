"""The kubelet's side of the plugin protocol: finds plugins by their sockets, registers them, calls them.

Called by processnode.py and processpods.py. It does what the kubelet does (k8s.io/kubernetes/pkg/kubelet/cm/dra):
takes the first version of a plugin that it knows, and takes a claim without an answer for one that failed.
"""

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from kubeletplugin.proto import (
    dra_v1_pb2,
    dra_v1_pb2_grpc,
    dra_v1beta1_pb2,
    dra_v1beta1_pb2_grpc,
    registration_pb2,
    registration_pb2_grpc,
)

CALL_TIMEOUT_S = 45.0
_REGISTRATION_TIMEOUT_S = 5.0
_VERSIONS: dict[str, tuple[Any, Any]] = {
    "v1.DRAPlugin": (dra_v1_pb2, dra_v1_pb2_grpc),
    "v1beta1.DRAPlugin": (dra_v1beta1_pb2, dra_v1beta1_pb2_grpc),
}


class PluginError(Exception):
    """A plugin is not there, or a call of it failed; the kubelet would try again."""


@dataclass(frozen=True)
class Claim:
    """A claim of a pod on this node, and the drivers of the devices that it was given."""

    uid: str
    namespace: str
    name: str
    drivers: frozenset[str]


@dataclass(frozen=True)
class PreparedDevice:
    """What a plugin answers for one device of a claim."""

    requests: tuple[str, ...]
    cdi_ids: tuple[str, ...]


@dataclass(frozen=True)
class _Plugin:
    endpoint: str
    version: str
    socket: tuple[int, int]
    """Of the registration: an agent that comes back makes another one under the same name."""

    def call(self, method: str, claims: Sequence[Claim]) -> dict[str, Any]:
        """Call a method for claims and return the answers by claim uid."""
        messages, services = _VERSIONS[self.version]
        request = getattr(messages, f"{method}Request")(
            claims=[messages.Claim(uid=claim.uid, namespace=claim.namespace, name=claim.name) for claim in claims]
        )
        try:
            with grpc.insecure_channel(f"unix:{self.endpoint}") as channel:
                answer = getattr(services.DRAPluginStub(channel), method)(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise PluginError(f"{method}: {_reason(error)}") from error
        return dict(answer.claims)


class Plugins:
    """The plugins of a node. Safe to use from several threads."""

    def __init__(self, kubelet_dir: Path) -> None:
        """Take the kubelet's folder; call look() now and then."""
        self._registry = kubelet_dir / "plugins_registry"
        self._lock = threading.Lock()
        self._by_name: dict[str, _Plugin] = {}
        self._registry.mkdir(parents=True, exist_ok=True)

    def look(self) -> list[str]:
        """Register the plugins whose sockets are new, forget those whose sockets are gone; return what failed."""
        problems = []
        sockets = self._sockets()
        with self._lock:
            known = {plugin.socket for plugin in self._by_name.values()}
            self._by_name = {n: p for n, p in self._by_name.items() if p.socket in sockets.values()}
        for path, identity in sockets.items():
            if identity not in known:
                try:
                    self._register(path, identity)
                except (grpc.RpcError, PluginError) as error:
                    problems.append(f"plugin {path.name}: {_reason(error)}")
        return problems

    def prepare(self, claims: Sequence[Claim]) -> dict[str, list[PreparedDevice]]:
        """Prepare all claims of a pod; return their devices by claim uid.

        Raises:
            PluginError: names the first claim that failed, and why.
        """
        devices: dict[str, list[PreparedDevice]] = {claim.uid: [] for claim in claims}
        for claim, answer in self._call("NodePrepareResources", claims):
            devices[claim.uid] += [
                PreparedDevice(tuple(device.request_names), tuple(device.cdi_device_ids)) for device in answer.devices
            ]
        return devices

    def unprepare(self, claims: Sequence[Claim]) -> None:
        """Undo claims, whatever became of them; raises as prepare() does."""
        for _ in self._call("NodeUnprepareResources", claims):
            pass

    def _call(self, method: str, claims: Sequence[Claim]) -> list[tuple[Claim, Any]]:
        answered = []
        for driver in sorted({driver for claim in claims for driver in claim.drivers}):
            with self._lock:
                plugin = self._by_name.get(driver)
            if plugin is None:
                raise PluginError(f"DRA driver {driver} is not registered")
            its = [claim for claim in claims if driver in claim.drivers]
            answers = plugin.call(method, its)
            for claim in its:
                error = answers[claim.uid].error if claim.uid in answers else "the plugin gave no answer"
                if error:
                    raise PluginError(f"{method} failed for ResourceClaim {claim.name}: {error}")
                answered.append((claim, answers[claim.uid]))
        return answered

    def _sockets(self) -> dict[Path, tuple[int, int]]:
        found = {}
        for path in self._registry.glob("*.sock"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found[path] = (status.st_ino, status.st_ctime_ns)
        return found

    def _register(self, socket: Path, identity: tuple[int, int]) -> None:
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            stub = registration_pb2_grpc.RegistrationStub(channel)
            info = stub.GetInfo(registration_pb2.InfoRequest(), timeout=_REGISTRATION_TIMEOUT_S)
            version = next((version for version in info.supported_versions if version in _VERSIONS), None)
            refusal = "" if version else f"none of {', '.join(_VERSIONS)} is among {', '.join(info.supported_versions)}"
            status = registration_pb2.RegistrationStatus(plugin_registered=not refusal, error=refusal)
            stub.NotifyRegistrationStatus(status, timeout=_REGISTRATION_TIMEOUT_S)
        if version is None:
            raise PluginError(refusal)
        with self._lock:
            self._by_name[info.name] = _Plugin(info.endpoint, version, identity)


def _reason(error: Exception) -> str:
    return str(error.details()) if isinstance(error, grpc.Call) else str(error)
