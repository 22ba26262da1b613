"""The node agent is updated on a node at work: pods come and go meanwhile, and those that run notice nothing."""

import subprocess
from typing import Any

import pytest

from api.kube import Selection, slices
from deploy.demo.scenario import AGENT_LABEL, DRIVER_NAMESPACE
from tests.e2e.workloads import Asked, Container, Workloads

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

_SMI = Container(["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"])
_MOST_PODS = 60
"""So many pods one after the other take longer than any update."""
_PATIENCE_S = 150
"""Before 1.33 one agent goes before the next comes, and the kubelet tries a pod again after 60 to 90 s."""


def _agent_pods(workloads: Workloads) -> set[str]:
    found = workloads.scenario.json("-n", DRIVER_NAMESPACE, "get", "pods", "-l", AGENT_LABEL)
    return {pod["metadata"]["name"] for pod in found["items"]}


def _grab(workloads: Workloads, pod: str, size_mb: int) -> int:
    done = workloads.scenario.run("-n", workloads.namespace, "exec", pod, "--", "worker", "grab", str(size_mb))
    return done.returncode


def _roll(workloads: Workloads) -> "subprocess.Popen[str]":
    """Begin the update, and return the process that ends with it."""
    cluster = workloads.scenario.cluster
    agents = cluster.kubectl("-n", DRIVER_NAMESPACE, "get", "daemonsets", "-l", AGENT_LABEL, "-o", "name").strip()
    cluster.kubectl("-n", DRIVER_NAMESPACE, "rollout", "restart", agents)
    command = [str(cluster.program("kubectl")), "-n", DRIVER_NAMESPACE, "rollout", "status", agents, "--timeout=300s"]
    return subprocess.Popen(command, env=cluster.environment(), stdout=subprocess.PIPE, text=True)


def _measure(workloads: Workloads, name: str) -> str:
    """Run a pod that prints the size of its GPU in MiB."""
    workloads.start(name, Asked(), _SMI)
    return workloads.finish(name, _PATIENCE_S).strip()


def _restarts(pod: dict[str, Any]) -> int:
    return sum(status["restartCount"] for status in pod["status"]["containerStatuses"])


def test_an_update_of_the_agent_disturbs_no_pod(workloads: Workloads) -> None:
    resource = slices(workloads.scenario.dialect.version)
    workloads.start("before", Asked(), Container(["worker", "run", "300"]))
    workloads.wait_for_phase("before", "Running")
    before = _agent_pods(workloads)
    position = workloads.kube.list(resource)["metadata"]["resourceVersion"]

    sizes: list[str] = []
    with _roll(workloads) as rollout:
        # One after the other, so that at each moment of the update a claim is being prepared or undone.
        while rollout.poll() is None and len(sizes) < _MOST_PODS:
            sizes.append(_measure(workloads, f"meanwhile-{len(sizes)}"))
        output = rollout.communicate()[0]
    assert rollout.returncode == 0, output
    assert "successfully rolled out" in output
    for agent in before:
        workloads.scenario.cluster.kubectl(
            "-n", DRIVER_NAMESPACE, "wait", f"pod/{agent}", "--for=delete", "--timeout=150s"
        )
    sizes.append(_measure(workloads, "afterwards"))
    assert len(sizes) > 1
    assert set(sizes) == {"1024"}
    assert len(_agent_pods(workloads)) == 1
    # The kubelet deletes the slices of a driver that it has missed for too long; 1.32 does so at once.
    watch = workloads.kube.watch(resource, position, Selection(), 1)
    deleted = {event.object["metadata"]["name"] for event in watch if event.type == "DELETED"}
    left = {item["metadata"]["name"] for item in workloads.kube.list(resource)["items"]}
    assert deleted <= (left if resource.version == "v1beta1" else set())
    assert _restarts(workloads.wait_for_phase("before", "Running")) == 0
    assert _grab(workloads, "before", 500) == 0
    assert _grab(workloads, "before", 900) == 3
    workloads.delete_all()
    node = workloads.scenario.cluster.node()
    assert list((node.agent / "shares").iterdir()) == []
