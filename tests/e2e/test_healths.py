"""The health of a GPU in the status of the pods that have a share of it, as the kubelet tells it."""

from typing import Any

import pytest

from deploy.demo.scenario import Scenario
from deploy.local import versions
from libvgpu.stub import change_settings
from tests.e2e.workloads import Asked, Container, Workloads

pytestmark = pytest.mark.cluster

_GATE = "ResourceHealthStatus"


@pytest.fixture(autouse=True)
def needs_the_gate(scenario: Scenario) -> None:
    facts = scenario.cluster.layout.read_facts()
    assert facts is not None
    minor = versions.minor(facts.kubernetes)
    if minor < 35:
        pytest.skip("up to 1.34 the kubelet tells no health for claims that were made from a template")
    if not facts.feature_gates.get(_GATE, minor >= 36):
        pytest.skip(f"the feature gate {_GATE} is off")


def _healths(pod: dict[str, Any]) -> list[str]:
    return [
        resource["health"]
        for container in pod["status"].get("containerStatuses", [])
        for status in container.get("allocatedResourcesStatus", [])
        for resource in status["resources"]
    ]


def _wait_for_health(workloads: Workloads, health: str) -> dict[str, Any]:
    return workloads.wait_for("pod", health, lambda pod: _healths(pod) == [health])


def test_a_pod_tells_that_its_gpu_is_healthy(workloads: Workloads) -> None:
    workloads.start("pod", Asked(), Container(["sleep", "600"]))
    pod = _wait_for_health(workloads, "Healthy")
    (status,) = pod["status"]["containerStatuses"][0]["allocatedResourcesStatus"]
    assert status["name"] == "claim:gpu"
    (resource,) = status["resources"]
    assert resource["resourceID"].startswith("vgpu.dra-driver.io/gpu=gpu-")


@pytest.mark.slow  # the agent looks for this sort of fault every 20 s
def test_a_pod_tells_a_fault_of_its_gpu_and_its_end(workloads: Workloads) -> None:
    cards = [workloads.scenario.driver_root / "dev" / f"nvidia{index}" for index in range(2)]
    workloads.start("pod", Asked(), Container(["sleep", "600"]))
    _wait_for_health(workloads, "Healthy")
    for setting, health in ((1, "Unhealthy"), (0, "Healthy")):
        for card in cards:
            change_settings(card, remap_failed=setting)
        _wait_for_health(workloads, health)
