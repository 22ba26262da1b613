"""What happens to shares when a part of the cluster dies: they go on, and they stay limited."""

import os
import select
import signal
import time
from itertools import islice
from typing import Any

import pytest

from api.kube import Selection, slices
from deploy.demo.scenario import AGENT_LABEL, DRIVER_NAMESPACE, Scenario
from tests.e2e.workloads import Asked, Container, Workloads

pytestmark = pytest.mark.cluster

_WORKING = Container(["worker", "run", "300"])


def _grab(workloads: Workloads, pod: str, size_mb: int) -> tuple[int, str]:
    done = workloads.scenario.run("-n", workloads.namespace, "exec", pod, "--", "worker", "grab", str(size_mb))
    return done.returncode, done.stdout + done.stderr


def _start_working(workloads: Workloads, name: str) -> dict[str, Any]:
    workloads.start(name, Asked(), _WORKING)
    return workloads.wait_for_phase(name, "Running")


def _restarts(pod: dict[str, Any]) -> int:
    return sum(status["restartCount"] for status in pod["status"]["containerStatuses"])


def _kill(scenario: Scenario, process: str) -> None:
    """Kill a process of the cluster, by the id that was recorded when it was started."""
    (pid,) = [status.pid for status in scenario.cluster.status() if status.name.startswith(process)]
    assert pid is not None
    handle = os.pidfd_open(pid)
    signal.pidfd_send_signal(handle, signal.SIGKILL)
    select.select([handle], [], [])  # until it is gone: a process that is dying still looks like one that runs
    os.close(handle)


def _agent_pod(scenario: Scenario) -> dict[str, Any]:
    (pod,) = scenario.json("-n", DRIVER_NAMESPACE, "get", "pods", "-l", AGENT_LABEL)["items"]
    return dict(pod)


def _gpu_time_ns(scenario: Scenario) -> int:
    return sum(card.gpu_time_ns for card in scenario.cards())


def _wait_for_agent(scenario: Scenario, restarts: int) -> None:
    """Wait until it is back and ready; at a pod that came before, the kubelet looks again only after a minute."""
    for condition in (f"jsonpath={{.status.containerStatuses[0].restartCount}}={restarts}", "condition=Ready"):
        wait = ["wait", "pods", "-l", AGENT_LABEL, f"--for={condition}", "--timeout=150s"]
        scenario.cluster.kubectl("-n", DRIVER_NAMESPACE, *wait)


def _kept_of_claims(scenario: Scenario) -> list[str]:
    node = scenario.cluster.node()
    folders = [node.agent / "shares", node.agent / "checkpoint"]
    kept = [str(path) for folder in folders for path in folder.iterdir()]
    return kept + [str(path) for path in node.cdi.glob("*claim*")]


def test_nothing_is_kept_of_a_pod_that_is_gone(workloads: Workloads) -> None:
    _start_working(workloads, "short-lived")
    assert _kept_of_claims(workloads.scenario)
    workloads.delete_all()
    assert _kept_of_claims(workloads.scenario) == []


def test_a_killed_agent_comes_back_and_shares_stay_limited(workloads: Workloads) -> None:
    scenario = workloads.scenario
    _start_working(workloads, "before")
    restarts = _restarts(_agent_pod(scenario))
    os.kill(int(scenario.agent_process().name), signal.SIGKILL)
    assert _grab(workloads, "before", 900)[0] == 3
    _wait_for_agent(scenario, restarts + 1)
    _start_working(workloads, "after")
    assert _grab(workloads, "before", 900)[0] == 3
    assert _grab(workloads, "before", 500)[0] == 0
    assert _restarts(workloads.wait_for_phase("before", "Running")) == 0
    workloads.delete_all()
    assert _kept_of_claims(scenario) == []


def test_a_killed_kubelet_leaves_shares_alone(workloads: Workloads) -> None:
    scenario = workloads.scenario
    _start_working(workloads, "before")
    _kill(scenario, "kubelet")
    scenario.cluster.up(nodes=1)
    _start_working(workloads, "after")
    assert _restarts(workloads.wait_for_phase("before", "Running")) == 0
    assert _grab(workloads, "before", 900)[0] == 3


@pytest.mark.slow  # the kubelet tries again after ten seconds and more
def test_a_container_runtime_that_is_killed_leaves_shares_and_agent_alone(workloads: Workloads) -> None:
    scenario = workloads.scenario
    _start_working(workloads, "before")
    agent = _agent_pod(scenario)
    _kill(scenario, "containerd")
    try:
        workloads.start("meanwhile", Asked(), _WORKING)
        workloads.wait_for("meanwhile", "bound to the node", lambda pod: bool(pod["spec"].get("nodeName")))
        before_ns = _gpu_time_ns(scenario)
        checkpoint, deadline_s = scenario.cluster.node().agent / "checkpoint", time.monotonic() + 150
        while len(list(checkpoint.glob("*.json"))) < 2:  # until the agent has prepared what no runtime starts
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
    finally:
        scenario.cluster.up(nodes=1)
    _start_working(workloads, "after")
    workloads.wait_for_phase("meanwhile", "Running")

    assert _gpu_time_ns(scenario) > before_ns
    for name in ("before", "meanwhile", "after"):
        assert _grab(workloads, name, 900)[0] == 3
        assert _restarts(workloads.wait_for_phase(name, "Running")) == 0
    after = _agent_pod(scenario)
    assert (after["metadata"]["uid"], _restarts(after)) == (agent["metadata"]["uid"], _restarts(agent))
    workloads.delete_all()
    assert _kept_of_claims(scenario) == []


@pytest.mark.slow  # the outage itself
def test_a_minute_without_an_api_server_costs_tenants_and_agent_nothing(workloads: Workloads) -> None:
    scenario = workloads.scenario
    _start_working(workloads, "before")
    agent = _agent_pod(scenario)
    _kill(scenario, "kube-apiserver")
    try:
        before_ns, began = _gpu_time_ns(scenario), time.monotonic()
        time.sleep(60)  # the outage itself: longer than heartbeats, Leases and the kubelet's patience with a driver
        used_ns, outage_s = _gpu_time_ns(scenario) - before_ns, time.monotonic() - began
    finally:
        # What is Kubernetes' own comes back fresh: its back-off is a minute by now, and the test is of ours.
        for process in ("kube-controller-manager", "kube-scheduler", "kubelet"):
            _kill(scenario, process)
        scenario.cluster.up(nodes=1)
    # Of a share of 10 percent; a busy machine may let its program ask for less.
    assert 2 < used_ns / outage_s / 1e7 < 12
    _start_working(workloads, "after")
    assert _grab(workloads, "before", 900)[0] == 3
    assert _restarts(workloads.wait_for_phase("before", "Running")) == 0
    after = _agent_pod(scenario)
    assert (after["metadata"]["uid"], _restarts(after)) == (agent["metadata"]["uid"], _restarts(agent))
    workloads.delete_all()
    assert _kept_of_claims(scenario) == []


def test_slices_that_somebody_deletes_come_back(workloads: Workloads) -> None:
    resource = slices(workloads.scenario.dialect.version)
    listed = workloads.kube.list(resource)
    before = {item["metadata"]["name"]: _offer(item) for item in listed["items"]}
    assert before
    workloads.kubectl("delete", "resourceslices", "--all")
    watch = workloads.kube.watch(resource, listed["metadata"]["resourceVersion"], Selection(), 150)
    created = (event.object for event in watch if event.type == "ADDED")
    assert {item["metadata"]["name"]: _offer(item) for item in islice(created, len(before))} == before


def _offer(item: dict[str, Any]) -> dict[str, Any]:
    """Return what a slice offers: devices, or the counters that those of other slices draw on."""
    return {key: item["spec"].get(key) for key in ("devices", "sharedCounters")}


def test_a_share_whose_limits_are_damaged_does_not_run_at_all(workloads: Workloads) -> None:
    scenario = workloads.scenario
    workloads.start("damaged", Asked(), Container(["sleep", "600"]))  # what worked already might end by the damage
    workloads.wait_for_phase("damaged", "Running")
    (limits,) = (scenario.cluster.node().agent / "shares").glob("*/limits")
    content = limits.read_bytes()
    with limits.open("r+b") as file:  # in place: a container holds this very file
        file.write(b"\0" * len(content))
    status, output = _grab(workloads, "damaged", 1)
    with limits.open("r+b") as file:
        file.write(content)
    assert status == 1
    assert "limits" in output
    assert "result=CUDA_SUCCESS" not in output
