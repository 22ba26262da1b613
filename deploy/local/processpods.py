"""The life of one pod on a process node: prepare its claims, start its containers as processes, end them, report.

Called by processnode.py, one thread per pod. The order is the kubelet's: all claims of a pod are prepared before any
container starts and are tried again, all of them, when one fails; they are undone when the last container has ended;
the pod's object is deleted last. Containers are never restarted: a pod whose containers ended is over, and whoever
manages it (a Deployment) makes another.
"""

import contextlib
import logging
import os
import select
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api import kube
from api.errors import ConflictError, KubeError, NotFoundError
from api.kube import JSON, KubeClient
from deploy.local import podobjects
from deploy.local.cdiroots import UnknownDeviceError, read_edits
from deploy.local.containerprocesses import ContainerProcess, ContainerSettings, pod_dir
from deploy.local.draplugins import Claim, PluginError, Plugins

_FIRST_RETRY_S = 0.5
_LONGEST_RETRY_S = 8.0
_log = logging.getLogger(__name__)


class NotReadyError(Exception):
    """A claim of the pod cannot be used yet."""


# What passes, or is mended by somebody else: worth another try.
_PASSING = (PluginError, NotReadyError, UnknownDeviceError, KubeError)


@dataclass(frozen=True)
class NodeTools:
    """What the pods of a node have in common."""

    name: str
    state: Path
    cdi_dir: Path
    kube: KubeClient
    plugins: Plugins
    environment: Mapping[str, str]
    """Of every container, as an image would have it: with the PATH to the programs."""


class PodRunner(threading.Thread):
    """Runs one pod, from its start to the deletion of its object."""

    def __init__(self, node: NodeTools, pod: JSON) -> None:
        super().__init__(name=f"pod {pod['metadata']['namespace']}/{pod['metadata']['name']}")
        self._node = node
        self._pod = pod
        self._directory = pod_dir(node.state, pod["metadata"]["namespace"], pod["metadata"]["name"])
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._wakeup)
        self._grace_s: float | None = None
        self._node_stops = False
        self._claims: list[Claim] = []
        self._containers: list[ContainerProcess] = []
        self._running: list[ContainerProcess] = []

    def end(self, grace_s: float) -> None:
        """Begin to end the pod, because its object is being deleted."""
        self._grace_s = grace_s
        os.eventfd_write(self._wakeup, 1)

    def abandon(self) -> None:
        """End the pod's processes at once, because the node stops; claims and object stay as they are."""
        self._node_stops = True
        os.eventfd_write(self._wakeup, 1)

    def run(self) -> None:
        """Do it all; called by start()."""
        if not podobjects.is_over(self._pod):
            self._live()
        while not self._must_end():
            self._sleep(None)
        self._until_done(self._delete)

    def _must_end(self) -> bool:
        return self._node_stops or self._grace_s is not None

    def _live(self) -> None:
        edits = self._prepare()
        if edits is not None:
            try:
                self._start(edits)
                self._until_done(lambda: self._report(podobjects.running(self._pod)))
                self._wait_for_containers()
            finally:
                statuses = {container.name: container.finish() for container in self._containers}
            self._until_done(lambda: self._report(podobjects.ended(self._pod, statuses)))
        self._until_done(lambda: self._node.plugins.unprepare(self._claims))

    def _prepare(self) -> dict[str, list[dict[str, Any]]] | None:
        """Return CDI edits by container; None when the pod has to end before its claims are prepared."""
        told = ""
        delay_s = _FIRST_RETRY_S
        while not self._must_end():
            try:
                return self._try_to_prepare()
            except _PASSING as error:
                if str(error) != told:
                    told = str(error)
                    self._warn(f"Failed to prepare dynamic resources: {told}")
            self._sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_RETRY_S)
        return None

    def _try_to_prepare(self) -> dict[str, list[dict[str, Any]]]:
        claims = {name: self._read_claim(other) for name, other in podobjects.claim_names(self._pod).items()}
        self._claims = list(claims.values())
        answers = self._node.plugins.prepare(self._claims)
        devices = {name: answers[claim.uid] for name, claim in claims.items()}
        return {
            container["name"]: read_edits(self._node.cdi_dir, podobjects.cdi_ids(container, devices))
            for container in self._pod["spec"]["containers"]
        }

    def _read_claim(self, name: str) -> Claim:
        metadata = self._pod["metadata"]
        resource = kube.claims(self._node.kube.resource_api_version())
        claim = self._node.kube.get(resource, name, metadata["namespace"])
        status = claim.get("status", {})
        if metadata["uid"] not in {user["uid"] for user in status.get("reservedFor", [])}:
            raise NotReadyError(f"ResourceClaim {name} is not reserved for pod {metadata['name']}")
        results = status.get("allocation", {}).get("devices", {}).get("results", [])
        drivers = frozenset(result["driver"] for result in results)
        return Claim(claim["metadata"]["uid"], metadata["namespace"], name, drivers)

    def _start(self, edits: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True)
        for container in self._pod["spec"]["containers"]:
            settings = ContainerSettings(
                pod=self._directory,
                name=container["name"],
                argv=[*container.get("command", []), *container.get("args", [])],
                environment=podobjects.environment(self._pod, container, self._node.environment),
                edits=edits[container["name"]],
            )
            self._containers.append(ContainerProcess(settings))
        self._running = [container for container in self._containers if container.status is None]

    def _wait_for_containers(self) -> None:
        """Return when all have ended by themselves, or when they have been asked to and their time is over."""
        while self._running and not self._must_end():
            self._sleep(None)
        if self._node_stops:
            return
        for container in self._running:
            container.ask_to_end()
        deadline = time.monotonic() + (self._grace_s or 0)
        while self._running and not self._node_stops and (left_s := deadline - time.monotonic()) > 0:
            self._sleep(left_s)

    def _sleep(self, timeout_s: float | None) -> None:
        """Wait for end(), abandon() or the end of a container."""
        readable, _, _ = select.select([self._wakeup, *(one.fileno() for one in self._running)], [], [], timeout_s)
        if self._wakeup in readable:
            os.eventfd_read(self._wakeup)
        self._running = [one for one in self._running if one.fileno() not in readable]

    def _until_done(self, action: Callable[[], None]) -> None:
        """Do something until it succeeds; not at all when the node stops."""
        delay_s = _FIRST_RETRY_S
        while not self._node_stops:
            try:
                return action()
            except _PASSING as error:
                _log.warning("%s: %s", self.name, error)
            self._sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_RETRY_S)
        return None

    def _report(self, patch: JSON) -> None:
        with contextlib.suppress(NotFoundError, ConflictError):  # deleted by force, or another pod of that name
            self._node.kube.patch(kube.PODS, self._pod, patch, "status")

    def _delete(self) -> None:
        """Delete the object: a pod is gone for everybody only when its node has said so."""
        shutil.rmtree(self._directory, ignore_errors=True)
        metadata = self._pod["metadata"]
        target = {"metadata": {key: metadata[key] for key in ("name", "namespace", "uid")}}
        with contextlib.suppress(NotFoundError, ConflictError):
            self._node.kube.delete(kube.PODS, target, grace_s=0)

    def _warn(self, message: str) -> None:
        _log.warning("%s: %s", self.name, message)
        event = podobjects.event(self._pod, self._node.name, "FailedPrepareDynamicResources", message)
        with contextlib.suppress(KubeError):  # the next try has the same to tell
            self._node.kube.create(kube.EVENTS, event)
