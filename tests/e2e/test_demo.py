"""What `make demo` shows, checked by the card's own count, and what the command line says of it meanwhile."""

import json
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from deploy.demo import looking
from deploy.demo.checks import Check, format_report
from deploy.demo.scenario import DRIVER_NAMESPACE, Scenario
from deploy.demo.tenants import GPU, NAMESPACE, TENANTS, WAITING_POD, B

pytestmark = pytest.mark.cluster

_CONTROLLER = "vgpu-dra-driver-vgpu-controller"


def _assert_all(found: list[Check]) -> None:
    assert found
    assert all(check.ok for check in found), f"\n{format_report(found)}"


@pytest.mark.parametrize(
    "look",
    [
        looking.both_run_on_one_gpu,
        looking.each_sees_its_share,
        looking.greed_is_refused,
        looking.time_is_divided,
        looking.the_card_agrees,
        looking.the_third_waits,
    ],
    ids=lambda look: look.__name__,
)
def test_two_tenants_share_one_gpu(tenants: Scenario, look: Callable[[Scenario], list[Check]]) -> None:
    _assert_all(look(tenants))


def _dra_driver(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dra_driver", *arguments], capture_output=True, text=True, check=False)


def _explain(scenario: Scenario, pod: str) -> str:
    where = ["--namespace", NAMESPACE, "--kubeconfig", str(scenario.cluster.kubeconfig)]
    done = _dra_driver("explain", "pod", pod, *where)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_explain_says_for_each_device_why_a_pod_waits(tenants: Scenario) -> None:
    report = _explain(tenants, WAITING_POD)
    reason = looking.reason_for_too_much(tenants)
    assert re.search(rf"/{GPU.uuid.lower()}\S*: {reason} .*asked (at least )?999999Mi", report), report


def test_explain_says_what_a_running_pod_holds(tenants: Scenario) -> None:
    (pod,) = tenants.json("-n", NAMESPACE, "get", "pods", "-l", f"app={B.name}")["items"]
    report = _explain(tenants, pod["metadata"]["name"])
    assert re.search(r"request gpu holds \S+/gpu-", report), report


def test_explain_needs_no_more_rights_than_the_controller_has(tenants: Scenario) -> None:
    # As docs/troubleshooting.md has it, for who has no kubeconfig at hand.
    pod = ["dra-driver", "explain", "pod", WAITING_POD, "--namespace", NAMESPACE]
    report = tenants.cluster.kubectl("-n", DRIVER_NAMESPACE, "exec", f"deployment/{_CONTROLLER}", "--", *pod)
    assert report.split() == _explain(tenants, WAITING_POD).split()


def test_explain_of_a_pod_that_does_not_exist_fails_by_name(tenants: Scenario) -> None:
    where = ["--namespace", NAMESPACE, "--kubeconfig", str(tenants.cluster.kubeconfig)]
    done = _dra_driver("explain", "pod", "nobody", *where)
    assert done.returncode == 1
    assert "nobody" in done.stderr


def test_share_list_shows_the_limits_and_the_use_of_each_tenant(tenants: Scenario) -> None:
    done = _dra_driver("share", "list", "--state-dir", str(tenants.cluster.node().agent), "--output", "json")
    shares = {share["limits"]["memory_bytes"]: share for share in json.loads(done.stdout)}
    assert {tenant.memory_bytes: tenant.cores_percent for tenant in TENANTS} == {
        memory: share["limits"]["cores_percent"] for memory, share in shares.items()
    }
    for tenant in TENANTS:
        books = shares[tenant.memory_bytes]["books"]
        assert tenant.blob_mb * 1_000_000 <= books["used_bytes"] <= tenant.memory_bytes
        assert len(books["processes"]) == 1
