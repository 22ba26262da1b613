"""NodeInventory: what an agent states is valid by its CRD, and old controllers read new agents."""

from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest

from api.errors import StateError
from api.nodeinventory import DeviceFacts, InventoryStatus, NodeInventory, crd, to_object

_STATUS = InventoryStatus(
    node_uid="n-1",
    driver_name="vgpu.dra-driver.io",
    heartbeat_time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    devices=[
        DeviceFacts(
            name="gpu-1",
            uuid="GPU-1",
            vendor="nvidia",
            product_name="NVIDIA A10",
            memory_bytes=10 << 30,
            index=0,
            numa_node=1,
        )
    ],
)


def _schema() -> dict[str, object]:
    (version,) = crd()["spec"]["versions"]
    schema: dict[str, object] = version["schema"]["openAPIV3Schema"]
    return schema


def _validate(inventory: dict[str, Any]) -> None:
    """As the API server does: its schemas have the keywords of draft 4."""
    jsonschema.validate(inventory, _schema(), jsonschema.Draft4Validator)


def test_an_inventory_is_read_back_as_it_was_written() -> None:
    assert NodeInventory.from_object(to_object("node-1", _STATUS)).status == _STATUS


def test_what_an_agent_writes_is_valid_by_the_schema_of_the_crd() -> None:
    _validate(to_object("node-1", _STATUS))


def test_the_schema_refuses_a_device_without_memory() -> None:
    inventory = to_object("node-1", _STATUS)
    del inventory["status"]["devices"][0]["memoryBytes"]
    with pytest.raises(jsonschema.ValidationError, match="'memoryBytes' is a required property"):
        _validate(inventory)


def test_the_schema_is_structural() -> None:
    def check(node: object) -> None:
        if isinstance(node, dict):
            assert not {"$ref", "anyOf", "$defs"} & node.keys()
            for child in node.values():
                check(child)

    check(_schema())


@pytest.mark.parametrize("scaling", ["memoryScaling", "coresScaling"])
def test_the_schema_refuses_to_offer_nothing_of_what_is_there(scaling: str) -> None:
    _validate({**to_object("node-1", _STATUS), "spec": {scaling: 0.5}})
    with pytest.raises(jsonschema.ValidationError, match="0 is less than or equal to the minimum of 0"):
        _validate({**to_object("node-1", _STATUS), "spec": {scaling: 0}})


def test_a_wish_that_cannot_be_read_hides_neither_facts_nor_other_wishes() -> None:
    spec = {"memoryScaling": 0, "cordonedDevices": ["gpu-1"]}
    inventory = NodeInventory.from_object({**to_object("node-1", _STATUS), "spec": spec})
    assert inventory.status == _STATUS
    assert inventory.spec.cordoned_devices == ["gpu-1"]
    assert inventory.spec.memory_scaling is None
    assert inventory.problem == (
        "NodeInventory node-1: spec.memoryScaling: found 0, expected greater than or equal to 0.01"
    )


def test_an_inventory_before_the_first_look_has_no_status() -> None:
    assert NodeInventory.from_object(to_object("node-1")).status is None


def test_fields_of_a_newer_agent_are_passed_over() -> None:
    inventory = to_object("node-1", _STATUS)
    inventory["status"]["devices"][0]["fromTheFuture"] = True
    assert NodeInventory.from_object(inventory).status == _STATUS


def test_a_heartbeat_without_a_zone_is_in_utc() -> None:
    """The API server takes such a time, by a stolen token say; it must not be one that no other can be held against."""
    inventory = to_object("node-1", _STATUS)
    inventory["status"]["heartbeatTime"] = "2026-11-21T14:00:20"
    status = NodeInventory.from_object(inventory).status
    assert status is not None
    assert status.heartbeat_time == datetime(2026, 11, 21, 14, 0, 20, tzinfo=UTC)


def test_a_damaged_inventory_is_refused_by_name_and_field() -> None:
    inventory = to_object("node-1", _STATUS)
    inventory["status"]["devices"][0]["memoryBytes"] = "much"
    with pytest.raises(
        StateError, match=r"^NodeInventory node-1: status.devices.0.memoryBytes: found 'much', expected"
    ):
        NodeInventory.from_object(inventory)
