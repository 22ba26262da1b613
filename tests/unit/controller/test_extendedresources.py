"""Pods that ask for devices by the name of an extended resource (KEP-5004) and wait: they have no claim to explain."""

from functools import partial
from typing import Any

import pytest

from api import kube as kube_api
from api.kube import JSON, NODES
from api.kubefake import FakeKube
from controller.cluster.records import class_trimmer, trim_pod
from controller.controller import Controller
from controller.explaining import explain_pod
from controller.reasons.extendedresources import class_of, read_asks
from tests.unit.controller.builders import (
    CLAIMS,
    CLASSES,
    DRIVER,
    SLICES,
    add_node,
    claim,
    device_class,
    facts,
    pod,
    result,
    state_inventory,
    status,
    wait_until,
)

GPU = "example.com/gpu"
LARGE = {"memory": "10Gi", "cores": "0", "shares": "1"}


def container(restart: str = "", **requests: str) -> dict[str, Any]:
    """A container that asks for GPUs (`gpu`), processors (`cpu`) or a resource by its whole name."""
    named = {GPU if name == "gpu" else name: amount for name, amount in requests.items()}
    found: dict[str, Any] = {"resources": {"requests": named}}
    return found | ({"restartPolicy": restart} if restart else {})


def asking(*containers: dict[str, Any], inits: tuple[dict[str, Any], ...] = (), claims: tuple[str, ...] = ()) -> JSON:
    """A pod that found no place."""
    made: JSON = pod("train", *claims)
    made["spec"] |= {"containers": list(containers), "initContainers": list(inits)}
    return made


def asks(made: JSON) -> list[tuple[str, str, int]]:
    return [(ask.resource, ask.request, ask.count) for ask in read_asks(made)]


def test_each_container_makes_a_request_named_after_its_place_and_that_of_the_resource_among_its_own() -> None:
    made = asking(container(cpu="1", gpu="2"), container(cpu="1"), container(gpu="1"))
    assert asks(made) == [(GPU, "container-0-request-1", 2), (GPU, "container-2-request-0", 1)]


@pytest.mark.parametrize(
    ("inits", "found"),
    [
        ((container(gpu="1"),), [("container-1-request-0", 2)]),
        ((container(gpu="3"), container(gpu="5")), [("container-1-request-0", 3), ("container-2-request-0", 2)]),
        ((container("Always", gpu="1"),), [("container-0-request-0", 1), ("container-1-request-0", 2)]),
        (
            (container("Always", gpu="1"), container(gpu="3")),
            [("container-0-request-0", 1), ("container-1-request-0", 1), ("container-2-request-0", 2)],
        ),
    ],
    ids=["enough behind it", "the largest wants more", "a sidecar", "a sidecar has started before it"],
)
def test_init_containers_that_end_take_what_stands_behind_them(
    inits: tuple[dict[str, Any], ...], found: list[tuple[str, int]]
) -> None:
    assert [(request, count) for _, request, count in asks(asking(container(gpu="2"), inits=inits))] == found


@pytest.mark.parametrize(
    "resource",
    ["cpu", "memory", "hugepages-2Mi", "kubernetes.io/gpu", "x.kubernetes.io/gpu", "requests.example.com/gpu"],
)
def test_what_no_device_class_can_stand_for_is_not_asked_of_any(resource: str) -> None:
    assert asks(asking({"resources": {"requests": {resource: "1"}}})) == []


def test_a_pod_is_kept_for_what_it_asks_until_the_scheduler_has_made_a_claim_of_it() -> None:
    made = asking(container(gpu="1"))
    kept = trim_pod(made)
    assert kept is not None
    assert [ask.count for ask in kept.asks] == [1]
    made["status"]["extendedResourceClaimStatus"] = {"resourceClaimName": "train-extended-resources-x"}
    kept = trim_pod(made)
    assert kept is not None
    assert (kept.claims, kept.asks) == ((("demo", "train-extended-resources-x"),), ())
    assert trim_pod(asking(container(cpu="1"))) is None


def named_class(name: str, resource: str = GPU, driver: str = DRIVER, created: str = "2026-01-01T00:00:00Z") -> JSON:
    made: JSON = device_class(name, driver)
    made["spec"]["extendedResourceName"] = resource
    made["metadata"]["creationTimestamp"] = created
    return made


@pytest.mark.parametrize(
    ("classes", "found"),
    [
        ([named_class("b"), named_class("a")], "a"),
        ([named_class("a"), named_class("b", created="2026-01-02T00:00:00Z")], "b"),
        ([named_class("a"), named_class("b", driver="other.example", created="2026-01-02T00:00:00Z")], ""),
        ([named_class("a", resource="example.com/other")], ""),
    ],
    ids=["first by name", "newest", "of another driver", "of another resource"],
)
def test_the_newest_class_stands_for_a_resource(classes: list[JSON], found: str) -> None:
    records = [record for record in map(class_trimmer(DRIVER), classes) if record is not None]
    assert class_of(GPU, records) == found


def test_a_class_stands_for_the_resource_of_its_own_name_as_well() -> None:
    records = [record for record in (class_trimmer(DRIVER)(device_class("vgpu")),) if record is not None]
    assert class_of("deviceclass.resource.kubernetes.io/vgpu", records) == "vgpu"
    assert class_of("deviceclass.resource.kubernetes.io/other", records) == ""


def full(kube: FakeKube) -> None:
    """A node with one GPU, which a claim holds, and a class that stands for GPUs."""
    kube.delete(CLASSES, {"metadata": {"name": "vgpu"}})
    kube.create(CLASSES, named_class("vgpu"))
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    kube.create(CLAIMS, claim("held", results=[result(facts().name, **LARGE)]))


def _is_offered(kube: FakeKube) -> bool:
    return any(obj["spec"]["nodeName"] == "n1" for obj in kube.objects(SLICES))


def notes(kube: FakeKube, kind: str, name: str) -> list[str]:
    return [
        event["note"]
        for event in kube.objects(kube_api.EVENTS)
        if (event["regarding"]["kind"], event["regarding"]["name"]) == (kind, name)
    ]


HEADING = f"Pod demo/train: {GPU} (1 of DeviceClass vgpu): 0 of 1 device can serve it"
REASON = f"n1/{facts().name}: CardInUse (the whole device is asked, 1 share on it)"


def test_a_pod_that_waits_for_an_extended_resource_is_told_why(kube: FakeKube, controller: Controller) -> None:
    full(kube)
    wait_until(partial(_is_offered, kube))
    kube.create(kube_api.PODS, asking(container(gpu="1")))
    wait_until(lambda: notes(kube, "Pod", "train"))
    assert notes(kube, "Pod", "train") == [f"{HEADING}: {REASON}"]
    assert controller.is_leading()


def test_a_pod_with_a_claim_as_well_is_told_what_both_lack_together(kube: FakeKube, controller: Controller) -> None:
    kube.delete(CLASSES, {"metadata": {"name": "vgpu"}})
    kube.create(CLASSES, named_class("vgpu"))
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    wait_until(partial(_is_offered, kube))
    kube.create(CLAIMS, claim("train", memory="1Gi"))
    kube.create(kube_api.PODS, asking(container(gpu="1"), claims=("train",)))
    wait_until(lambda: notes(kube, "Pod", "train"))
    assert notes(kube, "Pod", "train") == [f"{HEADING}: {REASON}"]
    assert notes(kube, "ResourceClaim", "train") == []
    assert controller.is_leading()


def test_a_class_that_comes_late_makes_pods_ours_that_wait(kube: FakeKube, controller: Controller) -> None:
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    kube.create(CLAIMS, claim("held", results=[result(facts().name, **LARGE)]))
    kube.create(kube_api.PODS, asking(container(gpu="1")))
    wait_until(lambda: controller.idle() and _is_offered(kube))
    assert notes(kube, "Pod", "train") == []
    kube.create(CLASSES, named_class("team"))
    wait_until(lambda: notes(kube, "Pod", "train"))


def explained(kube: FakeKube, controller: Controller, *, minor: int = 36) -> list[str]:
    wait_until(partial(_is_offered, kube))
    controller.stop()
    kube.minor = minor
    return explain_pod(kube, "demo", "train").splitlines()


def test_explain_says_what_the_scheduler_would_ask_for(kube: FakeKube, controller: Controller) -> None:
    full(kube)
    kube.create(kube_api.PODS, asking(container(gpu="1", **{"example.com/nic": "1"})))
    assert explained(kube, controller) == [
        f"Pod demo/train: no DeviceClass of {DRIVER} stands for example.com/nic",
        HEADING,
        f"  {REASON}",
    ]


def test_explain_says_where_a_device_plugin_goes_first(kube: FakeKube, controller: Controller) -> None:
    full(kube)
    kube.patch(NODES, {"metadata": {"name": "n1"}}, {"status": {"allocatable": {GPU: "8"}}}, "status")
    kube.create(kube_api.PODS, asking(container(gpu="1")))
    reason = f"CardNotSelected (a device plugin has {GPU} on this node, and goes before its DeviceClass)"
    assert explained(kube, controller) == [HEADING, f"  n1/{facts().name}: {reason}"]


def test_explain_says_that_a_gate_is_needed_before_it_is_on(kube: FakeKube, controller: Controller) -> None:
    full(kube)
    kube.create(kube_api.PODS, asking(container(gpu="1")))
    assert explained(kube, controller, minor=35)[0] == (
        "up to Kubernetes 1.35, DeviceClasses stand for such resources only with the gate DRAExtendedResource"
    )
