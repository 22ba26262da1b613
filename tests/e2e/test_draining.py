"""A GPU is kept from new claims, and emptied: by the operator's commands, on a real API server and scheduler."""

import time

import pytest

from api.claims import ClaimView
from api.kube import claims, slices
from api.slices import read_device
from api.slots import gpu_of
from dra_driver.cli import main
from tests.e2e.workloads import Asked, Container, Workloads

pytestmark = pytest.mark.cluster


_GPU = len("gpu-00000000-0000-4000-8000-000000000001")


def _held(workloads: Workloads, pod: str = "") -> tuple[str, str]:
    """Return node and device of the only claim, or of the one that was made for a pod."""
    listed = workloads.kube.list(claims(workloads.kube.resource_api_version()))["items"]
    (obj,) = [each for each in listed if each["metadata"]["name"].startswith(pod)]
    allocation = ClaimView.from_object(obj).allocation
    assert allocation is not None
    (result,) = allocation.results
    return result.pool, result.device


def test_a_drained_gpu_loses_its_pods_and_gets_none_before_it_is_given_back(
    workloads: Workloads, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--kubeconfig", str(workloads.scenario.cluster.kubeconfig)]
    workloads.start("held", Asked(), Container(["sleep", "600"]), terminationGracePeriodSeconds=1)
    workloads.wait_for_phase("held", "Running")
    node, device = _held(workloads)
    gpu = device[:_GPU]

    try:
        assert main(["device", "drain", node, gpu, "--timeout-s", "150", *where]) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"{node}/{gpu}: cordoned",
            f"pod {workloads.namespace}/held: evicted",
            f"{node}/{gpu}: drained",
        ]
        workloads.start("next", Asked(), Container(["sleep", "600"]), terminationGracePeriodSeconds=1)
        workloads.wait_for_phase("next", "Running")
        claimed = _held(workloads)
        assert not claimed[1].startswith(gpu)
    finally:
        assert main(["device", "uncordon", node, gpu, *where]) == 0
    assert capsys.readouterr().out == f"{node}/{gpu}: uncordoned\n"


def _wait_until_offered(workloads: Workloads, gpu: str, *, wanted: bool) -> None:
    """Wait until claims that tolerate nothing can have devices of a GPU, or cannot."""
    resource, deadline_s = slices(workloads.kube.resource_api_version()), time.monotonic() + 150
    while True:
        stored = [each for obj in workloads.kube.list(resource)["items"] for each in obj["spec"].get("devices") or []]
        if wanted == any(gpu_of(one.name) == gpu and not one.taints for one in map(read_device, stored)):
            return
        assert time.monotonic() < deadline_s, f"found {gpu} {'not ' * wanted}offered, expected otherwise within 150 s"
        time.sleep(0.1)


def test_the_pods_of_a_cordoned_gpu_stay_limited_and_nobody_joins_them(
    workloads: Workloads, capsys: pytest.CaptureFixture[str]
) -> None:
    """With device taints or without: then the GPU leaves the offer, and the claim holds a device that nobody offers."""
    where = ["--kubeconfig", str(workloads.scenario.cluster.kubeconfig)]
    workloads.start("held", Asked(), Container(["worker", "run", "300"]))
    workloads.wait_for_phase("held", "Running")
    node, device = _held(workloads)
    gpu = device[:_GPU]

    assert main(["device", "cordon", node, gpu, *where]) == 0
    try:
        _wait_until_offered(workloads, gpu, wanted=False)
        workloads.start("next", Asked(), Container(["sleep", "600"]))
        workloads.wait_for_phase("next", "Running")
        assert not _held(workloads, "next")[1].startswith(gpu)
        grab = ["exec", "held", "--", "worker", "grab"]
        assert workloads.scenario.run("-n", workloads.namespace, *grab, "900").returncode == 3
        assert workloads.scenario.run("-n", workloads.namespace, *grab, "500").returncode == 0
        assert _held(workloads, "held") == (node, device)
    finally:
        assert main(["device", "uncordon", node, gpu, *where]) == 0
    _wait_until_offered(workloads, gpu, wanted=True)
    assert capsys.readouterr().out.splitlines() == [f"{node}/{gpu}: cordoned", f"{node}/{gpu}: uncordoned"]
