"""The sockets of an agent that runs: bound again when somebody takes them, and free for calls whoever watches."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from api import names
from api.kubefake import FakeKube
from kubeletplugin.agent import NodeAgent
from kubeletplugin.kubelet.serving import PluginServer
from tests.unit.kubeletplugin.builders import add_claim, gpu, result
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet

_NOT_YET = "the kubelet has not registered the plugin yet"
_STREAMS = 4


def _server(agent: NodeAgent) -> PluginServer:
    assert agent._server is not None
    return agent._server


@pytest.mark.parametrize("pattern", ["*-reg.sock", "dra.sock", "*.sock"])
def test_a_socket_that_somebody_removes_is_bound_again(
    start_agent: Callable[..., NodeAgent], kubelet: FakeKubelet, client: FakeKube, root: Path, pattern: str
) -> None:
    agent = start_agent()
    kubelet.register()
    taken = list((root / "kubelet").rglob(pattern))
    assert taken
    for path in taken:
        path.unlink()

    _server(agent).mend()

    assert agent.ready() == ("" if pattern == "dra.sock" else _NOT_YET)
    assert [path.stat().st_mode & 0o777 for path in taken] == [0o600] * len(taken)
    kubelet.restart()
    assert agent.ready() == ""
    claim = add_claim(client, "train", result(gpu(0)))
    assert claim.uid in kubelet.prepare(claim)


def test_sockets_that_are_in_their_places_are_left_alone(
    start_agent: Callable[..., NodeAgent], kubelet: FakeKubelet, root: Path
) -> None:
    agent = start_agent()
    kubelet.register()
    before = {path: path.stat().st_ino for path in (root / "kubelet").rglob("*.sock")}

    _server(agent).mend()

    assert {path: path.stat().st_ino for path in (root / "kubelet").rglob("*.sock")} == before
    assert agent.ready() == ""


def test_an_agent_that_cannot_bind_its_sockets_again_asks_for_a_restart_until_it_can(
    start_agent: Callable[..., NodeAgent], kubelet: FakeKubelet, root: Path
) -> None:
    agent = start_agent()
    registry = root / "kubelet" / "plugins_registry"
    shutil.rmtree(registry)
    registry.touch()

    _server(agent).mend()

    problem = (
        f"socket {registry}/{names.DRIVER_NAME}-reg.sock is gone: folder {registry}: cannot be created: File exists"
    )
    assert (agent.alive(), agent.ready()) == (problem, problem)
    registry.unlink()
    _server(agent).mend()
    kubelet.register()
    assert (agent.alive(), agent.ready()) == ("", "")


def test_streams_of_health_leave_threads_for_calls(served: FakeKubelet, client: FakeKube) -> None:
    streams: list[Any] = [served.healths() for _ in range(20)]
    refused = []
    for stream in streams:
        try:
            next(stream)
        except grpc.RpcError as error:
            refused.append((error.code(), error.details()))
    reason = f"found {_STREAMS} streams of device health, expected fewer: each keeps a thread"
    assert refused == [(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)] * (len(streams) - _STREAMS)

    claim = add_claim(client, "train", result(gpu(0)))
    assert claim.uid in served.prepare(claim)
    for stream in streams:
        stream.cancel()
    while not _gets_health(served):
        pass  # until the agent has seen that one of them is gone


def _gets_health(kubelet: FakeKubelet) -> bool:
    stream: Any = kubelet.healths()
    try:
        next(stream)
    except grpc.RpcError:
        return False
    stream.cancel()
    return True


def test_a_kubelet_that_does_not_read_holds_up_nobody_and_reads_the_latest_in_the_end(
    start_agent: Callable[..., NodeAgent], kubelet: FakeKubelet, client: FakeKube
) -> None:
    agent = start_agent(heartbeat_s=1000.0)
    kubelet.register()
    stream: Any = kubelet.healths()
    next(stream)
    for number in range(300):  # more than a connection holds
        agent._board.update([gpu(0, healthy=False, reason=f"{number} " + "x" * 10_000)])
    claim = add_claim(client, "train", result(gpu(0)))
    assert claim.uid in kubelet.prepare(claim)

    while not any(health.message.startswith("299 ") for health in next(stream).devices):
        pass
    stream.cancel()
