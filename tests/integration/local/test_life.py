"""A cluster starts, survives the loss of its parts, and goes without a trace."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.local import links, versions
from deploy.local.cluster import Cluster, remove_abandoned
from deploy.local.errors import LocalClusterError, StartError
from deploy.local.layout import Layout
from tests.integration.local.conftest import needs_containers
from tests.integration.local.machine import shared_state, traces
from tests.integration.local.pods import Pods

pytestmark = pytest.mark.cluster

NewCluster = Callable[[], Cluster]


def kill(cluster: Cluster, process: str) -> None:
    """End one process of the cluster by SIGKILL and wait until it is gone."""
    (pid,) = [found.pid for found in cluster.status() if found.name.split()[0] == process and found.pid]
    handle = os.pidfd_open(pid)
    signal.pidfd_send_signal(handle, signal.SIGKILL)
    select.select([handle], [], [])
    os.close(handle)


def started(cluster: Cluster) -> dict[str, int | None]:
    return {process.name: process.pid for process in cluster.status()}


@needs_containers
def test_up_on_a_running_cluster_leaves_every_process_as_it_is(cluster: Cluster) -> None:
    before = started(cluster)
    cluster.up(nodes=1)
    assert started(cluster) == before
    assert None not in before.values()


@needs_containers
def test_up_after_the_loss_of_the_api_server_brings_it_back_with_its_data(cluster: Cluster) -> None:
    cluster.kubectl("create", "configmap", "kept", "--from-literal=key=value")
    before = started(cluster)
    kill(cluster, "kube-apiserver")
    with pytest.raises(LocalClusterError, match="refused"):
        cluster.kubectl("get", "nodes")
    cluster.up(nodes=1)
    after = started(cluster)
    assert cluster.kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.key}") == "value"
    assert {name for name in after if after[name] != before[name]} >= {"kube-apiserver"}
    assert None not in after.values()


@needs_containers
@pytest.mark.parametrize("lost", ["kubelet", "containerd"])
def test_up_after_the_loss_of_a_part_of_the_node_brings_it_back_and_pods_go_on_and_run(
    cluster: Cluster, pods: Pods, lost: str
) -> None:
    pods.start(f"before-{lost}", ["sleep", "600"])
    pods.wait_for_phase(f"before-{lost}", "Running")
    containers = ("get", "pod", f"before-{lost}", "-o", "jsonpath={.status.containerStatuses}")
    before = cluster.kubectl(*containers)
    kill(cluster, lost)
    cluster.up(nodes=1)
    pods.start(f"after-{lost}", ["true"])
    pods.wait_for_phase(f"after-{lost}", "Succeeded")
    assert cluster.kubectl(*containers) == before


@needs_containers
def test_feature_gates_change_in_place_and_pods_go_on(cluster: Cluster, pods: Pods) -> None:
    pods.start("through", ["sleep", "600"])
    pods.wait_for_phase("through", "Running")
    containers = ("get", "pod", "through", "-o", "jsonpath={.status.containerStatuses}")
    before = cluster.kubectl(*containers)
    version, gates = versions.chosen()
    gate = 'kubernetes_feature_enabled{name="DRAConsumableCapacity",stage="BETA"} 0'
    assert gate not in cluster.kubectl("get", "--raw", "/metrics").splitlines()
    cluster.upgrade(version, {**gates, "DRAConsumableCapacity": False})
    try:
        assert gate in cluster.kubectl("get", "--raw", "/metrics").splitlines()
        kubelet = f"/api/v1/nodes/{cluster.node().name}/proxy/metrics"
        assert gate in cluster.kubectl("get", "--raw", kubelet).splitlines()
        assert cluster.kubectl(*containers) == before
    finally:
        cluster.upgrade(version, gates)


@needs_containers
def test_a_cluster_with_a_running_pod_goes_without_a_trace_and_never_changes_what_all_share(
    new_cluster: NewCluster, shell_image: Path
) -> None:
    before = shared_state()
    cluster = new_cluster()
    cluster.up(nodes=1)
    cluster.load_image(shell_image)
    pods = Pods(cluster)
    pods.start("stays", ["sleep", "600"])
    pods.wait_for_phase("stays", "Running")
    assert shared_state() == before
    assert traces(cluster.layout) != []
    cluster.down()
    assert traces(cluster.layout) == []
    assert shared_state() == before


@needs_containers
def test_down_removes_a_cluster_whose_records_are_lost(new_cluster: NewCluster) -> None:
    cluster = new_cluster()
    cluster.up(nodes=1)
    kill(cluster, "containerd")
    for record in cluster.layout.state.glob("**/processes/*.json"):
        record.unlink()
    cluster.down()
    assert traces(cluster.layout) == []


@needs_containers
def test_down_removes_a_cluster_that_came_up_by_half(new_cluster: NewCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StartError("no link today")

    monkeypatch.setattr(links, "connect_node", fail)
    cluster = new_cluster()
    with pytest.raises(StartError, match="no link today"):
        cluster.up(nodes=1)
    assert traces(cluster.layout) != []
    cluster.down()
    assert traces(cluster.layout) == []


def test_down_of_a_cluster_that_never_was_is_no_error(new_cluster: NewCluster) -> None:
    cluster = new_cluster()
    cluster.down()
    assert traces(cluster.layout) == []


@pytest.mark.parametrize("nodes", [0, pytest.param(1, marks=needs_containers)])
def test_a_cluster_that_must_not_outlive_its_caller_ends_when_that_is_killed(
    new_cluster: NewCluster, nodes: int
) -> None:
    cluster = new_cluster()
    program = f"""
        import time
        from deploy.local.cluster import Cluster, remove_abandoned
        Cluster({cluster.layout.name!r}).up(nodes={nodes}, dies_with_caller=True)
        print("up", flush=True)
        time.sleep(600)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    ) as caller:
        assert caller.stdout is not None
        assert "up\n" in iter(caller.stdout.readline, "")
        handles = [os.pidfd_open(process.pid) for process in cluster.status() if process.pid]
        assert len(handles) == 4 + 2 * nodes
        caller.kill()
    for handle in handles:
        with contextlib.closing(os.fdopen(handle)):
            assert select.select([handle], [], [], 60)[0] == [handle], "a process outlived its caller"
    # Its files, its bridge and its cgroup go when the next cluster starts.
    remove_abandoned()
    assert traces(cluster.layout) == []


@needs_containers
def test_a_cluster_is_not_changed_into_another_one(cluster: Cluster) -> None:
    name = cluster.layout.name
    with pytest.raises(StartError) as refused:
        cluster.up(nodes=2)
    assert str(refused.value) == (
        f"cluster {name} has 1 nodes, but 2 were asked for: take it down first, or choose another name"
    )
    with pytest.raises(StartError) as refused:
        Cluster(name, feature_gates={"Some": True}).up(nodes=1)
    version = versions.chosen()[0]
    assert str(refused.value) == (
        f"cluster {name} has Kubernetes {version}, but Kubernetes {version} with Some=true was asked for: upgrade it, "
        "take it down first, or choose another name"
    )


def test_a_cluster_that_was_never_up_says_so() -> None:
    cluster = Cluster("nobody")
    with pytest.raises(LocalClusterError) as refused:
        _ = cluster.server
    assert str(refused.value) == f"cluster nobody is not up (no {cluster.layout.state / 'cluster.json'})"


class _SameFirstChoice(Layout):
    """The layout of a cluster whose first choice is the network of another one."""

    id = ""


@needs_containers
def test_a_cluster_whose_first_choice_of_a_network_is_taken_gets_another(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = cluster.layout.read_facts()
    assert facts is not None
    taken = facts.addresses.subnet
    assert taken is not None
    monkeypatch.setattr(_SameFirstChoice, "id", f"{taken - links.FIRST_SUBNET:08x}")
    layout = _SameFirstChoice("other", cluster.layout.state)
    try:
        assert links.create_bridge(layout).subnet not in {taken, None}
    finally:
        links.run_ip("link", "del", layout.bridge)
