"""In the middle of an upgrade: an API server that knows more than the scheduler and the kubelet."""

import subprocess
import time
from collections import defaultdict
from typing import Any

import pytest

from deploy.demo.asking import Dialect
from libvgpu.shares import read_limits
from tests.e2e.workloads import Asked, Container, Workloads
from tests.upgrade.following import TIMEOUT_S, containers, installed, wait_until_offered

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

_GPU_BYTES = 10 << 30
_RETRY_S = 120
"""A kubelet asks again for a claim that was refused with the next sync of its pod, after 60 to 90 s."""
_WORKING = Container(["worker", "run", "300"])
_BEFORE = "before"
_TOO_MUCH = "too-much"
_FOUR = [f"four-{number}" for number in range(4)]
"""Pods of 4 GiB; beside the one of 1 GiB there is not room for all of them."""
_MIB = {_BEFORE: 1024, _TOO_MUCH: 12288, **dict.fromkeys(_FOUR, 4096)}
_SKEWS = [
    ("1.34", "1.34", {"DRAConsumableCapacity": True}, Dialect("v1", "consumable")),
    ("1.35", "1.36", {}, Dialect("v1", "consumable")),
    # This scheduler knows no counters at all, and gives out what does not go together.
    ("1.32", "1.33", {"DRAPartitionableDevices": True}, Dialect("v1beta2", "counters")),
]


def _start(workloads: Workloads, *names: str) -> None:
    for name in names:
        workloads.start(name, Asked({"gpu": {"memory": f"{_MIB[name]}Mi", "cores": "20"}}), _WORKING)


def _pods(workloads: Workloads) -> dict[str, Any]:
    found = workloads.scenario.json("-n", workloads.namespace, "get", "pods")["items"]
    return {pod["metadata"]["name"]: pod for pod in found}


def _running(workloads: Workloads) -> set[str]:
    return {name for name, pod in _pods(workloads).items() if pod["status"]["phase"] == "Running"}


def _wait_until_decided(workloads: Workloads) -> None:
    """Wait until each pod runs, or the scheduler or the node agent has said why it does not."""
    deadline = time.monotonic() + TIMEOUT_S
    while undecided := [name for name, pod in _pods(workloads).items() if not _is_decided(workloads, name, pod)]:
        assert time.monotonic() < deadline, f"found {undecided} neither running nor refused within {TIMEOUT_S} s"
        time.sleep(1)  # of three places that may change, no one can be awaited


def _is_decided(workloads: Workloads, name: str, pod: dict[str, Any]) -> bool:
    if pod["status"]["phase"] == "Running":
        return True
    if "nodeName" in pod["spec"]:
        refused = f"reason=FailedPrepareDynamicResources,involvedObject.name={name}"
        return bool(workloads.scenario.json("-n", "tests", "get", "events", "--field-selector", refused)["items"])
    conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", [])}
    return conditions.get("PodScheduled") == "False"


def _run_in(workloads: Workloads, pod: str, *command: str) -> "subprocess.CompletedProcess[str]":
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        done = workloads.scenario.run("-n", workloads.namespace, "exec", pod, "--", *command)
        # A kubelet that has just started does not know its pods for a moment.
        if "pod does not exist" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(0.5)


def _assert_kept(workloads: Workloads) -> None:
    """Nobody has more than it asked for, nobody is without a limit, and no memory is there for two."""
    running = _running(workloads)
    assert _BEFORE in running
    assert _TOO_MUCH not in running
    for name in running:
        query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        assert _run_in(workloads, name, *query).stdout.split() == [str(_MIB[name])]
        # In megabytes of a million bytes.
        assert _run_in(workloads, name, "worker", "grab", str(_MIB[name] * 11 // 10)).returncode == 3
    promised: dict[str, int] = defaultdict(int)
    for share in (workloads.scenario.cluster.node().agent / "shares").iterdir():
        limits = read_limits(share)
        promised[limits.device_uuid] += limits.memory_bytes
    assert {uuid: size for uuid, size in promised.items() if size > _GPU_BYTES} == {}


@pytest.mark.parametrize(("old", "new", "gates", "dialect"), _SKEWS)
def test_a_scheduler_and_a_kubelet_that_know_less_than_the_api_server_give_nobody_more_than_he_asked_for(
    old: str, new: str, gates: dict[str, bool], dialect: Dialect
) -> None:
    with installed("skew", old) as scenario:
        scenario.cluster.kubectl("create", "namespace", "tests")
        workloads = Workloads(scenario, "tests")
        _start(workloads, _BEFORE)
        before = containers(workloads, _BEFORE)
        scenario.cluster.upgrade(new, gates, only=["kube-apiserver"])
        wait_until_offered(scenario, dialect)
        _start(workloads, _TOO_MUCH, *_FOUR)
        for components in (["kube-controller-manager", "kube-scheduler"], ["kubelet"]):
            _wait_until_decided(workloads)
            _assert_kept(workloads)
            scenario.cluster.upgrade(new, gates, only=components)
        _wait_until_decided(workloads)
        _assert_kept(workloads)
        assert containers(workloads, _BEFORE) == before
        _assert_placed_as_ever(workloads)


def _assert_placed_as_ever(workloads: Workloads) -> None:
    """Who waits gets the place of those who had one, and who comes then gets the places that are left."""
    # A scheduler that sees no amounts may have given a GPU to the one that asked for too much.
    workloads.kubectl("delete", "pods,resourceclaimtemplates", _TOO_MUCH, "--wait=true")
    # Again and again: what a pod was refused before all was upgraded still stands in its status for a moment.
    deadline, waiting = time.monotonic() + _RETRY_S, set(_FOUR)
    while waiting:
        if placed := sorted(_running(workloads) & waiting):
            workloads.kubectl("delete", "pods,resourceclaimtemplates", *placed, "--wait=true")
            deadline, waiting = time.monotonic() + _RETRY_S, waiting - set(placed)
        assert time.monotonic() < deadline, f"found {waiting} waiting, expected each of {_FOUR} to get a place"
        time.sleep(1)  # any of several pods may be it
    _start(workloads, *_FOUR)
    # Three of 4 GiB find room on two GPUs of 10 GiB, of one of which the pod from before holds a half.
    deadline = time.monotonic() + TIMEOUT_S
    while len(_running(workloads) & set(_FOUR)) < 3:
        assert time.monotonic() < deadline, f"found {_running(workloads)} running, expected three of {_FOUR}"
        time.sleep(1)  # any of several pods may be it
    _assert_kept(workloads)
