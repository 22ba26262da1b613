"""Fixtures of the node agent's tests: an API server in memory, a short folder for sockets, a running agent."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from api.kubefake import FakeKube
from kubeletplugin.agent import NodeAgent
from kubeletplugin.hardware.discovery import FakeDiscovery
from tests.unit.kubeletplugin import builders
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    left = {thread.name for thread in set(threading.enumerate()) - before if thread.is_alive()}
    assert not left


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="vgpu-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def client() -> FakeKube:
    client = FakeKube()
    builders.add_node(client)
    return client


@pytest.fixture
def backend() -> FakeDiscovery:
    """One GPU of 10 GiB, and a second one."""
    return FakeDiscovery(builders.discovery(builders.gpu(0), builders.gpu(1)))


@pytest.fixture
def start_agent(root: Path, client: FakeKube, backend: FakeDiscovery) -> Iterator[Callable[..., NodeAgent]]:
    """Starts agents on the same node, one after the other or side by side."""
    agents: list[NodeAgent] = []

    def start(registry: CollectorRegistry | None = None, **fields: Any) -> NodeAgent:
        agent = NodeAgent(client, builders.settings(root, **fields), backend, registry or CollectorRegistry())
        agent.start()
        agents.append(agent)
        return agent

    yield start
    for agent in agents:
        agent.stop()


@pytest.fixture
def kubelet(root: Path) -> Iterator[FakeKubelet]:
    kubelet = FakeKubelet(root / "kubelet")
    yield kubelet
    kubelet.close()


@pytest.fixture
def served(start_agent: Callable[..., NodeAgent], kubelet: FakeKubelet) -> FakeKubelet:
    """A kubelet with a running agent registered."""
    start_agent()
    kubelet.register()
    return kubelet
