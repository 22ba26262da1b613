"""Pods with every form of share, on a real node: what the containers see and what the node keeps."""

import re
import time
from pathlib import Path

import pytest
import yaml

from deploy.demo.scenario import ROOT
from deploy.demo.tenants import IMAGE
from tests.e2e.workloads import Asked, Container, Workloads

pytestmark = pytest.mark.cluster

_SMI = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
_HELD_BYTES = 700 * 10**6
"""What `worker run 700` holds."""
_EXAMPLES = sorted((ROOT / "deploy/examples").glob("*.yaml"))
_NO_DISTINCT = "distinctAttribute comes with consumable capacity"
_NO_FIRST_AVAILABLE = "firstAvailable comes with Kubernetes 1.34"
_MISSING = {
    "": {
        "mig": "no simulated GPU is in MIG mode",
        "one-link-island": "no links join simulated GPUs",
        "one-numa-node": "simulated GPUs are on no NUMA node",
    },
    "v1beta1": {"first-available": _NO_FIRST_AVAILABLE},
    "v1beta2": {"first-available": _NO_FIRST_AVAILABLE},
    "counters": {"two-shares": _NO_DISTINCT},
    "slots": {
        "two-containers-one-share": "no slot of the default layout of a 10 GiB GPU has 6 GiB",
        "two-shares": _NO_DISTINCT,
        "whole-gpu": "a GPU that is cut into slots is no device itself",
    },
}
"""Examples that cannot be served here: anywhere, in an API version, in an offer mode."""


def test_two_containers_of_a_pod_share_one_set_of_books(workloads: Workloads) -> None:
    holder = Container(["worker", "run", "700"], name="holder")
    # Tries until the other one holds its part; what is left of 1 GiB is then less than what it wants.
    script = "until worker grab 700; [ $? = 3 ]; do sleep 0.2; done; echo refused"
    other = Container(["sh", "-c", script], name="other")
    workloads.start("pair", Asked(), holder, other)
    workloads.wait_for_phase("pair", "Running")
    ended = "--for=jsonpath={.status.containerStatuses[1].state.terminated.exitCode}=0"
    workloads.kubectl("wait", "pod/pair", ended, "--timeout=150s")
    assert "refused" in workloads.kubectl("logs", "pair", "-c", "other")


def test_two_shares_of_one_gpu_in_one_container_add_up(workloads: Workloads) -> None:
    requests = {"first": {"memory": "1Gi", "cores": "10"}, "second": {"memory": "2Gi", "cores": "20"}}
    workloads.start("both", Asked(requests), Container([*_SMI]))
    assert workloads.finish("both").strip() == "3072"


def test_a_container_that_names_one_request_gets_that_share_only(workloads: Workloads) -> None:
    requests = {"first": {"memory": "1Gi", "cores": "10"}, "second": {"memory": "2Gi", "cores": "20"}}
    one = Container([*_SMI], requests=["first"], name="one")
    two = Container([*_SMI], requests=["second"], name="two")
    workloads.start("apart", Asked(requests), one, two)
    assert sorted(workloads.finish("apart").split()) == ["1024", "2048"]


def test_when_one_gpu_has_no_room_left_a_pod_goes_to_the_next(workloads: Workloads) -> None:
    asked = Asked({"gpu": {"memory": "4Gi", "cores": "30"}})
    for number in range(3):
        workloads.start(f"filling-{number}", asked, Container(["worker", "run", "300"]))
    for number in range(3):
        workloads.wait_for_phase(f"filling-{number}", "Running")


def test_parameters_narrow_the_share(workloads: Workloads) -> None:
    workloads.start("narrow", Asked(parameters={"memory": "512Mi"}), Container([*_SMI]))
    assert workloads.finish("narrow").strip() == "512"


def test_wrong_parameters_keep_the_pod_from_running_and_say_why(workloads: Workloads) -> None:
    workloads.start("wrong", Asked(parameters={"cores": 0}), Container([*_SMI]))
    note = workloads.event_note("wrong", "FailedPrepareDynamicResources")
    assert "cores: found 0, expected a whole number from 1 to 100 (percent of one device)" in note
    assert workloads.wait_for_phase("wrong", "Pending")


def test_a_tenant_cannot_change_its_limits(workloads: Workloads) -> None:
    script = (
        "for file in /run/vgpu/shares/*/limits /etc/ld.so.preload /usr/lib/vgpu/*; do"
        " (echo x > $file) 2>/dev/null && echo wrote $file; rm -f $file 2>/dev/null && echo removed $file; done;"
        " unset LD_PRELOAD; VGPU_SHARES_DIR=/tmp worker grab 1100; echo status $?"
    )
    workloads.start("hostile", Asked(), Container(["sh", "-c", script]))
    output = workloads.finish("hostile")
    assert not re.search("wrote|removed", output)
    assert "total_mib=1024" in output
    assert output.strip().endswith("status 3")


def test_a_user_without_rights_on_a_read_only_root_has_a_share_like_others(workloads: Workloads) -> None:
    security = {
        "runAsUser": 12345,
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    script = "worker grab 700; worker grab 1100; echo status $?"
    workloads.start("nobody", Asked(), Container(["sh", "-c", script], security=security))
    output = workloads.finish("nobody")
    assert "grab mb=700 result=CUDA_SUCCESS" in output
    assert output.strip().endswith("status 3")


def test_a_pod_with_users_of_its_own_has_a_share_like_others_and_cannot_change_it(workloads: Workloads) -> None:
    if workloads.kube.server_minor() < 33:
        pytest.skip("user namespaces are off before Kubernetes 1.33")
    # The first column is the user there, the second on the node.
    users = "read inside outside size < /proc/self/uid_map; [ $inside = 0 ] && [ $outside -ge 65536 ] && echo apart"
    change = (
        "for file in /run/vgpu/shares/*/limits /etc/ld.so.preload /usr/lib/vgpu/*; do"
        " (echo x > $file) 2>/dev/null && echo wrote $file; rm -f $file 2>/dev/null && echo removed $file; done"
    )
    hold = f"{users}; {change}; worker run 700"
    other = "until worker grab 700; [ $? = 3 ]; do sleep 0.2; done; echo refused"
    containers = [
        Container(["sh", "-c", hold], name="root"),
        Container(["sh", "-c", other], name="other", security={"runAsUser": 12345, "capabilities": {"drop": ["ALL"]}}),
    ]
    workloads.start("apart", Asked(), *containers, hostUsers=False)
    workloads.wait_for_phase("apart", "Running")
    ended = "--for=jsonpath={.status.containerStatuses[0].state.terminated.exitCode}=0"
    workloads.kubectl("wait", "pod/apart", ended, "--timeout=150s")

    assert "refused" in workloads.kubectl("logs", "apart", "-c", "other")
    output = workloads.kubectl("logs", "apart", "-c", "root")
    assert output.startswith("apart\ngpu ")
    assert "total_mib=1024" in output
    assert _figures_that_say(workloads, "apart", "vgpu_share_memory_bytes")


def test_the_drivers_count_of_a_share_is_known_beside_its_books(workloads: Workloads) -> None:
    workloads.start("counted", Asked(), Container(["worker", "run", "700"]))
    workloads.wait_for_phase("counted", "Running")
    driver, books = "vgpu_share_memory_driver_bytes", "vgpu_share_memory_bytes"

    found = _figures_that_say(workloads, "counted", driver)

    assert found["vgpu_share_memory_difference_bytes"] == found[driver] - found[books]
    assert found["vgpu_share_overuse_bytes"] == 0


def _figures_that_say(workloads: Workloads, claim: str, figure: str) -> dict[str, float]:
    """Return them as soon as one of them counts all that is held: the agent looks now and then."""
    found: dict[str, float] = {}
    deadline_s = time.monotonic() + 150
    while found.get(figure, 0) < _HELD_BYTES:
        assert time.monotonic() < deadline_s, f"{figure}: found {found.get(figure)}, expected {_HELD_BYTES} at least"
        found = _figures(workloads, claim)
    return found


def _figures(workloads: Workloads, claim: str) -> dict[str, float]:
    """Return the figures of the share of a pod's claim, as the node agent serves them."""
    agents = workloads.scenario.cluster.kubectl(
        "get", "pods", "-A", "-l", "app.kubernetes.io/component=node-agent",
        "-o", "jsonpath={.items[0].metadata.namespace}/pods/{.items[0].metadata.name}",
    )  # fmt: skip
    page = workloads.scenario.cluster.kubectl("get", "--raw", f"/api/v1/namespaces/{agents}:9401/proxy/metrics")
    samples = re.findall(rf'^(\w+){{[^}}]*claim="{claim}-[^}}]*}} (\S+)$', page, flags=re.MULTILINE)
    return {name: float(value) for name, value in samples}


def test_a_loader_that_preloads_nothing_finds_the_share_in_the_place_of_the_driver(workloads: Workloads) -> None:
    # As that of an image with a C library of its own, or one that a label keeps from the file of the preload.
    script = "until [ -x /tmp/ld ]; do sleep 0.1; done; /tmp/ld $(command -v worker) grab 1100; echo status $?"
    workloads.start("loader", Asked(), Container(["sh", "-c", script]))
    workloads.wait_for_phase("loader", "Running")
    workloads.give_loader("loader")

    output = workloads.finish("loader")

    assert "total_mib=1024" in output
    assert output.strip().endswith("status 3")


@pytest.mark.parametrize("file", _EXAMPLES, ids=lambda file: file.stem)
def test_an_example_runs_as_it_is_written(workloads: Workloads, file: Path) -> None:
    ours = rf"\1image: {IMAGE}\n\1imagePullPolicy: Never"
    text = re.sub(r"( *)image: nvidia/cuda:\S+", ours, file.read_text())
    objects = [document for document in yaml.safe_load_all(text) if document]
    dialect = workloads.scenario.dialect
    for where in ("", dialect.version, dialect.mode):
        if reason := _MISSING.get(where, {}).get(file.stem):
            pytest.skip(reason)
    workloads.apply(*objects)
    for pod in [document for document in objects if document["kind"] == "Pod"]:
        workloads.wait_for_phase(pod["metadata"]["name"], "Running", "Succeeded")
    for deployment in [document for document in objects if document["kind"] == "Deployment"]:
        workloads.kubectl("rollout", "status", f"deployment/{deployment['metadata']['name']}", "--timeout=150s")
