"""What a claim adds to the start of a pod, and what the node agent costs while it waits. Called by `make bench`."""

import statistics
import time
from typing import Any

from api.kube import PODS, Selection
from deploy.demo.scenario import Scenario
from deploy.demo.tenants import IMAGE
from tests.bench.processes import cpu_s, resident_mb
from tests.e2e.workloads import Asked, Container, Workloads

_ROUNDS = 10
_IDLE_S = 30.0
_NAMESPACE = "bench"
_COMMAND = ["sleep", "600"]
_PLAIN_POD: dict[str, Any] = {
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": 0,
    "containers": [{"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": _COMMAND}],
}


def measure_starts(scenario: Scenario) -> None:
    """Create pods in turn, with and without a claim, and print how long each took from creation to Running."""
    scenario.cluster.kubectl("create", "namespace", _NAMESPACE)
    workloads = Workloads(scenario, _NAMESPACE)
    workloads.start("warm-up", Asked(), Container(_COMMAND))
    workloads.wait_for_phase("warm-up", "Running")
    workloads.kubectl("delete", "pod", "warm-up", "--grace-period=0", "--wait=true")
    plain, claiming = [], []
    for number in range(_ROUNDS):
        plain.append(_start(workloads, f"plain-{number}", _PLAIN_POD))
        claim = {"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "warm-up"}]}
        container = {**_PLAIN_POD["containers"][0], "resources": {"claims": [{"name": "gpu"}]}}
        claiming.append(_start(workloads, f"claiming-{number}", {**_PLAIN_POD, **claim, "containers": [container]}))
    _print("without a claim", plain)
    _print("with a claim", claiming)
    _print("difference, pair by pair", [b - a for a, b in zip(plain, claiming, strict=True)])


def measure_idle_agent(scenario: Scenario) -> None:
    """Print the agent's resident memory, and its CPU time over a while without work."""
    process = scenario.agent_process()
    before_s = cpu_s(process)
    time.sleep(_IDLE_S)  # the window of the measurement
    cpu_percent = 100 * (cpu_s(process) - before_s) / _IDLE_S
    print(f"  resident memory {resident_mb(process):.0f} MB, CPU {cpu_percent:.2f} % of a core")


def _start(workloads: Workloads, name: str, spec: dict[str, Any]) -> float:
    """Return the seconds from the creation of a pod until the API shows it Running; the pod is removed then."""
    resource_version = workloads.kube.list(PODS, Selection(workloads.namespace))["metadata"]["resourceVersion"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": workloads.namespace},
        "spec": spec,
    }
    began_s = time.monotonic()
    workloads.kube.create(PODS, pod)
    selection = Selection(workloads.namespace, fields=f"metadata.name={name}")
    for event in workloads.kube.watch(PODS, resource_version, selection, 60):
        if event.object["status"].get("phase") == "Running":
            break
    passed_s = time.monotonic() - began_s
    workloads.kubectl("delete", "pod", name, "--grace-period=0", "--wait=true")
    return passed_s


def _print(what: str, seconds: list[float]) -> None:
    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    print(f"  {what:<26} median {1e3 * middle:6.0f} ms, from {1e3 * low:6.0f} to {1e3 * high:6.0f} ms")
