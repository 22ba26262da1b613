"""The running demo as one object: what the checks and the end-to-end tests look at, whatever its node is made of.

`containers` and `processes` bring it up, on a real node and on one whose pods are processes.
"""

import json
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from api.httpkube import HTTPKubeClient
from deploy.demo import tenants
from deploy.demo.asking import Dialect, dialect_of
from deploy.demo.tenants import Tenant
from deploy.local.cluster import Cluster
from libvgpu.stub import StubCard, StubGPU, create_driver_root, read_card

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
DRIVER_NAMESPACE = "vgpu-system"
AGENT_LABEL = "app.kubernetes.io/component=node-agent"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Scenario(ABC):
    """A cluster with the driver installed on a node with simulated GPUs."""

    cluster: Cluster
    driver_root: Path

    def cards(self) -> list[StubCard]:
        """Return what each of the simulated GPUs counted for itself."""
        return [read_card(path) for path in sorted((self.driver_root / "dev").glob("nvidia[0-9]*"))]

    @cached_property
    def dialect(self) -> Dialect:
        """How claims are written for this cluster."""
        return dialect_of(HTTPKubeClient(str(self.cluster.kubeconfig)), self.cluster.node().name)

    def apply(self, namespace: str, objects: Iterable[Mapping[str, Any]]) -> None:
        """Create objects that were written for v1 and consumable capacity, in the form that this cluster takes."""
        text = yaml.safe_dump_all([self.dialect.say(obj) for obj in objects])
        self.cluster.kubectl("-n", namespace, "apply", "-f", "-", stdin=text)

    def json(self, *arguments: str) -> dict[str, Any]:
        """Return what `kubectl ... -o json` prints."""
        found: dict[str, Any] = json.loads(self.cluster.kubectl(*arguments, "-o", "json"))
        return found

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run kubectl, whatever its exit status."""
        command = [str(self.cluster.program("kubectl")), *arguments]
        environment = self.cluster.environment()
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    @abstractmethod
    def run_in(self, tenant: Tenant, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a tenant's container, as a second process of the same share."""

    @abstractmethod
    def logs(self, tenant: Tenant) -> str:
        """Return what a tenant printed so far."""

    @abstractmethod
    def follow(self, tenant: Tenant) -> "subprocess.Popen[str]":
        """Start to follow what a tenant prints, from its last line on; the caller ends it."""

    @abstractmethod
    def agent_process(self) -> Path:
        """Return the folder in /proc of the node agent."""


def make_driver_root(cluster: Cluster, gpus: list[StubGPU]) -> Path:
    """Return the folder in which the driver of the node lies, with these GPUs where it is new."""
    driver_root = cluster.layout.state / "driver-root"
    if not driver_root.exists():
        create_driver_root(driver_root, gpus)
    return driver_root


def build_worker(folder: Path) -> Path:
    """Compile the tenants' program, linked against the driver's libcuda as any CUDA program is."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "worker"
    source = ROOT / "deploy/demo/worker.c"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        flags = ["-std=c11", "-O2", "-D_GNU_SOURCE", f"-I{ROOT / 'libvgpu/include'}"]
        libcuda = BUILD / "stub/libcuda.so.1"
        subprocess.run(["cc", *flags, str(source), str(libcuda), "-o", str(program)], check=True)
    return program


def start_tenants(scenario: Scenario) -> None:
    """Create what the manifest has, and wait until both tenants run."""
    scenario.apply(tenants.NAMESPACE, yaml.safe_load_all(tenants.MANIFEST.read_text()))
    for tenant in tenants.TENANTS:
        deployment = f"deployment/{tenant.name}"
        scenario.cluster.kubectl("-n", tenants.NAMESPACE, "rollout", "status", deployment, "--timeout=150s")
