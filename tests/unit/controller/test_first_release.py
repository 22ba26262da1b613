"""A controller of this release with the CRD and the agents of the first one, and with agents of one that is to come."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from api import kube as kube_api
from api.kube import JSON, Resource
from api.kubefake import FakeKube
from api.nodeinventory import to_object
from controller.offers import migrating
from tests.unit.controller.builders import SLICES, add_node, facts, make_controller, state_inventory, status, wait_until

_CRD = yaml.safe_load((Path(__file__).parents[2] / "integration/controller/first-crd.yaml").read_text())
_SCHEMA = _CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def _pruned(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return what an API server keeps of a value."""
    if isinstance(value, Mapping):
        known = schema.get("properties", {})
        return {key: _pruned(child, known[key]) for key, child in value.items() if key in known}
    if isinstance(value, list):
        return [_pruned(child, schema["items"]) for child in value]
    return value


class FirstCRDKube(FakeKube):
    """An API server with the CRD of the first release, which nobody updates."""

    def patch(
        self, resource: Resource, target: Mapping[str, Any], patch: Mapping[str, Any], subresource: str | None = None
    ) -> JSON:
        if resource == kube_api.NODE_INVENTORIES and "status" in patch:
            patch = {**patch, "status": _pruned(patch["status"], _SCHEMA["properties"]["status"])}
        return super().patch(resource, target, patch, subresource)


def _devices(kube: FakeKube) -> list[str]:
    return [device["name"] for obj in kube.objects(SLICES) for device in obj["spec"].get("devices") or []]


@pytest.mark.parametrize("kube", [FirstCRDKube(), FakeKube()], ids=["first CRD", "CRD of this release"])
def test_gpus_that_an_agent_of_the_first_release_states_are_offered(
    kube: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody can say here that nothing of the node was ever offered, so what may have been withdrawn is waited for.
    monkeypatch.setattr(migrating, "WITHDRAWAL_S", 0.2)
    uid = add_node(kube)
    stated = to_object("n1", status(facts(0), facts(1), node_uid=uid))
    old = _pruned(stated["status"], _SCHEMA["properties"]["status"])
    assert "offered" not in old["devices"][0]
    kube.create(kube_api.NODE_INVENTORIES, {key: stated[key] for key in ("apiVersion", "kind", "metadata")})
    kube.patch(kube_api.NODE_INVENTORIES, stated, {"status": old}, "status")
    controller = make_controller(kube)
    controller.start()
    try:
        wait_until(lambda: _devices(kube) == [facts(0).name, facts(1).name])
    finally:
        controller.stop()


def test_gpus_that_an_agent_of_a_release_to_come_states_are_offered(kube: FakeKube) -> None:
    uid = add_node(kube)
    stated = to_object("n1", status(facts(0), node_uid=uid))
    stated["status"]["devices"][0] |= {"fromTheFuture": {"a": [1]}}
    stated["status"]["alsoNew"] = True
    state_inventory(kube, "n1", status(node_uid=uid))
    kube.patch(kube_api.NODE_INVENTORIES, stated, {"status": stated["status"]}, "status")
    controller = make_controller(kube)
    controller.start()
    try:
        wait_until(lambda: _devices(kube) == [facts(0).name])
        stored = kube.get(kube_api.NODE_INVENTORIES, "n1")["status"]
        assert (stored["alsoNew"], stored["devices"][0]["fromTheFuture"]) == (True, {"a": [1]})
    finally:
        controller.stop()
