"""The agent on a node with simulated cards and the real interception library; the API server is in memory."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from api import kube
from api.kubefake import FakeKube
from api.nodeinventory import NodeInventory
from kubeletplugin.agent import AgentSettings, NodeAgent
from libvgpu.paths import library_path
from libvgpu.stub import StubGPU, create_driver_root, stub_environment
from tests.unit.kubeletplugin.builders import NODE, add_claim, add_node, result
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
        settings = AgentSettings(
            NODE, root / "kubelet", root / "cdi", root / "state", driver_root=root / "driver", library=library_path()
        )
        self.agent = NodeAgent(self.client, settings, registry=CollectorRegistry())
        self.kubelet = FakeKubelet(root / "kubelet")

    def start(self) -> None:
        self.agent.start()
        self.kubelet.register()

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
    with tempfile.TemporaryDirectory(prefix="vgpu-") as folder:
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
        timeout=30,
        check=True,
    )

    assert "2048MiB" in table.stdout
    assert "10240MiB" not in table.stdout


def _result(memory: str, cores: str) -> dict[str, Any]:
    from kubeletplugin.devices import Device

    return result(Device("nvidia", UUID, 0), memory, cores)


def _stated(client: FakeKube) -> NodeInventory:
    """Return the inventory once it has a status; the watch ends with the first that has."""
    for obj in client.objects(kube.NODE_INVENTORIES):
        if obj.get("status"):
            return NodeInventory.from_object(obj)
    for event in client.watch(kube.NODE_INVENTORIES, "0", timeout_s=10):
        if event.object.get("status"):
            return NodeInventory.from_object(event.object)
    raise AssertionError("no inventory was stated within 10 s")
