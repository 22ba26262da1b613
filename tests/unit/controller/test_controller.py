"""The controller as a whole on an API server in memory: inventories become slices, pending claims get their reasons."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from api import kube as kube_api
from api import names
from api.claims import ClaimView, Object
from api.errors import KubeError
from api.kube import JSON, Resource
from api.kubefake import FakeKube
from api.offerrules import OfferRule
from controller import choosing, pending, telling
from controller.controller import Controller
from controller.offers import migrating, probing
from controller.reasons.reasoning import RequestExplanation, explain
from tests.unit.controller.builders import (
    CLAIMS,
    CLASSES,
    GI,
    SLICES,
    add_node,
    claim,
    device_class,
    facts,
    make_controller,
    pod,
    request,
    result,
    state_inventory,
    status,
    taint_rule,
    wait_until,
)

SLICE_N1 = "00000-n1-vgpu.dra-driver.io"


class GateOffKube(FakeKube):
    """An API server whose feature gates are off: it drops fields without a word."""

    gate_on = False

    def create(self, resource: Resource, obj: Object) -> JSON:
        return super().create(resource, self._dropped(resource, obj))

    def replace(self, resource: Resource, obj: Object, subresource: str | None = None) -> JSON:
        return super().replace(resource, self._dropped(resource, obj), subresource)

    def _dropped(self, resource: Resource, obj: Object) -> Object:
        if self.gate_on or resource != SLICES:
            return obj
        devices = [
            {
                "name": device["name"],
                "attributes": device["attributes"],
                "capacity": {name: {"value": amount["value"]} for name, amount in device["capacity"].items()},
            }
            for device in obj["spec"].get("devices") or []
        ]
        kept = {key: value for key, value in obj["spec"].items() if key != "sharedCounters"}
        return {**obj, "spec": {**kept, "devices": devices}}


def slices(kube: FakeKube) -> dict[str, JSON]:
    return {obj["metadata"]["name"]: obj for obj in kube.objects(SLICES)}


def settled(kube: FakeKube, controller: Controller) -> dict[str, JSON]:
    """The slices once the controller has nothing left to do."""
    wait_until(controller.idle)
    return slices(kube)


def test_an_inventory_becomes_a_slice_that_the_node_owns(kube: FakeKube, controller: Controller) -> None:
    uid = add_node(kube)
    state_inventory(kube, "n1", status(facts(0), facts(1)))
    wait_until(lambda: SLICE_N1 in slices(kube))
    stored = slices(kube)[SLICE_N1]
    assert stored["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": uid, "controller": True}
    ]
    assert stored["spec"]["nodeName"] == "n1"
    assert stored["spec"]["pool"] == {"name": "n1", "generation": 1, "resourceSliceCount": 1}
    assert [device["name"] for device in stored["spec"]["devices"]] == [facts(0).name, facts(1).name]


@pytest.mark.parametrize(("minor", "first"), [(34, 1), (35, 0)])
def test_where_the_first_device_decides_for_all_the_widest_gpu_comes_first(minor: int, first: int) -> None:
    kube = FakeKube()
    kube.minor = minor
    add_node(kube)
    held = claim("held", results=[result(facts(0).name, memory="1Gi", cores="10")])
    kube.create(CLAIMS, held)
    state_inventory(kube, "n1", status(facts(0), facts(1)))
    controller = make_controller(kube)
    controller.start()
    wait_until(lambda: SLICE_N1 in slices(kube))
    controller.stop()
    assert slices(kube)[SLICE_N1]["spec"]["devices"][0]["name"] == facts(first).name


def test_a_node_without_devices_gets_an_empty_slice(kube: FakeKube, controller: Controller) -> None:
    add_node(kube)
    state_inventory(kube, "n1", status())
    wait_until(lambda: SLICE_N1 in slices(kube))
    assert slices(kube)[SLICE_N1]["spec"]["devices"] == []


def test_a_slice_that_somebody_deletes_comes_back_while_the_agent_is_alive(
    kube: FakeKube, controller: Controller
) -> None:
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    wait_until(lambda: SLICE_N1 in slices(kube))
    first = slices(kube)[SLICE_N1]
    kube.delete(SLICES, first)
    wait_until(lambda: SLICE_N1 in slices(kube))
    assert slices(kube)[SLICE_N1]["metadata"]["uid"] != first["metadata"]["uid"]
    assert slices(kube)[SLICE_N1]["spec"]["devices"] == first["spec"]["devices"]


def test_an_edit_by_somebody_else_is_undone(kube: FakeKube, controller: Controller) -> None:
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    wait_until(lambda: SLICE_N1 in slices(kube))
    edited = slices(kube)[SLICE_N1]
    wanted = edited["spec"]["devices"][0]["capacity"]["memory"]["value"]
    edited["spec"]["devices"][0]["capacity"]["memory"]["value"] = "80Gi"
    kube.replace(SLICES, edited)
    wait_until(lambda: slices(kube)[SLICE_N1]["spec"]["devices"][0]["capacity"]["memory"]["value"] == wanted)


def test_the_slices_of_a_dead_agent_are_left_as_they_are_and_do_not_come_back(
    kube: FakeKube, controller: Controller
) -> None:
    add_node(kube)
    state_inventory(kube, "n1", status(facts(), heartbeat=datetime.now(UTC) - timedelta(minutes=2)))
    add_node(kube, "n2")
    state_inventory(kube, "n2", status(facts(2)))
    wait_until(lambda: len(slices(kube)) == 1)
    assert list(settled(kube, controller)) == ["00000-n2-vgpu.dra-driver.io"]


def test_the_first_heartbeat_after_a_silence_brings_the_slices_back(kube: FakeKube, controller: Controller) -> None:
    add_node(kube)
    silent = status(facts(), heartbeat=datetime.now(UTC) - timedelta(minutes=2))
    state_inventory(kube, "n1", silent)
    wait_until(controller.idle)
    state_inventory(kube, "n1", silent.model_copy(update={"heartbeat_time": datetime.now(UTC)}))
    wait_until(lambda: SLICE_N1 in slices(kube))


def test_an_inventory_that_cannot_be_read_leaves_the_slices_as_they_are(
    kube: FakeKube, controller: Controller, caplog: pytest.LogCaptureFixture
) -> None:
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    wait_until(lambda: SLICE_N1 in slices(kube))
    kube.patch(kube_api.NODE_INVENTORIES, {"metadata": {"name": "n1"}}, {"status": {"devices": 3}}, "status")
    wait_until(lambda: any("found mistakes in an inventory" in record.message for record in caplog.records))
    (device,) = settled(kube, controller)[SLICE_N1]["spec"]["devices"]
    assert device["name"] == facts().name


def test_a_mere_heartbeat_writes_nothing(kube: FakeKube, controller: Controller) -> None:
    add_node(kube)
    first = status(facts())
    state_inventory(kube, "n1", first)
    wait_until(lambda: SLICE_N1 in slices(kube))
    version = settled(kube, controller)[SLICE_N1]["metadata"]["resourceVersion"]
    state_inventory(kube, "n1", first.model_copy(update={"heartbeat_time": datetime.now(UTC)}))
    add_node(kube, "n2")
    state_inventory(kube, "n2", status(facts(2)))
    wait_until(lambda: len(slices(kube)) == 2)
    assert slices(kube)[SLICE_N1]["metadata"]["resourceVersion"] == version


def _taints_are(kube: FakeKube, expected: list[list[str]]) -> bool:
    return taints(kube) == expected


def taints(kube: FakeKube) -> list[list[str]]:
    """The keys of the taints of each device on offer."""
    devices = slices(kube)[SLICE_N1]["spec"]["devices"]
    return [[taint["key"] for taint in device.get("taints") or []] for device in devices]


def test_an_unhealthy_device_is_tainted_until_it_recovers(kube: FakeKube, controller: Controller) -> None:
    add_node(kube)
    state_inventory(kube, "n1", status(facts(0), facts(1)))
    wait_until(lambda: SLICE_N1 in slices(kube))
    state_inventory(kube, "n1", status(facts(0), facts(1, healthy=False, health="Xid 79")))
    wait_until(lambda: taints(kube) == [[], ["vgpu.dra-driver.io/unhealthy"]])
    state_inventory(kube, "n1", status(facts(0), facts(1)))
    wait_until(lambda: taints(kube) == [[], []])
    assert slices(kube)[SLICE_N1]["spec"]["pool"]["generation"] == 1


def test_a_device_is_cordoned_by_its_inventory_and_uncordoned(kube: FakeKube, controller: Controller) -> None:
    add_node(kube)
    state_inventory(kube, "n1", status(facts(0), facts(1)))
    wait_until(lambda: SLICE_N1 in slices(kube))
    node = {"metadata": {"name": "n1"}}
    for uuids, keys in ([facts(1).uuid], ["vgpu.dra-driver.io/cordoned"]), ([], list[str]()):
        kube.patch(kube_api.NODE_INVENTORIES, node, {"spec": {"cordonedDevices": uuids}})
        wait_until(partial(_taints_are, kube, [[], keys]))


def test_without_taints_an_unhealthy_device_leaves_the_offer_and_comes_back() -> None:
    kube = GateOffKube()
    controller = make_controller(kube)
    add_node(kube)
    state_inventory(kube, "n1", status(facts(0), facts(1)))
    controller.start()
    wait_until(lambda: SLICE_N1 in slices(kube))
    assert len(taints(kube)) == 4
    state_inventory(kube, "n1", status(facts(0), facts(1, healthy=False, health="Xid 79")))
    wait_until(lambda: len(taints(kube)) == 2)
    state_inventory(kube, "n1", status(facts(0), facts(1)))
    wait_until(lambda: len(taints(kube)) == 4)
    controller.stop()
    kube.set_down(True)


@pytest.mark.parametrize("gone", ["node", "inventory"])
def test_slices_go_with_the_node_or_its_inventory(kube: FakeKube, controller: Controller, gone: str) -> None:
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    wait_until(lambda: SLICE_N1 in slices(kube))
    resource = kube_api.NODES if gone == "node" else kube_api.NODE_INVENTORIES
    kube.delete(resource, {"metadata": {"name": "n1"}})
    wait_until(lambda: not slices(kube))


def inventories(kube: FakeKube) -> list[str]:
    return [obj["metadata"]["name"] for obj in kube.objects(kube_api.NODE_INVENTORIES)]


def test_the_inventory_of_a_node_that_is_gone_goes_once_its_agent_is_silent(
    kube: FakeKube, request: pytest.FixtureRequest
) -> None:
    state_inventory(kube, "gone", status(facts(), heartbeat=datetime.now(UTC) - timedelta(minutes=5)))
    state_inventory(kube, "young", status(facts()))
    controller: Controller = request.getfixturevalue("controller")  # only now: it takes away what states nothing yet
    wait_until(lambda: inventories(kube) == ["young"])
    wait_until(controller.idle)
    assert inventories(kube) == ["young"]


def test_a_cordon_outlives_its_node_and_holds_when_the_node_is_registered_again(
    kube: FakeKube, request: pytest.FixtureRequest
) -> None:
    long_ago = datetime.now(UTC) - timedelta(minutes=5)
    state_inventory(kube, "n1", status(facts(0), facts(1), heartbeat=long_ago))
    spec = {"cordonedDevices": [facts(1).uuid]}
    kube.patch(kube_api.NODE_INVENTORIES, {"metadata": {"name": "n1"}}, {"spec": spec})
    state_inventory(kube, "gone", status(facts(2), heartbeat=long_ago))
    request.getfixturevalue("controller")  # only now: it takes away what states nothing yet
    wait_until(lambda: inventories(kube) == ["n1"])
    wait_until(lambda: events(kube, "n1"))
    (event,) = events(kube, "n1")
    assert event["reason"] == "VGPUInventoryKept"
    assert event["note"] == (
        f"its Node is gone; kept for what it says: cordonedDevices: {facts(1).uuid}. If that is not to count when a "
        "Node n1 comes back: kubectl delete nodeinventory n1"
    )

    add_node(kube)
    state_inventory(kube, "n1", status(facts(0), facts(1)))

    wait_until(lambda: SLICE_N1 in slices(kube))
    assert taints(kube) == [[], ["vgpu.dra-driver.io/cordoned"]]


def test_a_node_that_is_made_anew_under_its_name_offers_nothing_until_its_own_agent_has_looked(
    kube: FakeKube, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrating, "WITHDRAWAL_S", 0.05)
    add_node(kube)
    state_inventory(kube, "n1", status(facts(0)))
    wait_until(lambda: SLICE_N1 in slices(kube))
    kube.delete(kube_api.NODES, {"metadata": {"name": "n1"}})
    uid = add_node(kube)
    wait_until(lambda: not slices(kube))
    assert settled(kube, controller) == {}
    state_inventory(kube, "n1", status(facts(1)))
    wait_until(lambda: _offered(kube) == [facts(1).name])
    assert [owner["uid"] for owner in slices(kube)[SLICE_N1]["metadata"]["ownerReferences"]] == [uid]


def _offered(kube: FakeKube) -> list[str]:
    return [device["name"] for obj in slices(kube).values() for device in obj["spec"]["devices"]]


def test_a_node_that_was_replaced_while_no_controller_ran_offers_nothing_of_the_one_before_it(
    kube: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrating, "WITHDRAWAL_S", 0.05)
    add_node(kube)
    state_inventory(kube, "n1", status(facts(0)))
    first = make_controller(kube)
    first.start()
    wait_until(lambda: SLICE_N1 in slices(kube))
    first.stop()
    kube.delete(kube_api.NODES, {"metadata": {"name": "n1"}})
    add_node(kube)
    second = make_controller(kube, "b")
    second.start()
    wait_until(lambda: not slices(kube))
    assert settled(kube, second) == {}
    state_inventory(kube, "n1", status(facts(1)))
    wait_until(lambda: _offered(kube) == [facts(1).name])
    second.stop()


def test_a_node_that_was_renamed_offers_its_gpus_under_its_new_name_alone(
    kube: FakeKube, controller: Controller
) -> None:
    add_node(kube)
    state_inventory(kube, "n1", status(facts(0)))
    wait_until(lambda: SLICE_N1 in slices(kube))
    kube.delete(kube_api.NODES, {"metadata": {"name": "n1"}})
    add_node(kube, "n2")
    state_inventory(kube, "n2", status(facts(0)))
    wait_until(lambda: list(slices(kube)) == ["00000-n2-vgpu.dra-driver.io"])


def test_an_agent_that_outlived_its_node_is_asked_which_one_it_is_on(
    kube: FakeKube, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "_DOUBT_S", 0.05)
    add_node(kube)
    state_inventory(kube, "n1", status(facts(0)))
    wait_until(lambda: SLICE_N1 in slices(kube))
    kube.delete(kube_api.NODES, {"metadata": {"name": "n1"}})
    add_node(kube)
    wait_until(lambda: not kube.get(kube_api.NODE_INVENTORIES, "n1")["status"]["nodeUID"])


def test_an_agent_is_told_of_an_annotation_on_a_claim_of_its_node(kube: FakeKube, controller: Controller) -> None:
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    held = kube.create(CLAIMS, claim("train", results=[result(facts().name, memory="1Gi", cores="10", shares="1")]))
    uid = held["metadata"]["uid"]

    def annotate_and_wait(text: str | None) -> None:
        kube.patch(CLAIMS, held, {"metadata": {"annotations": {names.ANNOTATION_LIMITS: text}}})
        stored = ClaimView.from_object(kube.objects(CLAIMS)[0])
        claims = [] if text is None else [{"uid": uid, "digest": stored.digest()}]
        found = partial(kube.get, kube_api.NODE_INVENTORIES, "n1")
        wait_until(lambda: found()["status"].get("followedClaims") == claims)

    annotate_and_wait(None)
    annotate_and_wait('{"suspended": true}')
    annotate_and_wait(None)


def test_more_than_128_devices_take_several_slices_of_one_generation(kube: FakeKube, controller: Controller) -> None:
    add_node(kube)
    many = [facts(0, name=f"gpu-{number}") for number in range(130)]
    state_inventory(kube, "n1", status(*many))
    wait_until(lambda: len(slices(kube)) == 2)
    stored = slices(kube)
    assert [len(stored[name]["spec"]["devices"]) for name in sorted(stored)] == [128, 2]
    assert {obj["spec"]["pool"]["generation"] for obj in stored.values()} == {1}
    assert {obj["spec"]["pool"]["resourceSliceCount"] for obj in stored.values()} == {2}


def test_fixed_slots_are_offered_where_the_api_server_drops_the_fields_of_all_other_modes() -> None:
    kube = GateOffKube()
    controller = make_controller(kube)
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    controller.start()
    wait_until(lambda: SLICE_N1 in slices(kube))
    devices = settled(kube, controller)[SLICE_N1]["spec"]["devices"]
    assert [device["name"] for device in devices] == [f"{facts().name}-slot-5120m-50c-{index}" for index in (0, 1)]
    controller.stop()
    kube.set_down(True)


def test_nothing_is_offered_where_the_api_server_drops_limits_of_the_mode_that_was_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kube = GateOffKube()
    controller = make_controller(kube, offer_mode="consumable")
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    controller.start()
    wait_until(lambda: SLICE_N1 in slices(kube))
    assert settled(kube, controller)[SLICE_N1]["spec"]["devices"] == []
    reports = [record.message for record in caplog.records if "feature gate" in record.message]
    controller.stop()
    kube.set_down(True)
    (report,) = reports
    assert report == (
        "the offer mode is set to consumable, which this cluster cannot carry: "
        "the API server dropped devices[].capacity.memory.requestPolicy, devices[].capacity.cores.requestPolicy, "
        "devices[].capacity.shares.requestPolicy, devices[].allowMultipleAllocations of a ResourceSlice: its feature "
        "gate DRAConsumableCapacity is off. Devices are not offered, since their limits could not be kept; turn the "
        "gate on for kube-apiserver, kube-scheduler and kubelet"
    )


def test_devices_are_offered_once_the_gate_is_turned_on_without_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "_PROBE_AGAIN_S", 0.05)
    kube = GateOffKube()
    controller = make_controller(kube, offer_mode="consumable")
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    controller.start()
    wait_until(lambda: SLICE_N1 in slices(kube))
    assert settled(kube, controller)[SLICE_N1]["spec"]["devices"] == []
    kube.gate_on = True
    wait_until(lambda: len(slices(kube)[SLICE_N1]["spec"]["devices"]) == 1)
    controller.stop()
    kube.set_down(True)


def test_devices_are_withdrawn_when_the_gate_is_turned_off_under_a_running_controller() -> None:
    kube = GateOffKube()
    kube.gate_on = True
    controller = make_controller(kube, offer_mode="consumable")
    add_node(kube)
    add_node(kube, "n2")
    state_inventory(kube, "n1", status(facts(1)))
    state_inventory(kube, "n2", status(facts(2)))
    controller.start()
    wait_until(lambda: len(slices(kube)) == 2)
    settled(kube, controller)
    kube.gate_on = False
    state_inventory(kube, "n1", status(facts(1), facts(3)))
    wait_until(lambda: [obj["spec"]["devices"] for obj in slices(kube).values()] == [[], []])
    controller.stop()
    kube.set_down(True)


def test_an_api_server_that_is_away_for_a_while_costs_nothing_but_time(kube: FakeKube) -> None:
    controller = make_controller(kube, lease_duration_s=1.5, renew_deadline_s=1.0)
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    controller.start()
    wait_until(lambda: SLICE_N1 in slices(kube))
    kube.set_down(True)
    wait_until(lambda: not controller.is_leading())
    kube.set_down(False)
    kube.delete(SLICES, slices(kube)[SLICE_N1])
    wait_until(lambda: SLICE_N1 in slices(kube))
    assert controller.alive() == ""
    controller.stop()


def test_a_write_that_fails_is_tried_again(kube: FakeKube, controller: Controller) -> None:
    wait_until(controller.idle)
    uid = add_node(kube)
    wait_until(controller.idle)
    kube.create(kube_api.NODE_INVENTORIES, {"metadata": {"name": "n1"}})
    stated = status(facts(), node_uid=uid).model_dump(mode="json", by_alias=True, exclude_none=True)
    kube.patch(kube_api.NODE_INVENTORIES, {"metadata": {"name": "n1"}}, {"status": stated}, "status")
    kube.fail_next(KubeError("boom", 500), path=SLICES.path())
    wait_until(lambda: SLICE_N1 in slices(kube))


def events(kube: FakeKube, name: str) -> list[JSON]:
    return [obj for obj in kube.objects(kube_api.EVENTS) if obj["regarding"]["name"] == name]


SKEW = "the scheduler allocated it without amounts (feature gate DRAConsumableCapacity)"
LESS = {"apiVersion": "vgpu.dra-driver.io/v1alpha1", "kind": "VGPUConfig"}


@pytest.mark.parametrize(
    ("given", "config", "problem"),
    [
        (
            result(facts().name, memory="4Gi", cores="20", shares="1"),
            LESS | {"memory": "6Gi"},
            "memory: found 6Gi, expected at most the 4Gi that were allocated",
        ),
        (
            result(f"{facts().name}-slot-5120m-50c-0"),
            LESS | {"cores": 60},
            "cores: found 60, expected at most the 50 that were allocated",
        ),
        (
            result(facts().name),
            None,
            f"found 12Gi of memory and 0 cores asked for, expected at most the 10Gi and 100 of {facts().name}: {SKEW}",
        ),
    ],
)
def test_a_claim_whose_pod_will_wait_on_its_node_is_told_why_as_soon_as_it_has_its_devices(
    kube: FakeKube, controller: Controller, given: dict[str, Any], config: dict[str, Any] | None, problem: str
) -> None:
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    wait_until(lambda: SLICE_N1 in slices(kube))
    made = claim("c", memory="12Gi" if config is None else "4Gi", results=[given])
    if config is not None:
        parameters = {"source": "FromClaim", "opaque": {"driver": "vgpu.dra-driver.io", "parameters": config}}
        made["status"]["allocation"]["devices"]["config"] = [parameters]
    kube.create(CLAIMS, made)
    wait_until(lambda: events(kube, "c"))
    (event,) = events(kube, "c")
    assert (event["reason"], event["note"]) == ("VGPUConfigInvalid", f"ResourceClaim demo/c: request gpu: {problem}")


def test_a_claim_that_no_device_can_serve_gets_its_reasons_on_claim_and_pod(
    kube: FakeKube, controller: Controller
) -> None:
    add_node(kube)
    state_inventory(kube, "n1", status(facts(0), facts(1, healthy=False, health="Xid 79")))
    wait_until(lambda: SLICE_N1 in slices(kube))
    held = claim("held", results=[result(facts(0).name, memory="6Gi", cores="60", shares="1")])
    kube.create(CLAIMS, held)
    kube.create(CLAIMS, claim("waits", memory="8Gi", cores="30"))
    wait_until(controller.idle)
    kube.create(kube_api.PODS, pod("p", "waits"))
    wait_until(lambda: events(kube, "waits") and events(kube, "p"))
    note = (
        "ResourceClaim demo/waits: request gpu (cores 30, memory 8Gi): 0 of 2 devices can serve it: "
        f"n1/{facts(0).name}: CardInsufficientMemory (4Gi free of 10Gi, asked 8Gi); "
        f"n1/{facts(1).name}: CardUnhealthy (Xid 79)"
    )
    (about_claim,), (about_pod,) = events(kube, "waits"), events(kube, "p")
    assert about_claim["note"] == about_pod["note"] == note
    assert about_claim["reason"] == "VGPUUnsatisfiable"
    assert about_claim["type"] == "Warning"
    assert about_claim["regarding"]["kind"] == "ResourceClaim"
    assert about_claim["related"]["name"] == "p"
    assert about_pod["regarding"]["kind"] == "Pod"


def test_a_pod_with_very_many_requests_is_explained_by_parts(kube: FakeKube, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at all of it would make a reason for each request and device: gigabytes, on a large cluster."""
    offering = make_controller(kube)
    offering.start()
    add_node(kube)
    state_inventory(kube, "n1", status(facts(0)))
    wait_until(lambda: SLICE_N1 in slices(kube))
    offering.stop()
    sizes: list[int] = []

    def counted(claims: Sequence[ClaimView], *cluster: Any) -> list[RequestExplanation]:
        sizes.append(sum(len(each.requests) for each in claims))
        return explain(claims, *cluster)

    monkeypatch.setattr(pending, "explain", counted)
    waiting = [f"waits{number}" for number in range(4)]
    for name in waiting:
        requests = [request(f"r{number}", memory="80Gi") for number in range(32)]
        kube.create(CLAIMS, claim(name, requests=requests))
    kube.create(kube_api.PODS, pod("p", *waiting))
    controller = make_controller(kube)  # knows all of the claims before it looks at any
    controller.start()
    wait_until(lambda: all(events(kube, name) for name in waiting))
    controller.stop()
    assert set(sizes) == {64}
    assert "0 of 1 device can serve it" in events(kube, waiting[-1])[0]["note"]


def test_a_pending_claim_is_counted_until_it_is_allocated(kube: FakeKube) -> None:
    registry = CollectorRegistry()
    controller = make_controller(kube, registry=registry)
    add_node(kube)
    state_inventory(kube, "n1", status(facts(0)))
    stored = kube.create(CLAIMS, claim("waits", memory="80Gi"))
    kube.create(kube_api.PODS, pod("p", "waits"))
    controller.start()
    wait_until(lambda: registry.get_sample_value("vgpu_controller_pending_claims") == 1)
    allocated = claim("waits", results=[result(facts(0).name, memory="1Gi", cores="0", shares="1")])
    kube.patch(CLAIMS, stored, {"status": allocated["status"]}, "status")
    wait_until(lambda: registry.get_sample_value("vgpu_controller_pending_claims") == 0)
    controller.stop()


def test_a_controller_that_leads_no_more_leaves_the_figures_to_its_successor(kube: FakeKube) -> None:
    registry = CollectorRegistry()
    controller = make_controller(kube, registry=registry)
    add_node(kube)
    state_inventory(kube, "n1", status(facts(0)))
    kube.create(CLAIMS, claim("waits", memory="80Gi"))
    kube.create(kube_api.PODS, pod("p", "waits"))
    controller.start()
    wait_until(lambda: registry.get_sample_value("vgpu_controller_pending_claims") == 1)
    wait_until(lambda: registry.get_sample_value("vgpu_controller_slices") == 1)
    controller.stop()

    figures = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in registry.collect()
        if metric.type == "gauge"
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }
    gauges = ("crd_outdated", "leader", "pending_claims", "slices")
    assert figures == {(f"vgpu_controller_{gauge}",): 0 for gauge in gauges}


def test_a_claim_is_looked_at_again_when_what_others_hold_arrives_late(kube: FakeKube, controller: Controller) -> None:
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    wait_until(lambda: SLICE_N1 in slices(kube))
    kube.create(CLAIMS, claim("waits", memory="8Gi"))
    kube.create(kube_api.PODS, pod("p", "waits"))
    wait_until(controller.idle)
    assert events(kube, "waits") == []
    kube.create(CLAIMS, claim("held", results=[result(facts().name, memory="6Gi", cores="0", shares="1")]))
    wait_until(lambda: events(kube, "waits"))


def test_a_device_class_that_comes_late_makes_its_claims_ours(kube: FakeKube, controller: Controller) -> None:
    kube.create(CLAIMS, claim("waits", requests=[request("gpu", device_class="team")]))
    kube.create(kube_api.PODS, pod("p", "waits"))
    wait_until(controller.idle)
    kube.create(CLASSES, device_class("team"))
    wait_until(lambda: events(kube, "waits"))
    assert events(kube, "waits")[0]["note"] == (
        "ResourceClaim demo/waits: request gpu (a whole device): no node offers a device; is the node agent running?"
    )


def test_a_controller_that_cannot_list_a_kind_says_which(kube: FakeKube) -> None:
    everything = kube_api.Selection()

    class WithoutCRD(FakeKube):
        def list(self, resource: Resource, selection: kube_api.Selection = everything) -> JSON:
            if resource == kube_api.NODE_INVENTORIES:
                raise KubeError("the server could not find the requested resource", 404)
            return super().list(resource, selection)

    bare = WithoutCRD()
    controller = make_controller(bare)
    assert controller.ready() == "the API server has not answered yet, or not for a while"
    controller.start()
    wait_until(lambda: controller.ready() == "the API server has not listed nodeinventories yet")
    controller.stop()
    bare.set_down(True)


def test_an_object_that_nobody_thought_of_hides_no_other(kube: FakeKube, controller: Controller) -> None:
    kube.create(kube_api.PODS, {"metadata": {"namespace": "demo", "name": "odd"}, "spec": {"resourceClaims": [3]}})
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    wait_until(lambda: SLICE_N1 in slices(kube))
    kube.create(CLAIMS, claim("waits", memory="80Gi"))
    kube.create(kube_api.PODS, pod("p", "waits"))
    wait_until(lambda: events(kube, "waits"))


def test_a_claim_of_another_driver_gets_no_event(kube: FakeKube, controller: Controller) -> None:
    kube.create(CLASSES, device_class("other", "other.example"))
    foreign = claim("foreign", requests=[{"name": "r", "exactly": {"deviceClassName": "other"}}])
    kube.create(CLAIMS, foreign)
    kube.create(CLAIMS, claim("ours", memory="1Gi"))
    kube.create(kube_api.PODS, pod("p", "foreign"))
    kube.create(kube_api.PODS, pod("q", "ours"))
    wait_until(lambda: events(kube, "q"))
    wait_until(controller.idle)
    assert events(kube, "foreign") == []


def test_wrong_parameters_are_reported_before_any_pod_exists(kube: FakeKube, controller: Controller) -> None:
    wrong = {"apiVersion": "vgpu.dra-driver.io/v1alpha1", "kind": "VGPUConfig", "memroy": "1Gi"}
    kube.create(CLAIMS, claim("typo", config=wrong))
    wait_until(lambda: events(kube, "typo"))
    (event,) = events(kube, "typo")
    assert event["reason"] == "VGPUConfigInvalid"
    assert event["note"] == (
        "ResourceClaim demo/typo: memroy: unknown field, expected one of memory, cores, policy, priority, overuse, "
        "apiVersion, kind"
    )


def test_wrong_parameters_of_a_template_are_reported_on_the_template(kube: FakeKube, controller: Controller) -> None:
    wrong: dict[str, Any] = {"apiVersion": "vgpu.dra-driver.io/v1alpha1", "kind": "VGPUConfig", "cores": -1}
    spec = claim(config=wrong)["spec"]
    template = {"metadata": {"namespace": "demo", "name": "t"}, "spec": {"spec": spec}}
    kube.create(Resource("resource.k8s.io", "v1", "resourceclaimtemplates", namespaced=True), template)
    wait_until(lambda: events(kube, "t"))
    assert events(kube, "t")[0]["note"] == (
        "ResourceClaimTemplate demo/t: cores: found -1, expected a whole number from 1 to 100 (percent of one device)"
    )


def test_two_controllers_take_turns_and_publish_once(kube: FakeKube) -> None:
    first, second = make_controller(kube, "first"), make_controller(kube, "second")
    first.start()
    wait_until(first.is_leading)
    second.start()
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    wait_until(lambda: SLICE_N1 in slices(kube))
    wait_until(lambda: second.ready() == "")
    assert not second.is_leading()
    first.stop()
    wait_until(second.idle)
    version = slices(kube)[SLICE_N1]["metadata"]["resourceVersion"]
    state_inventory(kube, "n1", status(facts(0, memory_bytes=20 * GI)))
    wait_until(lambda: slices(kube)[SLICE_N1]["metadata"]["resourceVersion"] != version)
    second.stop()


def test_a_fault_at_the_begin_of_a_term_is_tried_again_while_the_lease_is_held(
    kube: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [ValueError("no such thing"), ValueError("no such thing")]

    def choose(*arguments: Any) -> Any:
        if faults:
            raise faults.pop()
        return probing.choose_mode(*arguments)

    monkeypatch.setattr(choosing, "choose_mode", choose)
    controller = make_controller(kube)
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    controller.start()
    wait_until(lambda: SLICE_N1 in slices(kube))
    assert not faults
    assert controller.ready() == ""
    controller.stop()


def test_scaling_is_offered_marked_and_told_to_the_agent_until_it_is_taken_back(kube: FakeKube) -> None:
    rule = OfferRule.model_validate({"memoryScaling": 1.5})
    controller = make_controller(kube, rules=(rule,))
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    controller.start()
    wait_until(lambda: SLICE_N1 in slices(kube))
    (device,) = slices(kube)[SLICE_N1]["spec"]["devices"]
    assert device["capacity"]["memory"]["value"] == "15Gi"
    assert device["capacity"]["memory"]["requestPolicy"]["default"] == "10Gi"
    assert device["attributes"]["oversubscribed"] == {"bool": True}
    (inventory,) = kube.objects(kube_api.NODE_INVENTORIES)
    assert inventory["status"]["offers"] == [{"device": facts().name, "memoryBytes": 15 * GI, "cores": 100}]
    assert inventory["status"]["offerMode"] == "consumable"
    kube.patch(kube_api.NODE_INVENTORIES, {"metadata": {"name": "n1"}}, {"spec": {"memoryScaling": 1.0}})
    wait_until(lambda: "offers" not in kube.objects(kube_api.NODE_INVENTORIES)[0]["status"])
    wait_until(lambda: "10Gi" in str(slices(kube)[SLICE_N1]["spec"]["devices"][0]["capacity"]["memory"]["value"]))
    controller.stop()


def test_a_claim_that_a_rule_keeps_from_every_device_is_told_which(
    kube: FakeKube,
) -> None:
    rules = kube_api.taint_rules("v1")
    kube.set_kinds(rules)
    add_node(kube)
    state_inventory(kube, "n1", status(facts()))
    controller = make_controller(kube)
    controller.start()
    try:
        wait_until(lambda: SLICE_N1 in slices(kube))
        wait_until(controller.idle)
        kube.create(CLAIMS, claim("waits", memory="1Gi"))
        kube.create(kube_api.PODS, pod("p", "waits"))
        kube.create(rules, taint_rule(pool="n1"))
        wait_until(lambda: len(kube.objects(kube_api.EVENTS)) == 2)
        (note,) = {event["note"] for event in kube.objects(kube_api.EVENTS)}
        assert note == (
            "ResourceClaim demo/waits: request gpu (memory 1Gi): 0 of 1 device can serve it: "
            f"n1/{facts().name}: CardTainted (DeviceTaintRule maintenance: example.com/repair:NoSchedule)"
        )
    finally:
        controller.stop()
