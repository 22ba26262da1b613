"""A real node with a simulated GPU and the driver installed by its chart, once for all end-to-end tests."""

import os
from collections.abc import Iterator

import pytest

from deploy.demo.containers import bring_up
from deploy.demo.scenario import Scenario, start_tenants
from deploy.demo.tenants import GPU, NAMESPACE
from deploy.local.cluster import Cluster
from libvgpu.stub import StubGPU
from tests.e2e.workloads import Workloads

_SECOND_GPU = StubGPU(name=GPU.name, memory_bytes=GPU.memory_bytes, uuid="GPU-0e1d2c3b-4a59-4687-b5a4-c3d2e1f0a9b8")


@pytest.fixture(scope="session")
def scenario() -> Iterator[Scenario]:
    with Cluster(f"e2e-{os.getpid()}") as cluster:
        cluster.up(nodes=1, dies_with_caller=True)
        yield bring_up(cluster, [GPU, _SECOND_GPU], print)


@pytest.fixture(scope="module")
def tenants(scenario: Scenario) -> Iterator[Scenario]:
    """Both tenants of the demo at work, and the pod that waits."""
    start_tenants(scenario)
    yield scenario
    scenario.cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    Workloads(scenario, NAMESPACE).delete_all()


@pytest.fixture(scope="session")
def namespace(scenario: Scenario) -> str:
    """One namespace for all tests: to remove one takes many seconds, to empty it one."""
    scenario.cluster.kubectl("create", "namespace", "tests")
    return "tests"


@pytest.fixture
def workloads(scenario: Scenario, namespace: str) -> Iterator[Workloads]:
    """Pods of one test, removed with all their claims afterwards."""
    workloads = Workloads(scenario, namespace)
    yield workloads
    workloads.delete_all()
