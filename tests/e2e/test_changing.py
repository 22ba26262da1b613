"""Shares that are changed while they live, on a real node: by its operator, from afar, or ended where they overstep."""

import re
import time

import pytest

from api import names
from deploy.demo.scenario import AGENT_LABEL, DRIVER_NAMESPACE
from deploy.demo.tenants import GPU
from tests.e2e.workloads import Asked, Container, Workloads

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

_SMI = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
_WORKING = Container(["worker", "run", "300"])
_PATIENCE_S = 150
"""What changes from afar comes with a heartbeat of the node agent, each 20 s."""


def _start_working(workloads: Workloads, name: str) -> str:
    """Start a pod, and return the name of its claim."""
    workloads.start(name, Asked(), _WORKING)
    pod = workloads.wait_for_phase(name, "Running")
    return str(pod["status"]["resourceClaimStatuses"][0]["resourceClaimName"])


def _share(workloads: Workloads, *arguments: str) -> str:
    """Run `dra-driver share` in the node agent's pod."""
    cluster = workloads.scenario.cluster
    agent = cluster.kubectl("-n", DRIVER_NAMESPACE, "get", "pods", "-l", AGENT_LABEL, "-o", "name").strip()
    return cluster.kubectl("-n", DRIVER_NAMESPACE, "exec", agent, "--", "dra-driver", "share", *arguments)


def _size_mib(workloads: Workloads, pod: str) -> int:
    return int(workloads.kubectl("exec", pod, "--", *_SMI))


def _wait_for_size(workloads: Workloads, pod: str, mib: int) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while (found := _size_mib(workloads, pod)) != mib:
        assert time.monotonic() < deadline_s, f"{pod} has {found} MiB, expected {mib}"
        time.sleep(0.5)


def _grab(workloads: Workloads, pod: str, size_mb: int) -> int:
    done = workloads.scenario.run("-n", workloads.namespace, "exec", pod, "--", "worker", "grab", str(size_mb))
    return done.returncode


def _gpu_time_ns(workloads: Workloads) -> int:
    return sum(card.gpu_time_ns for card in workloads.scenario.cards())


def _wait_for_work(workloads: Workloads) -> None:
    before_ns, deadline_s = _gpu_time_ns(workloads), time.monotonic() + _PATIENCE_S
    while _gpu_time_ns(workloads) == before_ns:
        assert time.monotonic() < deadline_s, "nobody uses a GPU"
        time.sleep(0.05)


def test_an_operator_resizes_suspends_and_resumes_a_share_while_its_processes_run(workloads: Workloads) -> None:
    _start_working(workloads, "changed")
    _wait_for_work(workloads)
    (share,) = (path.name for path in (workloads.scenario.cluster.node().agent / "shares").iterdir())

    assert _share(workloads, "set", share, "--memory", "512Mi").startswith(f"{share}: memory 512Mi, cores 10")
    assert _size_mib(workloads, "changed") == 512
    assert _grab(workloads, "changed", 500) == 3
    _share(workloads, "set", share, "--reset")
    assert _grab(workloads, "changed", 500) == 0

    assert _share(workloads, "suspend", share).strip().endswith("suspended")
    before_ns = -1
    while before_ns != (before_ns := _gpu_time_ns(workloads)):  # what was launched before ends
        time.sleep(0.5)
    time.sleep(1)  # in which it would have a tenth of the GPU
    assert _gpu_time_ns(workloads) == before_ns
    _share(workloads, "resume", share)
    _wait_for_work(workloads)
    assert workloads.wait_for_phase("changed", "Running", "Failed")["status"]["phase"] == "Running"


def test_an_annotation_resizes_a_share_and_its_removal_gives_back_and_a_mistake_is_told(workloads: Workloads) -> None:
    claim = _start_working(workloads, "afar")

    workloads.kubectl("annotate", "resourceclaim", claim, f'{names.ANNOTATION_LIMITS}={{"memory": "512Mi"}}')
    _wait_for_size(workloads, "afar", 512)
    assert _grab(workloads, "afar", 500) == 3

    text = f'{names.ANNOTATION_LIMITS}={{"memory": "64Gi"}}'
    workloads.kubectl("annotate", "resourceclaim", claim, text, "--overwrite")
    note = workloads.event_note(claim, names.EVENT_LIMITS_INVALID, "ResourceClaim")
    # A slot may hold more than the claim asked for.
    assert re.search(r"memory: found 64Gi, expected at most the \d+[GM]i that the claim holds$", note), note
    assert _size_mib(workloads, "afar") == 512

    workloads.kubectl("annotate", "resourceclaim", claim, f"{names.ANNOTATION_LIMITS}-")
    _wait_for_size(workloads, "afar", 1024)


def test_a_share_that_goes_around_the_library_loses_its_processes_where_it_says_so_and_no_other_does(
    workloads: Workloads,
) -> None:
    _start_working(workloads, "beside")
    # The driver's own library by a loader that preloads nothing: it shows all of the GPU, and gives three shares of it.
    script = (
        "until [ -x /tmp/ld ]; do sleep 0.1; done;"
        f" LD_LIBRARY_PATH={names.CONTAINER_DRIVER_DIR} /tmp/ld $(command -v worker) run 3200; echo status $?"
    )
    workloads.start("around", Asked(parameters={"overuse": "Kill"}), Container(["sh", "-c", script]))
    pod = workloads.wait_for_phase("around", "Running")
    claim = str(pod["status"]["resourceClaimStatuses"][0]["resourceClaimName"])
    workloads.give_loader("around")

    output = workloads.finish("around")

    assert f"total_mib={GPU.memory_bytes >> 20}" in output
    assert "status 137" in output.splitlines()  # the shell's own word on it may come before or after
    note = workloads.event_note(claim, names.EVENT_OVERUSE, "ResourceClaim")
    assert "expected at most 1Gi" in note
    assert note.endswith("; its processes were ended, as the claim says")
    assert _grab(workloads, "beside", 500) == 0
    pod = workloads.wait_for_phase("beside", "Running", "Failed")
    assert (pod["status"]["phase"], pod["status"]["containerStatuses"][0]["restartCount"]) == ("Running", 0)
