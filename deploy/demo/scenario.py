"""Brings the demo up: cluster, simulated GPU, images, chart, tenants. Called by the demo and the end-to-end tests."""

import contextlib
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.demo import tenants
from deploy.local import imagecontents
from deploy.local.cluster import Cluster
from deploy.local.errors import LocalClusterError
from libvgpu.stub import StubCard, StubGPU, create_driver_root, read_card

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
CHART = ROOT / "deploy/helm/dra-driver-vgpu"
DRIVER_NAMESPACE = "vgpu-system"
AGENT_LABEL = "app.kubernetes.io/component=node-agent"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Scenario:
    """A cluster with the driver installed on a node with simulated GPUs."""

    cluster: Cluster
    driver_root: Path

    def card(self, index: int = 0) -> StubCard:
        """Return what a simulated GPU counted for itself."""
        return read_card(self.driver_root / "dev" / f"nvidia{index}")

    def json(self, *arguments: str) -> dict[str, Any]:
        """Return what `kubectl ... -o json` prints."""
        found: dict[str, Any] = json.loads(self.cluster.kubectl(*arguments, "-o", "json"))
        return found

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run kubectl, whatever its exit status."""
        command = [str(self.cluster.program("kubectl")), *arguments]
        environment = self.cluster.environment()
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def run_in(self, tenant: tenants.Tenant, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a tenant's container, as a second process of the same share."""
        return self.run("-n", tenants.NAMESPACE, "exec", f"deployment/{tenant.name}", "--", *command)

    def logs(self, tenant: tenants.Tenant) -> str:
        """Return what a tenant printed so far."""
        return self.cluster.kubectl("-n", tenants.NAMESPACE, "logs", f"deployment/{tenant.name}")

    def follow(self, tenant: tenants.Tenant) -> "subprocess.Popen[str]":
        """Start to follow what a tenant prints; the caller ends it."""
        command = [str(self.cluster.program("kubectl")), "-n", tenants.NAMESPACE, "logs", "--follow", "--tail=1"]
        return subprocess.Popen(
            [*command, f"deployment/{tenant.name}"], env=self.cluster.environment(), stdout=subprocess.PIPE, text=True
        )

    def agent_process(self) -> Path:
        """Return the folder in /proc of the node agent: the one process with its pod's UID on its command line."""
        pods = self.json("-n", DRIVER_NAMESPACE, "get", "pods", "-l", AGENT_LABEL)
        flag = f"--pod-uid={pods['items'][0]['metadata']['uid']}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if flag in (process / "cmdline").read_bytes().split(b"\0"):
                    return process
        raise LocalClusterError("the node agent does not run")


def bring_up(cluster: Cluster, gpus: list[StubGPU], say: Say) -> Scenario:
    """Start a cluster whose one node has simulated GPUs, and install the driver with its chart. May be repeated."""
    say("starting Kubernetes")
    cluster.up(nodes=1)
    driver_root = cluster.layout.state / "driver-root"
    if not driver_root.exists():
        create_driver_root(driver_root, gpus)
    say("loading the images")
    worker = imagecontents.workload({"/usr/bin/worker": build_worker(BUILD / "demo")}, tenants.IMAGE)
    cluster.load_image(worker.archive())
    driver_image = cluster.load_image(imagecontents.application().archive())
    say("installing the chart")
    install_chart(cluster, driver_root, driver_image)
    return Scenario(cluster, driver_root)


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


def install_chart(cluster: Cluster, driver_root: Path, image: str, **values: str) -> None:
    """Install or upgrade the driver, and wait until controller and node agent are ready."""
    repository, _, tag = image.rpartition(":")
    settings = {
        "image.repository": repository,
        "image.tag": tag,
        "image.pullPolicy": "Never",
        "nodeAgent.driverRoot": str(driver_root),
        "controller.replicas": "1",
        **values,
    }
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    release = ["upgrade", "--install", "vgpu", str(CHART), "--namespace", DRIVER_NAMESPACE, "--create-namespace"]
    cluster.helm(*release, "--wait", "--timeout", "2m", *flags)


def start_tenants(scenario: Scenario) -> None:
    """Create what the manifest has, and wait until both tenants run."""
    scenario.cluster.kubectl("apply", "-f", str(tenants.MANIFEST))
    for tenant in tenants.TENANTS:
        deployment = f"deployment/{tenant.name}"
        scenario.cluster.kubectl("-n", tenants.NAMESPACE, "rollout", "status", deployment, "--timeout=60s")
