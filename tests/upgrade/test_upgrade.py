"""A cluster is upgraded in place under tenants: none restarts, none loses its limits, and more can be asked for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from api.httpkube import HTTPKubeClient
from api.kube import Selection, device_classes
from api.names import ANNOTATION_CRD_REVISION
from api.nodeinventory import CRD_REVISION, crd
from deploy.demo.asking import Dialect
from deploy.demo.containers import install_chart
from deploy.demo.scenario import DRIVER_NAMESPACE, Scenario
from deploy.local import imagecontents
from tests.e2e.workloads import Asked, Container, Workloads
from tests.upgrade.following import TIMEOUT_S, containers, installed, wait_until_offered

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

_WORKING = Container(["worker", "run", "300"])
_ASKED = Asked({"gpu": {"memory": "1Gi", "cores": "10"}})
_STEPS = [
    ("1.34", {"DRAPartitionableDevices": True}, "counters"),
    ("1.36", {}, "consumable"),
    ("newest", {}, "consumable"),
]
_CLASSES = ["vgpu", "vgpu-nvidia"]


@pytest.fixture
def scenario() -> Iterator[Scenario]:
    # As a release left it that was the first.
    first = Path(__file__).parents[1] / "integration/controller/first-crd.yaml"
    with installed("upgrade", "oldest", crd=first.read_text()) as scenario:
        yield scenario


def _upgrade_release(scenario: Scenario, version: str) -> None:
    """Upgrade the release too; what helm recorded of it is from a version of the API that is no longer served."""
    image = scenario.cluster.load_image(imagecontents.application().archive())
    pods = [f"{part}.podAnnotations.kubernetes" for part in ("controller", "nodeAgent")]
    install_chart(scenario.cluster, scenario.driver_root, image, **dict.fromkeys(pods, f"v{version}"))


def _classes(scenario: Scenario) -> list[str]:
    found = scenario.json("get", "deviceclasses")
    return [item["metadata"]["name"] for item in found["items"]]


def _crd_revision(scenario: Scenario) -> str:
    annotations = scenario.json("get", "crd", crd()["metadata"]["name"])["metadata"].get("annotations", {})
    return str(annotations.get(ANNOTATION_CRD_REVISION))


def _uninstall_release(scenario: Scenario) -> None:
    """Uninstall, and wait until the classes are gone: the garbage collector does that."""
    kube = HTTPKubeClient(str(scenario.cluster.kubeconfig))
    resource = device_classes(kube.resource_api_version())
    scenario.cluster.helm("uninstall", "vgpu", "--namespace", DRIVER_NAMESPACE, "--wait")
    listed = kube.list(resource)
    left = {item["metadata"]["name"] for item in listed["items"]}
    watch = kube.watch(resource, listed["metadata"]["resourceVersion"], Selection(), int(TIMEOUT_S))
    while left:
        event = next(watch)
        if event.type == "DELETED":
            left.discard(event.object["metadata"]["name"])


def _grab(workloads: Workloads, pod: str, size_mb: int) -> int:
    done = workloads.scenario.run("-n", workloads.namespace, "exec", pod, "--", "worker", "grab", str(size_mb))
    return done.returncode


def _assert_limited(workloads: Workloads, pod: str) -> None:
    """1 GiB, of which the pod itself holds 300 MB."""
    assert _grab(workloads, pod, 500) == 0
    assert _grab(workloads, pod, 900) == 3


def test_shares_outlive_upgrades_of_cluster_and_release_and_the_offer_follows(scenario: Scenario) -> None:
    assert scenario.dialect == Dialect("v1beta1", "slots")
    assert _classes(scenario) == _CLASSES
    assert _crd_revision(scenario) == str(CRD_REVISION)
    scenario.cluster.kubectl("create", "namespace", "tests")
    workloads = Workloads(scenario, "tests")
    started = {}
    for name in ("first", "second"):
        workloads.start(name, _ASKED, _WORKING)
        started[name] = containers(workloads, name)
    for version, gates, mode in _STEPS:
        scenario.cluster.upgrade(version, gates)
        wait_until_offered(scenario, Dialect("v1", mode))
        _upgrade_release(scenario, version)
        assert _classes(scenario) == _CLASSES
        name = f"after-{version.replace('.', '-')}"
        workloads.start(name, _ASKED, _WORKING)
        started[name] = containers(workloads, name)
        for pod, before in started.items():
            assert containers(workloads, pod) == before
            _assert_limited(workloads, pod)
    workloads.delete_all()
    node = scenario.cluster.node()
    assert list((node.agent / "shares").iterdir()) == []
    _uninstall_release(scenario)
    assert _crd_revision(scenario) == str(CRD_REVISION)
    (inventory,) = scenario.json("get", "nodeinventories")["items"]
    assert inventory["metadata"]["name"] == node.name
