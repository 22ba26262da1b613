"""What the agent states of its node, and how little it writes."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from api import kube
from api.errors import KubeError, StateError
from api.kubefake import FakeKube
from api.nodeinventory import NodeInventory, OfferedRoom
from kubeletplugin.agent import NodeAgent
from kubeletplugin.hardware.devices import Discovery
from kubeletplugin.hardware.discovery import FakeDiscovery
from kubeletplugin.hardware.inventory import InventoryWriter
from tests.unit.kubeletplugin.builders import GIB, NODE, discovery, gpu

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = datetime(2026, 1, 2, 3, 4, 25, tzinfo=UTC)


@pytest.fixture
def writer(client: FakeKube, tmp_path: Path) -> InventoryWriter:
    return start_writer(client, tmp_path)


def start_writer(client: FakeKube, folder: Path) -> InventoryWriter:
    return InventoryWriter(client, NODE, "vgpu.dra-driver.io", "1.2.3", folder / "offers.json")


def stored(client: FakeKube) -> NodeInventory:
    return NodeInventory.from_object(client.get(kube.NODE_INVENTORIES, NODE))


def test_an_inventory_names_node_driver_and_devices(client: FakeKube, writer: InventoryWriter) -> None:
    writer.write(discovery(gpu(0), gpu(1, shareable=False, reason="MIG mode is enabled")), NOW)

    status = stored(client).status
    assert status is not None
    assert status.node_uid == client.get(kube.NODES, NODE)["metadata"]["uid"]
    assert (status.driver_name, status.agent_version, status.heartbeat_time) == ("vgpu.dra-driver.io", "1.2.3", NOW)
    assert [(d.name, d.memory_bytes, d.shareable, d.health) for d in status.devices] == [
        (gpu(0).name, 10 * GIB, True, ""),
        (gpu(1).name, 10 * GIB, False, "MIG mode is enabled"),
    ]


def test_what_waits_for_a_reset_is_stated_of_the_devices_that_it_is_true_of(
    client: FakeKube, writer: InventoryWriter
) -> None:
    writer.write(discovery(gpu(0, remap_pending=True), gpu(1, pages_pending=True), gpu(2)), NOW)

    devices = client.get(kube.NODE_INVENTORIES, NODE)["status"]["devices"]
    keys = ("healthy", "remapPending", "pagesPending")
    assert [{key: facts[key] for key in keys if key in facts} for facts in devices] == [
        {"healthy": True, "remapPending": True},
        {"healthy": True, "pagesPending": True},
        {"healthy": True},
    ]


def test_the_agent_of_a_second_driver_leaves_the_inventory_alone_until_the_first_is_gone(
    client: FakeKube, writer: InventoryWriter, tmp_path: Path
) -> None:
    second = InventoryWriter(client, NODE, "b.example.com", "1.2.3", tmp_path / "b.json")
    writer.write(discovery(gpu(0)), NOW)

    with pytest.raises(StateError) as caught:
        second.write(discovery(gpu(1)), LATER)
    assert str(caught.value) == (
        "NodeInventory node-1: found that of driver vgpu.dra-driver.io, which is at work on this node, expected that "
        "of b.example.com: a node has one driver, so keep one off it (nodeSelector)"
    )
    writer.write(discovery(gpu(0)), LATER)
    status = stored(client).status
    assert status is not None
    assert (status.driver_name, [facts.name for facts in status.devices]) == ("vgpu.dra-driver.io", [gpu(0).name])

    second.write(discovery(gpu(1)), LATER + timedelta(minutes=3))
    status = stored(client).status
    assert status is not None
    assert (status.driver_name, [facts.name for facts in status.devices]) == ("b.example.com", [gpu(1).name])
    writer.write(discovery(gpu(0)), LATER + timedelta(minutes=3))  # it hears of the other by this heartbeat
    with pytest.raises(StateError, match=r"found that of driver b\.example\.com"):
        writer.write(discovery(gpu(0)), LATER + timedelta(minutes=3))


def _refuse(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_offers_that_a_full_disk_does_not_take_count_and_are_stored_later(
    client: FakeKube, writer: InventoryWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.write(discovery(gpu(0)), NOW)
    offers = [{"device": gpu(0).name, "memoryBytes": 15 * GIB, "cores": 150}]
    client.patch(kube.NODE_INVENTORIES, {"metadata": {"name": NODE}}, {"status": {"offers": offers}}, "status")

    with monkeypatch.context() as full:
        full.setattr("kubeletplugin.hardware.inventory.write_atomically", _refuse)
        writer.write(discovery(gpu(0)), LATER)
    assert writer.offers[gpu(0).name].memory_bytes == 15 * GIB
    assert start_writer(client, tmp_path).offers == {}

    writer.write(discovery(gpu(0)), LATER)

    assert start_writer(client, tmp_path).offers == writer.offers


def test_the_offer_mode_is_known_once_the_controller_has_stated_it(client: FakeKube, writer: InventoryWriter) -> None:
    writer.write(discovery(gpu(0)), NOW)
    assert writer.offer_mode == ""
    client.patch(kube.NODE_INVENTORIES, {"metadata": {"name": NODE}}, {"status": {"offerMode": "counters"}}, "status")

    writer.write(discovery(gpu(0)), LATER)

    assert writer.offer_mode == "counters"


def test_which_claims_are_annotated_is_known_as_the_controller_states_it_to_this_agent_and_not_to_the_one_before_it(
    client: FakeKube, writer: InventoryWriter, tmp_path: Path
) -> None:
    writer.write(discovery(gpu(0)), NOW)
    told = {"status": {"followedClaims": [{"uid": "uid-1", "digest": "d"}]}}
    client.patch(kube.NODE_INVENTORIES, {"metadata": {"name": NODE}}, told, "status")

    writer.write(discovery(gpu(0)), LATER)
    assert writer.followed == {"uid-1": "d"}

    writer = start_writer(client, tmp_path)
    writer.write(discovery(gpu(0)), LATER)
    assert writer.followed is None


@pytest.mark.parametrize("damage", ["", "[{", '[{"device": 1}]', "3"])
def test_what_is_offered_is_known_after_a_restart_before_the_inventory_is_written(
    client: FakeKube, tmp_path: Path, damage: str
) -> None:
    writer = start_writer(client, tmp_path)
    writer.write(discovery(gpu(0)), NOW)
    offers = [{"device": gpu(0).name, "memoryBytes": 20 * GIB, "cores": 100}]
    client.patch(kube.NODE_INVENTORIES, {"metadata": {"name": NODE}}, {"status": {"offers": offers}}, "status")
    writer.write(discovery(gpu(0)), LATER)
    offered = {gpu(0).name: OfferedRoom(device=gpu(0).name, memory_bytes=20 * GIB, cores=100)}
    assert writer.offers == offered
    if damage:
        (tmp_path / "offers.json").write_text(damage)

    writer = start_writer(client, tmp_path)

    assert writer.offers == ({} if damage else offered)
    writer.write(discovery(gpu(0)), LATER)
    assert writer.offers == offered


def test_a_heartbeat_alone_writes_the_heartbeat_alone(
    client: FakeKube, writer: InventoryWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches: list[Any] = []
    patch = client.patch

    def note(resource: Any, target: Any, content: Any, subresource: str | None = None) -> Any:
        patches.append(content)
        return patch(resource, target, content, subresource)

    monkeypatch.setattr(client, "patch", note)
    writer.write(discovery(gpu(0)), NOW)
    patches.clear()

    writer.write(discovery(gpu(0)), LATER)
    writer.write(discovery(gpu(1)), LATER)

    assert patches[0] == {"status": {"heartbeatTime": "2026-01-02T03:04:25Z"}}
    assert set(patches[1]["status"]) == {"heartbeatTime", "devices"}


def test_what_somebody_else_wrote_is_put_right_with_the_second_heartbeat(
    client: FakeKube, writer: InventoryWriter
) -> None:
    writer.write(discovery(gpu(0)), NOW)
    client.patch(kube.NODE_INVENTORIES, {"metadata": {"name": NODE}}, {"status": {"devices": []}}, "status")

    writer.write(discovery(gpu(0)), LATER)
    writer.write(discovery(gpu(0)), LATER)

    status = stored(client).status
    assert status is not None
    assert [device.name for device in status.devices] == [gpu(0).name]


def test_an_inventory_that_somebody_deleted_comes_back_whole(client: FakeKube, writer: InventoryWriter) -> None:
    writer.write(discovery(gpu(0)), NOW)
    client.delete(kube.NODE_INVENTORIES, {"metadata": {"name": NODE}})

    writer.write(discovery(gpu(0)), LATER)

    status = stored(client).status
    assert status is not None
    assert [device.name for device in status.devices] == [gpu(0).name]


def test_an_agent_that_is_asked_states_which_node_it_is_on_by_now(client: FakeKube, writer: InventoryWriter) -> None:
    writer.write(discovery(gpu(0)), NOW)
    client.delete(kube.NODES, {"metadata": {"name": NODE}})
    made = client.create(kube.NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
    client.patch(kube.NODE_INVENTORIES, {"metadata": {"name": NODE}}, {"status": {"nodeUID": ""}}, "status")

    writer.write(discovery(gpu(0)), LATER)

    status = stored(client).status
    assert status is not None
    assert status.node_uid == made["metadata"]["uid"]
    assert [device.name for device in status.devices] == [gpu(0).name]


def test_a_node_asks_for_its_uid_once(client: FakeKube, writer: InventoryWriter) -> None:
    for _ in range(3):
        writer.write(discovery(gpu(0)), NOW)
    assert client.requests.count(("get", f"/api/v1/nodes/{NODE}")) == 1


def test_an_outage_is_raised_and_the_next_write_states_everything(client: FakeKube, writer: InventoryWriter) -> None:
    writer.write(discovery(gpu(0)), NOW)
    client.set_down(True)
    with pytest.raises(KubeError, match="no answer from the API server"):
        writer.write(discovery(gpu(1)), LATER)
    client.set_down(False)

    writer.write(discovery(gpu(1)), LATER)

    status = stored(client).status
    assert status is not None
    assert [device.name for device in status.devices] == [gpu(1).name]


def wait_for(client: FakeKube, wanted: Callable[[NodeInventory], bool]) -> NodeInventory:
    """Return the node's inventory once it is as wanted; watches, so that it is there at once."""
    listed = client.list(kube.NODE_INVENTORIES)
    objects = iter(listed["items"])
    for event in client.watch(kube.NODE_INVENTORIES, listed["metadata"]["resourceVersion"], timeout_s=60):
        objects = iter([*objects, event.object])
        for obj in objects:
            inventory = NodeInventory.from_object(obj)
            if inventory.status is not None and wanted(inventory):
                return inventory
    raise AssertionError("the inventory never became as wanted")


def message_is(text: str) -> Callable[[NodeInventory], bool]:
    return lambda inventory: inventory.status is not None and inventory.status.message == text


def test_an_agent_goes_on_after_the_api_server_was_away(
    client: FakeKube, backend: FakeDiscovery, start_agent: Callable[..., NodeAgent]
) -> None:
    agent = start_agent(heartbeat_s=0.01, retry_s=0.01)
    wait_for(client, message_is(""))
    client.set_down(True)
    backend.found = Discovery(message="device 0: GPU is lost")
    asked = len(client.requests)
    while len(client.requests) < asked + 3:  # it keeps trying
        threading.Event().wait(0.005)
    assert agent.alive() == ""

    client.set_down(False)

    wait_for(client, message_is("device 0: GPU is lost"))


def test_a_node_without_a_driver_says_so_and_recovers(
    client: FakeKube, backend: FakeDiscovery, start_agent: Callable[..., NodeAgent]
) -> None:
    from api.errors import StateError

    found, backend.found = backend.found, StateError("driver root /: found no libnvidia-ml.so.1")
    registry = CollectorRegistry()
    start_agent(registry=registry, heartbeat_s=0.01)
    wait_for(client, message_is("driver root /: found no libnvidia-ml.so.1"))
    assert registry.get_sample_value("vgpu_discovery_failed") == 1

    backend.found = found

    wait_for(client, message_is(""))
    assert registry.get_sample_value("vgpu_discovery_failed") == 0
