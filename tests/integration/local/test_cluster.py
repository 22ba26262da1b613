"""The local cluster: it comes up, runs pods, mends itself, and leaves nothing behind on the machine."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import imagecontents, prerequisites
from deploy.local.cluster import Cluster
from deploy.local.errors import LocalClusterError, MissingPackagesError
from deploy.local.prerequisites import Need

pytestmark = pytest.mark.cluster

_POD = """
apiVersion: v1
kind: Pod
metadata: {name: hello}
spec:
  restartPolicy: Never
  containers:
    - name: main
      image: IMAGE
      imagePullPolicy: Never
      command: [sh, -c, "echo hello from $(cat /etc/hostname); exit 7"]
"""


def _machine(state: Path) -> dict[str, set[str]]:
    """Return what of the machine a cluster could leave behind."""
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout.splitlines()
    namespaces = Path("/run/netns")
    return {
        "mounts": mounts,
        "links": {line.split(": ")[1] for line in links},
        "network namespaces": {path.name for path in namespaces.iterdir()} if namespaces.is_dir() else set(),
        "control groups": {folder for folder, _, _ in os.walk("/sys/fs/cgroup")},
        "processes": _processes_of(state),
        "files": {str(path) for path in (state, *state.parent.glob("*"))} if state.exists() else set(),
    }


def _processes_of(state: Path) -> set[str]:
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(state) in words:
            found.add(words.replace("\0", " "))
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(f"local-{os.getpid()}")
    before = _machine(cluster.layout.state)
    with cluster:
        cluster.up(nodes=1, dies_with_caller=True)
        yield cluster
    assert _machine(cluster.layout.state) == before


def test_a_pod_runs_to_its_end_with_output_and_exit_code(cluster: Cluster) -> None:
    image = cluster.load_image(imagecontents.workload({}).archive())
    cluster.kubectl("apply", "-f", "-", stdin=_POD.replace("IMAGE", image))
    done = "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}=7"
    cluster.kubectl("wait", "pod/hello", f"--for={done}", "--timeout=60s")
    assert cluster.kubectl("logs", "hello") == "hello from hello\n"


def test_a_second_up_changes_nothing(cluster: Cluster) -> None:
    before = cluster.status()
    cluster.up(nodes=1)
    assert cluster.status() == before


def test_up_mends_what_was_killed(cluster: Cluster) -> None:
    before = {status.name: status.pid for status in cluster.status()}
    api_server = before.pop("kube-apiserver")
    assert api_server is not None
    os.kill(api_server, signal.SIGKILL)
    cluster.up(nodes=1)
    after = {status.name: status.pid for status in cluster.status()}
    assert after.pop("kube-apiserver") not in {None, api_server}
    assert after == before
    assert "local" in cluster.kubectl("get", "nodes")


def test_an_error_of_kubectl_is_told(cluster: Cluster) -> None:
    with pytest.raises(LocalClusterError, match='pods "nobody" not found'):
        cluster.kubectl("get", "pod", "nobody")


def test_a_cluster_that_was_never_up_says_so() -> None:
    with pytest.raises(LocalClusterError, match="cluster nobody is not up"):
        _ = Cluster("nobody").server


def test_missing_packages_are_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = (Need("a magic wand", "magic-wand", lambda: False), Need("ip", "iproute2", lambda: False))
    monkeypatch.setattr(prerequisites, "NODES", lacking)
    with pytest.raises(MissingPackagesError) as error:
        prerequisites.check(nodes=True)
    assert str(error.value) == (
        "this machine lacks a magic wand, ip. On Debian or Ubuntu:\n"
        "  apt-get install -y --no-install-recommends iproute2 magic-wand"
    )
