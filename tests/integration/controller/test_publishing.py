"""The controller against a real API server and a real scheduler."""

import copy
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from api import kube as kube_api
from api import names
from api.errors import KubeError
from api.events import Message, Subject
from api.kube import JSON, LEASES
from controller import eventing
from controller.controller import Controller
from controller.explaining import explain_pod
from controller.offers import migrating
from deploy.local import processes
from deploy.local.cluster import Cluster as LocalCluster
from deploy.local.processes import Command
from tests.integration.controller.conftest import SERVICE_ACCOUNTS, Cluster
from tests.unit.controller.builders import (
    CAPACITY_OF_10_GIB,
    CLAIMS,
    GI,
    SLICES,
    claim,
    facts,
    state_inventory,
    status,
    wait_until,
)

pytestmark = pytest.mark.cluster

Start = Callable[..., Controller]


def published(cluster: Cluster, node: str, devices: int = 1) -> JSON:
    """The one slice of a node, once it has so many devices."""

    def devices_of(slices: list[JSON]) -> list[Any]:
        return [device for obj in slices for device in obj["spec"].get("devices") or []]

    wait_until(lambda: len(devices_of(cluster.slices(node))) == devices)
    (found,) = cluster.slices(node)
    return found


def test_the_api_server_stores_the_slice_as_it_was_written(cluster: Cluster, start_controller: Start) -> None:
    full = facts(
        architecture="Hopper",
        compute_capability="9.0",
        driver_version="580.159.03",
        runtime_version="13.0",
        pci_bus_id="0000:65:00.0",
        pcie_root="pci0000:64",
        numa_node=0,
        memory_bytes=10 * GI + 4097,
    )
    uid = cluster.add_node("stored", full)
    controller = start_controller("a")
    slice_ = published(cluster, "stored")
    wait_until(controller.idle)
    assert slice_["metadata"]["name"] == "00000-stored-vgpu.dra-driver.io"
    assert slice_["metadata"]["ownerReferences"][0]["uid"] == uid
    assert slice_["spec"]["pool"] == {"name": "stored", "generation": 1, "resourceSliceCount": 1}
    (device,) = slice_["spec"]["devices"]
    assert device["allowMultipleAllocations"] is True
    assert device["capacity"] == CAPACITY_OF_10_GIB
    assert device["attributes"]["driverVersion"] == {"version": "580.159.3"}
    told = cluster.kube.get(kube_api.NODE_INVENTORIES, "stored")["status"]
    assert (told["offerMode"], told["followedClaims"]) == ("consumable", [])
    again = published(cluster, "stored")
    assert again["metadata"]["resourceVersion"] == slice_["metadata"]["resourceVersion"], "written more than once"


def test_garbage_collection_takes_the_slices_of_a_node_that_is_deleted_and_leaves_its_inventory_with_its_cordons(
    cluster: Cluster, start_controller: Start
) -> None:
    cluster.add_node("collected", facts())
    controller = start_controller("a")
    published(cluster, "collected")
    controller.stop()
    named = {"metadata": {"name": "collected"}}
    cluster.kube.patch(kube_api.NODE_INVENTORIES, named, {"spec": {"cordonedDevices": [facts().name]}})
    cluster.kube.delete(kube_api.NODES, named)
    wait_until(lambda: not cluster.slices("collected"))
    assert cluster.kube.get(kube_api.NODE_INVENTORIES, "collected")["spec"]["cordonedDevices"] == [facts().name]


def test_a_deleted_slice_comes_back_and_an_edit_is_undone(cluster: Cluster, start_controller: Start) -> None:
    cluster.add_node("kept", facts())
    start_controller("a")
    first = published(cluster, "kept")
    cluster.kube.delete(SLICES, first)
    wait_until(lambda: [s["metadata"]["uid"] for s in cluster.slices("kept")] not in ([], [first["metadata"]["uid"]]))
    edited = published(cluster, "kept")
    devices = copy.deepcopy(edited["spec"]["devices"])
    edited["spec"]["devices"] = []
    cluster.kube.replace(SLICES, edited)
    wait_until(lambda: cluster.slices("kept")[0]["spec"].get("devices") == devices)


def test_130_devices_make_two_slices_and_fewer_make_one_again(cluster: Cluster, start_controller: Start) -> None:
    many = [facts(name=f"gpu-{number:03d}") for number in range(130)]
    cluster.add_node("many", *many)
    start_controller("a")
    wait_until(lambda: len(cluster.slices("many")) == 2)
    assert [len(obj["spec"]["devices"]) for obj in cluster.slices("many")] == [128, 2]
    state_inventory(cluster.kube, "many", status(*many[:5]))
    wait_until(lambda: len(cluster.slices("many")) == 1)
    wait_until(lambda: len(cluster.slices("many")[0]["spec"]["devices"]) == 5)
    assert cluster.slices("many")[0]["spec"]["pool"]["resourceSliceCount"] == 1


def test_slices_go_with_the_inventory(cluster: Cluster, start_controller: Start) -> None:
    cluster.add_node("leaving", facts())
    start_controller("a")
    published(cluster, "leaving")
    cluster.kube.delete(kube_api.NODE_INVENTORIES, {"metadata": {"name": "leaving"}})
    wait_until(lambda: not cluster.slices("leaving"))


def test_the_second_controller_takes_over_from_the_first(
    cluster: Cluster, start_controller: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrating, "WITHDRAWAL_S", 0.1)
    cluster.add_node("handed", facts())
    first = start_controller("first")
    published(cluster, "handed")
    second = start_controller("second")
    wait_until(lambda: second.ready() == "")
    assert not second.is_leading()
    first.stop()
    wait_until(second.idle)
    lease = cluster.kube.get(LEASES, "controller-vgpu.dra-driver.io", cluster.namespace)
    assert lease["spec"]["holderIdentity"] == "second"
    assert lease["spec"]["leaseTransitions"] == 1 + 1  # given back, then taken
    state_inventory(cluster.kube, "handed", status(facts(0), facts(1)))
    published(cluster, "handed", devices=2)


def pod(name: str, claim_name: str, node: str) -> dict[str, Any]:
    """A pod that takes a claim to a node."""
    return {
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"pool": node},
            "tolerations": [{"operator": "Exists"}],
            "automountServiceAccountToken": False,
            "resourceClaims": [{"name": "gpu", "resourceClaimName": claim_name}],
            "containers": [{"name": "main", "image": "none", "resources": {"claims": [{"name": "gpu"}]}}],
        },
    }


def ask(cluster: Cluster, name: str, node: str, **asked: Any) -> None:
    """Create a claim and a pod of one name."""
    made = claim(name, **asked)
    del made["metadata"]["uid"]
    cluster.create(CLAIMS, made)
    cluster.create(kube_api.PODS, pod(name, name, node))


def allocated(cluster: Cluster, name: str) -> Any:
    status_ = cluster.kube.get(CLAIMS, name, cluster.namespace).get("status") or {}
    return status_.get("allocation")


def notes(cluster: Cluster, kind: str, name: str) -> list[str]:
    """What our events say about an object."""
    selection = kube_api.Selection(namespace=cluster.namespace)
    return [
        str(event["note"])
        for event in cluster.kube.list(kube_api.EVENTS, selection)["items"]
        if event.get("reportingController") == "dra-driver-vgpu-controller"
        and (event["regarding"]["kind"], event["regarding"]["name"]) == (kind, name)
    ]


def test_the_scheduler_fills_a_gpu_and_the_claim_that_is_left_gets_its_reason(
    cluster: Cluster, start_controller: Start
) -> None:
    cluster.create(SERVICE_ACCOUNTS, {"kind": "ServiceAccount", "metadata": {"name": "default"}})
    cluster.add_node("full", facts())
    controller = start_controller("a")
    published(cluster, "full")
    for name, cores in (("forty", "40"), ("sixty", "60")):
        ask(cluster, name, "full", memory="2Gi", cores=cores)
        wait_until(lambda name=name: allocated(cluster, name))  # type: ignore[misc]
    (held,) = allocated(cluster, "sixty")["devices"]["results"]
    assert held["consumedCapacity"] == {"memory": "2Gi", "cores": "60", "shares": "1"}
    ask(cluster, "third", "full", memory="999999Mi", cores="20")
    wait_until(lambda: notes(cluster, "Pod", "third"))
    reason = (
        f"full/{facts().name}: CardInsufficientMemory, CardInsufficientCore "
        "(6Gi free of 10Gi, asked 999999Mi; 0 cores free of 100, asked 20)"
    )
    heading = (
        f"ResourceClaim {cluster.namespace}/third: request gpu (cores 20, memory 999999Mi): 0 of 1 device can serve it"
    )
    assert notes(cluster, "Pod", "third") == [f"{heading}: {reason}"]
    assert notes(cluster, "ResourceClaim", "third") == [f"{heading}: {reason}"]
    assert explain_pod(cluster.kube, cluster.namespace, "third") == f"{heading}\n  {reason}"
    assert not allocated(cluster, "third")
    assert controller.is_leading()


def test_a_pod_that_asks_for_an_extended_resource_gets_a_gpu_and_the_next_one_its_reason(
    cluster: Cluster, start_controller: Start
) -> None:
    cluster.create(SERVICE_ACCOUNTS, {"kind": "ServiceAccount", "metadata": {"name": "default"}})
    cluster.add_node("by-resource", facts())
    start_controller("a")
    published(cluster, "by-resource")
    resource = "deviceclass.resource.kubernetes.io/vgpu"
    for name in ("first", "second"):
        made = pod(name, "", "by-resource")
        del made["spec"]["resourceClaims"]
        made["spec"]["containers"][0]["resources"] = {"limits": {resource: "1"}}
        cluster.create(kube_api.PODS, made)
        if name == "first":
            wait_until(lambda: cluster.kube.get(kube_api.PODS, "first", cluster.namespace)["spec"].get("nodeName"))
    wait_until(lambda: notes(cluster, "Pod", "second"))
    (made_claim,) = cluster.kube.list(CLAIMS, kube_api.Selection(namespace=cluster.namespace))["items"]
    (asked,) = made_claim["spec"]["devices"]["requests"]
    assert (asked["name"], asked["exactly"]["deviceClassName"]) == ("container-0-request-0", "vgpu")
    assert notes(cluster, "Pod", "second") == [
        (
            f"Pod {cluster.namespace}/second: {resource} (1 of DeviceClass vgpu): 0 of 1 device can serve it: "
            f"by-resource/{facts().name}: CardInUse (the whole device is asked, 1 share on it)"
        )
    ]


def policy_of_the_documents(namespace: str) -> list[dict[str, Any]]:
    """The policy against a `count` that ends schedulers of 1.34, for one namespace."""
    text = Path(__file__).parents[3].joinpath("docs/offer-modes.md").read_text()
    (block,) = (part for part in text.split("```yaml\n")[1:] if "ValidatingAdmissionPolicy" in part)
    policy, binding = yaml.safe_load_all(block.partition("```")[0])
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    return [policy, {**binding, "spec": {**binding["spec"], "matchResources": {"namespaceSelector": selector}}}]


def test_the_policy_of_the_documents_refuses_counts_that_end_old_schedulers_and_nothing_else(cluster: Cluster) -> None:
    for obj in policy_of_the_documents(cluster.namespace):
        plural = "validatingadmissionpolicies" if "Binding" not in obj["kind"] else "validatingadmissionpolicybindings"
        cluster.create(kube_api.Resource("admissionregistration.k8s.io", "v1", plural, namespaced=False), obj)

    def refusal(name: str, **fields: Any) -> str:
        made = claim(name, requests=[{"name": "gpu", **fields}])
        del made["metadata"]["uid"]
        try:
            cluster.create(CLAIMS, made)
        except KubeError as error:
            return str(error)
        cluster.kube.delete(CLAIMS, made)
        return ""

    def exactly(**fields: Any) -> dict[str, Any]:
        return {"deviceClassName": "vgpu", **fields}

    # The API server takes a moment until it asks a new policy.
    wait_until(lambda: refusal("three", exactly=exactly(count=3)))
    assert refusal("three", exactly=exactly(count=3)).endswith("no node of this cluster has so many GPUs")
    alternatives = [{"name": "a", **exactly(count=3)}, {"name": "b", **exactly()}]
    assert refusal("either", firstAvailable=alternatives).endswith("no node of this cluster has so many GPUs")
    assert refusal("one", exactly=exactly()) == ""
    assert refusal("two", exactly=exactly(count=2)) == ""
    assert refusal("all", exactly=exactly(allocationMode="All")) == ""
    assert refusal("first", firstAvailable=[{"name": "a", **exactly(count=2)}]) == ""


def test_a_claim_with_a_typing_error_is_told_so_before_any_pod(cluster: Cluster, start_controller: Start) -> None:
    start_controller("a")
    wrong = claim("typo", config={"apiVersion": "vgpu.dra-driver.io/v1alpha1", "kind": "VGPUConfig", "memory": "8GB"})
    del wrong["metadata"]["uid"]
    cluster.create(CLAIMS, wrong)
    wait_until(lambda: notes(cluster, "ResourceClaim", "typo"))
    (note,) = notes(cluster, "ResourceClaim", "typo")
    assert note == (
        f"ResourceClaim {cluster.namespace}/typo: memory: found '8GB', "
        'expected a quantity of memory above 0 such as "8Gi" or "500Mi"'
    )


def restart_api_server(api_server: LocalCluster, controller: Controller, *flags: str) -> None:
    """Start the API server anew, with more flags, once the controller has noticed that it is gone."""
    name = "kube-apiserver"
    running = processes.running(processes.record_path(api_server.layout.state, name))
    assert running is not None
    arguments = Path(f"/proc/{running.pid}/cmdline").read_text().rstrip("\0").split("\0")
    processes.stop(running)
    wait_until(lambda: not controller.is_leading())
    if flags:
        processes.start(Command(name, [*arguments, *flags], api_server.layout.state, {"PATH": os.defpath}))
    else:
        api_server.up(nodes=0)
    wait_until(controller.is_leading)


def refresh(api_server: LocalCluster) -> None:
    """Start anew what is Kubernetes' own and lost the API server, for the tests that come later.

    It would ask for each kind again at a time of its own, up to half a minute later.
    """
    for name in ("kube-scheduler", "kube-controller-manager"):
        running = processes.running(processes.record_path(api_server.layout.state, name))
        if running is not None:
            processes.stop(running)
    api_server.up(nodes=0)


def test_restarts_of_the_api_server_are_survived_and_the_offer_mode_follows_its_gates(
    api_server: LocalCluster, cluster: Cluster, start_controller: Start, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.add_node("gated", facts())
    controller = start_controller("a", lease_duration_s=3, renew_deadline_s=2)
    published(cluster, "gated")
    try:
        restart_api_server(api_server, controller, "--feature-gates=DRAConsumableCapacity=false")
        menu = 6 + 1  # halves and quarters, and the whole GPU as soon as nobody can get a share of it any more
        wait_until(lambda: sum(len(obj["spec"].get("devices") or []) for obj in cluster.slices("gated")) == menu)
        counters, devices = cluster.slices("gated")
        assert counters["spec"]["sharedCounters"][0]["name"] == facts().name
        assert all(device["consumesCounters"] for device in devices["spec"]["devices"])
    finally:
        restart_api_server(api_server, controller)
        refresh(api_server)
    state_inventory(cluster.kube, "gated", status(facts(0), facts(1)))
    published(cluster, "gated", devices=2)
    assert controller.alive() == ""


def test_an_event_about_an_inventory_is_taken(cluster: Cluster) -> None:
    subject = Subject(names.GROUP_VERSION, names.NODE_INVENTORY_KIND, "", "of-a-node", "uid")
    message = Message(names.EVENT_INVENTORY_INVALID, "found 3, expected a list", "Checking")
    event = eventing.render(subject, message, "test", datetime.now(UTC))
    eventing.write(cluster.kube, event)
    stored = cluster.kube.get(kube_api.EVENTS, event["metadata"]["name"], "default")
    cluster.kube.delete(kube_api.EVENTS, stored)
    assert stored["note"] == message.note
