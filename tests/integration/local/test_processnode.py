"""Nodes whose pods are processes: the demo as a user without privileges, and the life of pods on them."""

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo import processes
from deploy.demo.processes import ProcessScenario
from deploy.demo.tenants import GPU
from deploy.local import containerprocesses
from deploy.local.caching import cache_dir
from deploy.local.cluster import Cluster
from deploy.local.layout import Layout
from libvgpu.stub import read_card
from tests.e2e.workloads import Asked, Container, Workloads
from tests.integration.local.machine import traces

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[3]
# A user namespace takes root's privileges away and leaves its files readable, which another user's id would not.
UNPRIVILEGED = ("unshare", "--user", "--")
NAMESPACE = "default"


def _unprivileged_processes_can_be_had() -> bool:
    return subprocess.run([*UNPRIVILEGED, "true"], check=False, capture_output=True).returncode == 0


def _demo(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*UNPRIVILEGED, sys.executable, "-m", "deploy.demo", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "VGPU_NODES"}
    environment["VGPU_CACHE_DIR"] = str(cache)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def _has_ended(handle: int) -> bool:
    """Tell whether a process ends, though a machine is busy; closes the handle."""
    ended = bool(select.select([handle], [], [], 60)[0])
    os.close(handle)
    return ended


@pytest.mark.skipif(
    not _unprivileged_processes_can_be_had(), reason="this machine does not let us make user namespaces"
)
def test_the_demo_shows_the_same_without_privileges_and_leaves_nothing_behind() -> None:
    # A cache of its own, in a folder with a short path for sockets: nothing of another demo is touched.
    with tempfile.TemporaryDirectory(prefix="vgpu-", dir="/tmp") as folder:
        cache = Path(folder)
        programs = cache_dir() / "programs"
        programs.mkdir(parents=True, exist_ok=True)
        (cache / "programs").symlink_to(programs)
        layout = Layout.of("demo", cache / "clusters/demo")
        try:
            shown = _demo(cache)
            tenants = [os.pidfd_open(one.pid) for one in read_card(layout.state / "driver-root/dev/nvidia0").live]
        finally:
            removed = _demo(cache, "--down")
        assert (shown.returncode, shown.stderr) == (0, ""), shown.stdout
        assert "its pods are plain processes, not containers: not started as root" in shown.stdout
        assert "21 of 21 checks passed" in shown.stdout
        assert (removed.returncode, removed.stdout, removed.stderr) == (0, "", "")
        assert len(tenants) == 2
        assert all(_has_ended(tenant) for tenant in tenants)
        assert traces(layout) == []


@pytest.fixture(scope="module")
def scenario() -> Iterator[ProcessScenario]:
    with Cluster(f"processes-{os.getpid()}") as cluster:
        cluster.up(nodes=0, dies_with_caller=True)
        yield processes.bring_up(cluster, [GPU], print)


@pytest.fixture
def workloads(scenario: ProcessScenario) -> Iterator[Workloads]:
    workloads = Workloads(scenario, NAMESPACE)
    yield workloads
    workloads.delete_all()


def _output(workloads: Workloads, pod: str) -> str:
    directory = containerprocesses.pod_dir(workloads.scenario.cluster.node().directory, NAMESPACE, pod)
    return containerprocesses.log_path(directory, "main").read_text()


def _exit_status(pod: dict[str, object]) -> int:
    status = pod["status"]
    assert isinstance(status, dict)
    return int(status["containerStatuses"][0]["state"]["terminated"]["exitCode"])


def _prepared(scenario: ProcessScenario) -> list[str]:
    node = scenario.cluster.node()
    return [
        path.name for folder in ("agent/shares", "agent/checkpoint") for path in (node.directory / folder).iterdir()
    ]


def test_a_process_knows_its_pod_and_its_share(workloads: Workloads) -> None:
    workloads.start("look", Asked(), Container(["sh", "-c", "echo on $HOSTNAME; nvidia-smi"]))
    assert _exit_status(workloads.wait_for_phase("look", "Succeeded", "Failed")) == 0
    assert "on look\n" in _output(workloads, "look")
    assert "1024MiB |" in _output(workloads, "look")


def test_a_container_that_fails_makes_its_pod_fail_and_gives_its_share_back(workloads: Workloads) -> None:
    workloads.start("fail", Asked(), Container(["sh", "-c", "exit 7"]))
    assert _exit_status(workloads.wait_for_phase("fail", "Succeeded", "Failed")) == 7
    workloads.delete_all()
    assert _prepared(scenario=_process_scenario(workloads)) == []


def test_a_program_that_is_not_there_is_named_in_the_log(workloads: Workloads) -> None:
    workloads.start("lost", Asked(), Container(["no-such-program", "1"]))
    assert _exit_status(workloads.wait_for_phase("lost", "Succeeded", "Failed")) == 128
    expected = "found 'no-such-program 1', expected a command whose program is on this machine\n"
    assert _output(workloads, "lost") == expected


def test_a_deleted_pod_takes_all_its_processes_along(workloads: Workloads) -> None:
    script = "trap '' TERM; sh -c 'trap \"\" TERM; echo $$; sleep 600' & wait; sleep 600"
    workloads.start("stubborn", Asked(), Container(["sh", "-c", script]))
    workloads.wait_for_phase("stubborn", "Running")
    child = os.pidfd_open(int(_first_line(workloads, "stubborn")))
    workloads.delete_all()
    assert _has_ended(child)
    assert _prepared(_process_scenario(workloads)) == []


def test_what_the_plugin_refuses_is_told_on_the_pod(workloads: Workloads) -> None:
    workloads.start("refused", Asked(parameters={"memory": "1Gi", "colour": "green"}), Container(["true"]))
    note = workloads.event_note("refused", "FailedPrepareDynamicResources")
    assert note.startswith(
        "Failed to prepare dynamic resources: NodePrepareResources failed for ResourceClaim refused-"
    )
    assert "colour" in note


def test_an_agent_that_was_killed_is_registered_anew(workloads: Workloads) -> None:
    scenario = _process_scenario(workloads)
    agent = os.pidfd_open(int(scenario.agent_process().name))
    signal.pidfd_send_signal(agent, signal.SIGKILL)
    assert _has_ended(agent)  # one that is dying still looks as if it ran
    processes.bring_up(scenario.cluster, [GPU], print)
    workloads.start("after", Asked(), Container(["nvidia-smi"]))
    assert _exit_status(workloads.wait_for_phase("after", "Succeeded", "Failed")) == 0


def test_a_node_that_was_killed_takes_its_processes_along_and_starts_them_again(workloads: Workloads) -> None:
    scenario = _process_scenario(workloads)
    workloads.start("lasting", Asked(), Container(["sh", "-c", "echo $$; exec sleep 600"]))
    workloads.wait_for_phase("lasting", "Running")
    before = int(_first_line(workloads, "lasting"))
    handle = os.pidfd_open(before)
    (node,) = [one.pid for one in scenario.cluster.status() if one.name == processes.NODE]
    assert node is not None
    os.kill(node, signal.SIGKILL)
    assert _has_ended(handle)
    processes.bring_up(scenario.cluster, [GPU], print)
    again = os.pidfd_open(int(_first_line(workloads, "lasting", but_not=str(before))))
    workloads.delete_all()
    assert _has_ended(again)


def _process_scenario(workloads: Workloads) -> ProcessScenario:
    assert isinstance(workloads.scenario, ProcessScenario)
    return workloads.scenario


def _first_line(workloads: Workloads, pod: str, but_not: str = "") -> str:
    """Return the first line of a pod's log, as soon as it is there and is another than one from before."""
    directory = containerprocesses.pod_dir(workloads.scenario.cluster.node().directory, NAMESPACE, pod)
    log = containerprocesses.log_path(directory, "main")
    command = ["tail", "--quiet", "--lines=+1", "--follow=name", "--retry", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as tail:
        assert tail.stdout is not None
        line = next(line.strip() for line in tail.stdout if line.strip() != but_not)
        tail.terminate()
    return line
