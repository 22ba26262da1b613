"""Brings the demo up on a real node: simulated GPU, images, chart. Called by the demo and the end-to-end tests."""

import contextlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from deploy.demo import tenants
from deploy.demo.scenario import (
    AGENT_LABEL,
    BUILD,
    DRIVER_NAMESPACE,
    ROOT,
    Say,
    Scenario,
    build_worker,
    make_driver_root,
)
from deploy.demo.tenants import Tenant
from deploy.local import imagecontents
from deploy.local.cluster import Cluster
from deploy.local.errors import LocalClusterError
from libvgpu.stub import StubGPU

CHART = ROOT / "deploy/helm/dra-driver-vgpu"


@dataclass(frozen=True)
class ContainerScenario(Scenario):
    """The driver in pods, tenants in containers."""

    @override
    def run_in(self, tenant: Tenant, *command: str) -> subprocess.CompletedProcess[str]:
        return self.run("-n", tenants.NAMESPACE, "exec", f"deployment/{tenant.name}", "--", *command)

    @override
    def logs(self, tenant: Tenant) -> str:
        return self.cluster.kubectl("-n", tenants.NAMESPACE, "logs", f"deployment/{tenant.name}")

    @override
    def follow(self, tenant: Tenant) -> "subprocess.Popen[str]":
        command = [str(self.cluster.program("kubectl")), "-n", tenants.NAMESPACE, "logs", "--follow", "--tail=1"]
        return subprocess.Popen(
            [*command, f"deployment/{tenant.name}"], env=self.cluster.environment(), stdout=subprocess.PIPE, text=True
        )

    @override
    def agent_process(self) -> Path:
        # The one process with the UID of its pod on its command line.
        pods = self.json("-n", DRIVER_NAMESPACE, "get", "pods", "-l", AGENT_LABEL)
        flag = f"--pod-uid={pods['items'][0]['metadata']['uid']}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if flag in (process / "cmdline").read_bytes().split(b"\0"):
                    return process
        raise LocalClusterError("the node agent does not run")


def bring_up(cluster: Cluster, gpus: list[StubGPU], say: Say) -> ContainerScenario:
    """Start a cluster whose one node has simulated GPUs, and install the driver with its chart. May be repeated."""
    say("starting Kubernetes")
    cluster.up(nodes=1)
    driver_root = make_driver_root(cluster, gpus)
    say("loading the images")
    worker = imagecontents.workload({"/usr/bin/worker": build_worker(BUILD / "demo")}, tenants.IMAGE)
    cluster.load_image(worker.archive())
    driver_image = cluster.load_image(imagecontents.application().archive())
    say("installing the chart")
    install_chart(cluster, driver_root, driver_image)
    return ContainerScenario(cluster, driver_root)


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
    cluster.helm(*release, "--wait", "--timeout", "5m", *flags)
