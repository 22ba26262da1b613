"""A cluster that is upgraded in place, and the wait until the driver has followed. For the tests of this folder."""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from api.errors import KubeError
from api.httpkube import HTTPKubeClient
from api.kube import Selection, slices
from deploy.demo.asking import Dialect, dialect_of
from deploy.demo.containers import bring_up
from deploy.demo.scenario import DRIVER_NAMESPACE, Scenario
from deploy.demo.tenants import GPU
from deploy.local.cluster import Cluster
from deploy.local.versions import FeatureGates
from libvgpu.stub import StubGPU
from tests.e2e.workloads import Workloads

SECOND_GPU = StubGPU(name=GPU.name, memory_bytes=GPU.memory_bytes, uuid="GPU-0e1d2c3b-4a59-4687-b5a4-c3d2e1f0a9b8")
TIMEOUT_S = 120.0


@contextlib.contextmanager
def installed(name: str, kubernetes: str, gates: FeatureGates | None = None, *, crd: str = "") -> Iterator[Scenario]:
    """Start a cluster whose one node has two GPUs, with the driver; `crd`: a manifest that was there before it."""
    with Cluster(f"{name}-{os.getpid()}", kubernetes=kubernetes, feature_gates=gates or {}) as cluster:
        cluster.up(nodes=1, dies_with_caller=True)
        if crd:
            cluster.kubectl("apply", "-f", "-", stdin=crd)
        yield bring_up(cluster, [GPU, SECOND_GPU], print)


def wait_until_offered(scenario: Scenario, wanted: Dialect) -> None:
    """Wait until the driver has followed, by itself."""
    kube, node = HTTPKubeClient(str(scenario.cluster.kubeconfig)), scenario.cluster.node().name
    deadline, found = time.monotonic() + TIMEOUT_S, None
    while found != wanted:
        if time.monotonic() > deadline:
            raise AssertionError(f"found {found}, expected {wanted} within {TIMEOUT_S} s\n{_driver_logs(scenario)}")
        with contextlib.suppress(KubeError):
            found = dialect_of(kube, node)
            if found != wanted:
                position = kube.list(slices(found.version))["metadata"]["resourceVersion"]
                next(kube.watch(slices(found.version), position, Selection(), 1), None)
    vars(scenario)["dialect"] = wanted


def containers(workloads: Workloads, pod: str) -> Any:
    """Return what changes when a container is started again, once its pod runs."""
    found = workloads.wait_for_phase(pod, "Running")
    return [(one["containerID"], one["restartCount"], one["state"]) for one in found["status"]["containerStatuses"]]


def _driver_logs(scenario: Scenario) -> str:
    pods = ["--namespace", DRIVER_NAMESPACE, "--selector=app.kubernetes.io/instance=vgpu"]
    done = scenario.run("logs", *pods, "--prefix", "--tail=60")
    return done.stdout + done.stderr
