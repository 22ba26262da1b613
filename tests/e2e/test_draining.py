"""A GPU is emptied for maintenance: by the command of the operator, over the eviction of a real API server."""

import pytest

from api.claims import ClaimView
from api.kube import claims
from dra_driver.cli import main
from tests.e2e.workloads import Asked, Container, Workloads

pytestmark = pytest.mark.cluster


def _held(workloads: Workloads) -> tuple[str, str]:
    """Return node and device of the only claim."""
    (obj,) = workloads.kube.list(claims(workloads.kube.resource_api_version()))["items"]
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
    gpu = device[: len("gpu-00000000-0000-4000-8000-000000000001")]

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
