"""Pods with claims, in a namespace of one test."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from api.errors import KubeError
from api.httpkube import HTTPKubeClient
from api.kube import EVENTS, PODS, Resource, Selection
from deploy.demo.asking import Dialect
from deploy.demo.scenario import Scenario
from deploy.demo.tenants import IMAGE

_TIMEOUT_S = 150
"""Longer than the minute and a half after which a kubelet tries again what failed once."""


@dataclass(frozen=True)
class Container:
    """A container of a pod, and the requests of its claim that it uses; none: the whole claim."""

    command: Sequence[str]
    requests: Sequence[str] = ()
    name: str = "main"
    security: dict[str, Any] = field(default_factory=dict)
    image: str = IMAGE


@dataclass(frozen=True)
class Asked:
    """What a claim asks for: capacity by request name, and parameters."""

    requests: dict[str, dict[str, str]] = field(default_factory=lambda: {"gpu": {"memory": "1Gi", "cores": "10"}})
    parameters: dict[str, Any] | None = None


class Workloads:
    """What a test creates, and waits for."""

    def __init__(self, scenario: Scenario, namespace: str) -> None:
        self.scenario = scenario
        self.namespace = namespace
        self.kube = HTTPKubeClient(str(scenario.cluster.kubeconfig))

    def delete_all(self) -> None:
        """Remove all pods, claims and templates, and wait until the node has let go of them."""
        # Their own deletion would give pods the whole grace period of their spec.
        self.kubectl("delete", "deployments,replicasets", "--all", "--cascade=orphan")
        kinds = "pods,resourceclaims,resourceclaimtemplates"
        self.kubectl("delete", kinds, "--all", "--grace-period=1", "--wait=true", f"--timeout={_TIMEOUT_S}s")

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.scenario.cluster.kubectl("-n", self.namespace, *arguments, stdin=stdin)

    def apply(self, *objects: dict[str, Any]) -> None:
        """Create objects that are written for v1 and consumable capacity, in the form that the cluster takes."""
        self.scenario.apply(self.namespace, objects)

    def start(self, name: str, asked: Asked, *containers: Container, **spec: Any) -> None:
        """Create a template and a pod that uses it; `spec`: further fields of the pod's."""
        pod = _pod(name, containers)
        self.apply(_template(name, asked), {**pod, "spec": {**pod["spec"], **spec}})

    def start_as_written(self, name: str, devices: dict[str, Any], *containers: Container) -> None:
        """Do the same with a claim as it is written: for the cluster's version, and with nothing of its offer mode."""
        template = {**_template(name, Asked()), "spec": {"spec": {"devices": devices}}}
        said = Dialect(self.scenario.dialect.version, "consumable").say(template)
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all([said, _pod(name, containers)]))

    def wait_for_phase(self, name: str, *phases: str) -> dict[str, Any]:
        """Return the pod as soon as it is in one of the phases."""
        return self.wait_for(name, " or ".join(phases), lambda pod: pod["status"].get("phase") in phases)

    def wait_for(
        self, name: str, what: str, holds: Callable[[dict[str, Any]], bool], timeout_s: int = _TIMEOUT_S
    ) -> dict[str, Any]:
        """Return the pod as soon as something holds for it."""
        for pod in self._objects(PODS, Selection(self.namespace, fields=f"metadata.name={name}"), timeout_s):
            if holds(pod):
                return pod
        raise AssertionError(f"pod {name} was not {what} in {timeout_s} s:\n{self._describe(name)}")

    def finish(self, name: str, timeout_s: int = _TIMEOUT_S) -> str:
        """Wait until a pod succeeded and return its output."""
        self.wait_for(name, "Succeeded", lambda pod: pod["status"].get("phase") == "Succeeded", timeout_s)
        return self.kubectl("logs", name, "--all-containers")

    def give_loader(self, pod: str) -> None:
        """Put a loader that reads no /etc/ld.so.preload into a container that runs a shell, as /tmp/ld."""
        deadline_s = time.monotonic() + _TIMEOUT_S
        while not (processes := [int(each.name) for each in Path("/proc").glob("[0-9]*") if _is_shell_of(each, pod)]):
            assert time.monotonic() < deadline_s, f"pod {pod} runs no shell"
            time.sleep(0.05)  # a container counts as running a moment before its program does
        root = Path(f"/proc/{min(processes)}/root")  # the shell's own, beside children that it is about to start
        loader = (root / "lib64/ld-linux-x86-64.so.2").read_bytes()
        path = root / "tmp/ld.new"
        path.write_bytes(loader.replace(b"/etc/ld.so.preload", b"/etc/ld.so.nothing"))
        path.chmod(0o755)
        path.rename(root / "tmp/ld")

    def event_note(self, name: str, reason: str, kind: str = "Pod") -> str:
        """Return the note of the first event with a reason about an object."""
        selection = Selection(self.namespace, fields=f"reason={reason},regarding.kind={kind}")
        for event in self._objects(EVENTS, selection):
            if event["regarding"]["name"].startswith(name):
                return str(event["note"])
        raise AssertionError(f"no event {reason} about {kind} {name} in {_TIMEOUT_S} s:\n{self._describe(name)}")

    def _objects(
        self, resource: Resource, selection: Selection, timeout_s: int = _TIMEOUT_S
    ) -> Iterator[dict[str, Any]]:
        """Yield the objects that there are, and then each one that is new or changed, for a while.

        A watch may break before, and an API server that has just come back refuses some: then all are listed anew.
        """
        end_s = time.monotonic() + timeout_s
        while (left_s := end_s - time.monotonic()) > 0:
            try:
                listed = self.kube.list(resource, selection)
                yield from listed["items"]
                version = listed["metadata"]["resourceVersion"]
                for event in self.kube.watch(resource, version, selection, int(left_s) + 1):
                    yield event.object
            except KubeError:
                time.sleep(0.2)  # no event tells that it answers again

    def _describe(self, name: str) -> str:
        done = self.scenario.run("-n", self.namespace, "describe", "pod", name)
        return done.stdout + done.stderr


def _is_shell_of(process: Path, pod: str) -> bool:
    try:
        is_shell = (process / "cmdline").read_bytes().startswith(b"sh\0")
        return is_shell and f"HOSTNAME={pod}\0".encode() in (process / "environ").read_bytes()
    except OSError:
        return False


def _template(name: str, asked: Asked) -> dict[str, Any]:
    devices: dict[str, Any] = {
        "requests": [
            {"name": request, "exactly": {"deviceClassName": "vgpu-nvidia", "capacity": {"requests": capacity}}}
            for request, capacity in asked.requests.items()
        ]
    }
    if asked.parameters is not None:
        head = {"apiVersion": "vgpu.dra-driver.io/v1alpha1", "kind": "VGPUConfig"}
        devices["config"] = [{"opaque": {"driver": "vgpu.dra-driver.io", "parameters": head | asked.parameters}}]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": name},
        "spec": {"spec": {"devices": devices}},
    }


def _pod(name: str, containers: Sequence[Container]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": name}],
            "containers": [
                {
                    "name": container.name,
                    "image": container.image,
                    "imagePullPolicy": "Never",
                    "command": list(container.command),
                    "securityContext": container.security,
                    "resources": {
                        "claims": [{"name": "gpu", "request": request} for request in container.requests]
                        or [{"name": "gpu"}]
                    },
                }
                for container in containers
            ],
        },
    }
