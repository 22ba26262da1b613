"""Brings the demo up where containers cannot run: the same Kubernetes, driver and claims, but pods are processes.

Called by the demo, and by a test everywhere. No chart and no images: controller, node agent and node are started as
plain processes. They are none the wiser: the agent is called over its sockets and answers with CDI ids, as ever.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from api import nodeinventory
from api.httpkube import HTTPKubeClient
from api.kube import Selection, slices
from deploy.demo import tenants
from deploy.demo.scenario import BUILD, ROOT, Say, Scenario, build_worker, make_driver_root
from deploy.demo.tenants import Tenant
from deploy.local import containerprocesses
from deploy.local.cluster import Cluster
from deploy.local.controlplane import log_tail
from deploy.local.errors import LocalClusterError, StartError
from libvgpu.stub import StubGPU

CONTAINER = "worker"
CONTROLLER, AGENT, NODE = "controller", "node-agent", "process-node"
"""The names of the processes, for `status`, and of their logs."""
_OFFER_TIMEOUT_S = 150


@dataclass(frozen=True)
class ProcessScenario(Scenario):
    """The driver and its tenants in processes."""

    @override
    def run_in(self, tenant: Tenant, *command: str) -> subprocess.CompletedProcess[str]:
        environment = containerprocesses.read_environment(self._pod_dir(tenant), CONTAINER)
        program = shutil.which(command[0], path=environment["PATH"]) or command[0]
        return subprocess.run([program, *command[1:]], env=environment, capture_output=True, text=True, check=False)

    @override
    def logs(self, tenant: Tenant) -> str:
        return containerprocesses.log_path(self._pod_dir(tenant), CONTAINER).read_text()

    @override
    def follow(self, tenant: Tenant) -> "subprocess.Popen[str]":
        log = containerprocesses.log_path(self._pod_dir(tenant), CONTAINER)
        return subprocess.Popen(["tail", "--lines=1", "--follow", str(log)], stdout=subprocess.PIPE, text=True)

    @override
    def agent_process(self) -> Path:
        for process in self.cluster.status():
            if process.name == AGENT and process.pid is not None:
                return Path("/proc") / str(process.pid)
        raise LocalClusterError("the node agent does not run")

    def _pod_dir(self, tenant: Tenant) -> Path:
        pods = self.json("-n", tenants.NAMESPACE, "get", "pods", "-l", f"app={tenant.name}")["items"]
        (running,) = [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"]
        return containerprocesses.pod_dir(self.cluster.node().directory, tenants.NAMESPACE, running)


def bring_up(cluster: Cluster, gpus: list[StubGPU], say: Say) -> ProcessScenario:
    """Start a cluster whose one node runs pods as processes, and the driver beside it. May be repeated."""
    say("starting Kubernetes")
    cluster.up(nodes=0)
    driver_root = make_driver_root(cluster, gpus)
    worker = build_worker(BUILD / "demo")
    say("starting node, controller and node agent as processes")
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(nodeinventory.crd()))
    crd = f"crd/{nodeinventory.crd()['metadata']['name']}"
    cluster.kubectl("wait", crd, "--for=condition=Established", "--timeout=150s")
    _start(cluster, NODE, "deploy.local.processnode", _node_flags(cluster), programs=worker.parent)
    _start(cluster, CONTROLLER, "dra_driver", ["controller", *_common_flags(cluster)])
    _start(cluster, AGENT, "dra_driver", ["node-agent", *_common_flags(cluster), *_agent_flags(cluster, driver_root)])
    _wait_until_offered(cluster)
    return ProcessScenario(cluster, driver_root)


def _wait_until_offered(cluster: Cluster) -> None:
    """Wait until the node's GPUs are published: until then every part of the driver has done something."""
    client = HTTPKubeClient(str(cluster.kubeconfig))
    resource = slices(client.resource_api_version())
    selection = Selection(fields=f"spec.nodeName={cluster.node().name}")
    deadline = time.monotonic() + _OFFER_TIMEOUT_S
    listed = client.list(resource, selection)
    while not listed["items"]:
        ended = [process.name for process in cluster.status() if process.pid is None]
        if ended or time.monotonic() > deadline:
            what = f"{', '.join(ended)} ended" if ended else f"no GPU was published within {_OFFER_TIMEOUT_S} s"
            logs = [cluster.layout.state / "logs" / f"{name}.log" for name in (NODE, CONTROLLER, AGENT)]
            raise StartError("\n".join([f"{what}:", *(f"{log.stem}: {log_tail(log, 3)}" for log in logs)]))
        # A watch ends after a second, or with the first change.
        next(client.watch(resource, listed["metadata"]["resourceVersion"], selection, 1), None)
        listed = client.list(resource, selection)


def _start(cluster: Cluster, name: str, module: str, flags: list[str], programs: Path | None = None) -> None:
    path = os.environ.get("PATH", os.defpath)
    environment = {"PATH": f"{programs}{os.pathsep}{path}" if programs else path, "PYTHONPATH": str(ROOT)}
    cluster.start_process(name, [sys.executable, "-m", module, *flags], environment)


def _node_flags(cluster: Cluster) -> list[str]:
    node = cluster.node()
    kubeconfig = f"--kubeconfig={cluster.kubeconfig}"
    return [kubeconfig, f"--node-name={node.name}", f"--state-dir={node.directory}", _kubelet_flag(cluster)]


def _common_flags(cluster: Cluster) -> list[str]:
    return [f"--kubeconfig={cluster.kubeconfig}", "--listen=127.0.0.1:0"]


def _kubelet_flag(cluster: Cluster) -> str:
    # By the folder in which both are started: in somebody's home the whole path can be too long for a socket.
    return f"--kubelet-dir={Path('/proc/self/cwd') / cluster.node().kubelet.relative_to(cluster.layout.state)}"


def _agent_flags(cluster: Cluster, driver_root: Path) -> list[str]:
    node = cluster.node()
    return [
        f"--node-name={node.name}",
        _kubelet_flag(cluster),
        f"--cdi-dir={node.directory / 'cdi'}",
        f"--state-dir={node.agent}",
        f"--driver-root={driver_root}",
    ]
