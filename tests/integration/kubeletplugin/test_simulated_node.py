"""The agent on a node with simulated cards and the real interception library; the API server is in memory."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from api import kube, names
from api.kubefake import FakeKube
from api.nodeinventory import NodeInventory
from controller import telling
from controller.controller import Controller
from controller.offers import migrating
from kubeletplugin.agent import NodeAgent
from kubeletplugin.agentsettings import AgentSettings
from libvgpu.paths import library_path
from libvgpu.shares import read_limits
from libvgpu.stub import StubGPU, create_driver_root, stub_environment
from tests.unit.controller.builders import SLICES, make_controller, wait_until
from tests.unit.kubeletplugin.builders import CLAIMS, NODE, add_claim, add_node, result
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet

GIB = 1 << 30
UUID = "GPU-0a1b2c3d-0000-4000-8000-00000000000a"


class Node:
    """A node: its folders, its agent, a kubelet that has registered it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.client = FakeKube()
        add_node(self.client)
        create_driver_root(root / "driver", [StubGPU("Simulated H100", 10 * GIB, UUID)])

    def start(self, **options: Any) -> None:
        root = self.root
        settings = AgentSettings(
            NODE,
            root / "kubelet",
            root / "cdi",
            root / "state",
            driver_root=root / "driver",
            library=library_path(),
            **options,
        )
        self.agent = NodeAgent(self.client, settings, registry=CollectorRegistry())
        self.kubelet = FakeKubelet(root / "kubelet")
        self.agent.start()
        self.kubelet.register()

    def restart(self, **options: Any) -> None:
        self.stop()
        self.start(**options)

    def stop(self) -> None:
        self.kubelet.close()
        self.agent.stop()

    def spec(self, pattern: str) -> dict[str, Any]:
        (path,) = (self.root / "cdi").glob(pattern)
        found: dict[str, Any] = json.loads(path.read_text())
        return found


@pytest.fixture
def node() -> Iterator[Node]:
    # A folder of its own in /tmp: a path of pytest's is too long for sockets.
    with tempfile.TemporaryDirectory(prefix="vgpu-", dir="/tmp") as folder:
        node = Node(Path(folder))
        node.start()
        yield node
        node.stop()


def test_simulated_cards_are_stated_and_offered_to_containers_as_files(node: Node) -> None:
    inventory = _stated(node.client)

    assert inventory.status is not None
    (device,) = inventory.status.devices
    assert (device.name, device.product_name, device.memory_bytes) == (UUID.lower(), "Simulated H100", 10 * GIB)
    assert (device.shareable, device.healthy, device.health) == (True, True, "")
    spec = node.spec("*-gpu.json")
    card = spec["devices"][0]["containerEdits"]["mounts"][0]
    assert (card["hostPath"], card["containerPath"]) == (str(node.root / "driver/dev/nvidia0"), "/dev/nvidia0")
    inside = {mount["containerPath"] for mount in spec["containerEdits"]["mounts"]}
    assert {"/usr/lib/x86_64-linux-gnu/libcuda.so.1", "/usr/lib64/libnvidia-ml.so.1", "/usr/bin/nvidia-smi"} <= inside


def test_all_that_a_claim_mounts_is_there(node: Node) -> None:
    claim = add_claim(node.client, "train", _result("2Gi", "25"))
    node.kubelet.prepare(claim)

    spec = node.spec("*-claim_*.json")

    edits = [spec["containerEdits"], *(device["containerEdits"] for device in spec["devices"])]
    mounts = {mount["containerPath"]: Path(mount["hostPath"]) for edit in edits for mount in edit["mounts"]}
    assert all(path.is_file() for path in mounts.values())
    library = next(Path(name) for name in mounts if name.startswith("/usr/lib/vgpu/"))
    assert mounts[str(library)].read_bytes() == library_path().read_bytes()
    assert mounts["/etc/ld.so.preload"].read_text() == f"{library}\n"


def test_a_process_in_a_prepared_share_sees_the_share_as_its_card(node: Node) -> None:
    claim = add_claim(node.client, "train", _result("2Gi", "25"))
    node.kubelet.prepare(claim)
    environment = {
        **os.environ,
        **stub_environment(node.root / "driver"),
        "LD_PRELOAD": str(library_path()),
        "VGPU_SHARES_DIR": str(node.root / "state/shares"),
    }

    table = subprocess.run(
        [node.root / "driver/usr/bin/nvidia-smi"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    assert "2048MiB" in table.stdout
    assert "10240MiB" not in table.stdout


@pytest.fixture
def controller(node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[Controller]:
    """A controller for the node, whose agent has a quick pulse and asks for no claim by itself."""
    monkeypatch.setattr(telling, "_DOUBT_S", 0.1)
    monkeypatch.setattr(migrating, "WITHDRAWAL_S", 0.1)
    node.restart(heartbeat_s=0.05, annotation_interval_s=3600)
    started = make_controller(node.client)
    started.start()
    yield started
    started.stop()


def test_a_share_follows_the_annotation_of_its_claim_by_what_the_controller_tells(
    node: Node, controller: Controller
) -> None:
    claim = add_claim(node.client, "train", _result("2Gi", "25"))
    node.kubelet.prepare(claim)
    target = {"metadata": {"namespace": "default", "name": "train"}}

    def limit_is(expected_bytes: int) -> bool:
        return read_limits(node.root / f"state/shares/{claim.uid}-0").memory_bytes == expected_bytes

    for text, expected in ('{"memory": "1Gi"}', GIB), (None, 2 * GIB):
        node.client.patch(CLAIMS, target, {"metadata": {"annotations": {names.ANNOTATION_LIMITS: text}}})
        wait_until(partial(limit_is, expected))


def test_the_gpus_of_a_node_that_is_registered_anew_under_its_agent_are_offered_again(
    node: Node, controller: Controller
) -> None:
    def owners() -> list[str]:
        stored = [obj for obj in node.client.objects(SLICES) if obj["spec"].get("devices")]
        return [obj["metadata"]["ownerReferences"][0]["uid"] for obj in stored if obj["spec"]["nodeName"] == NODE]

    wait_until(owners)
    node.client.delete(kube.NODES, {"metadata": {"name": NODE}})
    add_node(node.client)
    uid = node.client.get(kube.NODES, NODE)["metadata"]["uid"]

    wait_until(lambda: owners() == [uid])


def _result(memory: str, cores: str) -> dict[str, Any]:
    from kubeletplugin.hardware.devices import Device

    return result(Device("nvidia", UUID, 0), memory, cores)


def _stated(client: FakeKube) -> NodeInventory:
    """Return the inventory once it has a status; the watch ends with the first that has."""
    for obj in client.objects(kube.NODE_INVENTORIES):
        if obj.get("status"):
            return NodeInventory.from_object(obj)
    for event in client.watch(kube.NODE_INVENTORIES, "0", timeout_s=120):
        if event.object.get("status"):
            return NodeInventory.from_object(event.object)
    raise AssertionError("no inventory was stated within 120 s")
