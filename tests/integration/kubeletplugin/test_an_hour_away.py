"""An hour without an API server, as long as it is: for the agent and the controller of a node at work."""

import logging
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from api import kube, names
from api.kubefake import FakeKube
from controller.controller import Controller, ControllerSettings
from kubeletplugin.agent import NodeAgent
from kubeletplugin.hardware import discovering
from kubeletplugin.hardware.discovery import FakeDiscovery
from libvgpu.shares import read_limits
from tests.unit.controller.builders import SLICES
from tests.unit.kubeletplugin.builders import CLAIMS, GIB, NODE, add_claim, add_node, discovery, gpu, result, settings
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet, PrepareError
from tests.virtualtime import VirtualTime

_HOUR_S = 3600.0
_PACE = {"monitor_interval_s": 20.0, "driver_interval_s": 60.0, "steering_interval_s": 60.0}
"""Of what has nothing to do with the API server: seldom, since each look costs the test a moment."""


@dataclass
class Node:
    """A node at work, and the controller of its cluster."""

    root: Path
    client: FakeKube
    agent: NodeAgent
    controller: Controller
    kubelet: FakeKubelet
    time: VirtualTime

    def status(self) -> dict[str, Any]:
        (inventory,) = self.client.objects(kube.NODE_INVENTORIES)
        return dict(inventory["status"])

    def slices(self) -> dict[str, str]:
        return {one["metadata"]["name"]: one["metadata"]["uid"] for one in self.client.objects(SLICES)}

    def limit_bytes(self, uid: str) -> int:
        return read_limits(self.root / f"state/shares/{uid}-0").memory_bytes


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(discovering, "_EVENT_WAIT_S", 60.0)
    virtual = VirtualTime()
    with tempfile.TemporaryDirectory(prefix="vgpu-", dir="/tmp") as folder, virtual.entered():
        root, client = Path(folder), FakeKube()
        add_node(client)
        backend = FakeDiscovery(discovery(gpu(0)))
        agent = NodeAgent(client, settings(root, **_PACE), backend, CollectorRegistry())
        controller = Controller(client, ControllerSettings(namespace="system", identity="a"), CollectorRegistry())
        kubelet = FakeKubelet(root / "kubelet")
        agent.start()
        controller.start()
        kubelet.register()
        yield Node(root, client, agent, controller, kubelet, virtual)
        kubelet.close()
        stopping = [threading.Thread(target=part.stop, name="stopping") for part in (agent, controller)]
        for thread in stopping:
            thread.start()
        virtual.run(60)
        for thread in stopping:
            thread.join()


def test_an_hour_without_an_api_server_changes_nothing_and_is_over_within_a_minute(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    node.time.run(60)
    running = add_claim(node.client, "running", result(gpu(0), "4Gi"))
    waiting = add_claim(node.client, "waiting", result(gpu(0), "1Gi"))
    ended = add_claim(node.client, "ended", result(gpu(0), "1Gi"))
    answered = node.kubelet.prepare(running)
    node.kubelet.prepare(ended)
    slices, threads = node.slices(), threading.active_count()
    assert slices

    node.client.set_down(True)
    asked = len(node.client.requests)
    caplog.clear()
    for part in range(6):
        node.time.run(_HOUR_S / 6)
        assert node.kubelet.prepare(running) == answered, part
        assert (node.agent.alive(), node.agent.ready()) == ("", "")
        with pytest.raises(PrepareError, match="no answer from the API server"):
            node.kubelet.prepare(waiting)
    assert node.kubelet.unprepare(ended) == {ended.uid: ""}
    assert node.limit_bytes(running.uid) == 4 * GIB
    # A pool takes one more where a call comes before the last one's thread is back; a leak would be one each time.
    assert threading.active_count() < threads + 10
    assert len(node.client.requests) - asked < _HOUR_S  # less than one a second, of agent and controller together
    told = [
        record.getMessage() for record in caplog.records if record.name.startswith(("api", "controller", "kubelet"))
    ]
    assert told.count("inventory not written; trying again") == 1
    assert len(told) < 60, told

    node.client.set_down(False)
    target = {"metadata": {"namespace": "default", "name": "running"}}
    annotation = {"metadata": {"annotations": {names.ANNOTATION_LIMITS: '{"memory": "1Gi"}'}}}
    node.client.patch(CLAIMS, target, annotation)
    node.time.run(60)

    assert node.slices() == slices
    (lease,) = node.client.objects(kube.LEASES)
    renewed = node.time.now().fromisoformat(lease["spec"]["renewTime"])
    assert (node.time.now() - renewed).total_seconds() < 15
    heartbeat = node.time.now().fromisoformat(node.status()["heartbeatTime"])
    assert (node.time.now() - heartbeat).total_seconds() <= 20
    assert node.limit_bytes(running.uid) == GIB
    assert len(node.kubelet.prepare(waiting)[waiting.uid]) == 1
    assert node.client.objects(kube.NODES)[0]["metadata"]["name"] == NODE
