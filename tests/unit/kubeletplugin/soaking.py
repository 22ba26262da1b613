"""A node whose agent is killed again and again, and a kubelet that starts and ends pods on it all the while.

`make soak` runs it long, test_soaking.py a little. The kubelet does what the real one does: a call that fails is
repeated with all claims of the pod, the successful ones too; after its own restart it prepares every claim again; a
claim is undone by its uid when the last pod that uses it has ended.
"""

import argparse
import contextlib
import itertools
import random
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from libvgpu.shares import read_limits
from tests.unit.kubeletplugin.agentprocess import AgentProcess, AgentProcesses
from tests.unit.kubeletplugin.builders import claim_object, gpu, result
from tests.unit.kubeletplugin.claimserver import ClaimServer
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet, PrepareError, Ref

_DEVICES = [gpu(number, 80 << 30) for number in range(4)]
_TRIES = 5
_MOST_PODS = 8
_MIB = 1 << 20
_MOST_POINTS = 200
_OF_CLAIMS = ("state/shares/", "state/checkpoint/", "cdi/vgpu.dra-driver.io-claim")


@dataclass
class Pod:
    """A pod and its claims."""

    claims: list[dict[str, Any]]

    def refs(self) -> list[Ref]:
        """Return what the kubelet knows of the claims."""
        return [_ref(claim) for claim in self.claims]


@dataclass
class Node:
    """A node: its files, its kubelet, and an agent in a process of its own."""

    root: Path
    random: random.Random
    pods: dict[str, Pod] = field(default_factory=dict)
    ids: dict[str, list[list[str]]] = field(default_factory=dict)
    """CDI ids by claim uid, as told first: they never change."""

    def __post_init__(self) -> None:
        self.server = ClaimServer(self.root)
        self.agents = AgentProcesses(self.root, self.server.kubeconfig)
        self.kubelet = FakeKubelet(self.root / "kubelet")
        self._names = itertools.count()
        try:
            self.start_agent()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End everything."""
        self.kubelet.close()
        self.agents.close()
        self.server.close()

    def start_agent(self, pod_uid: str = "agent", die_at: int = -1) -> AgentProcess:
        """Start an agent that the kubelet calls from now on; if it dies at its start, another one goes on."""
        first = self.agent = self.agents.start(pod_uid, die_at)
        for _ in range(_TRIES):
            self.kubelet.close()
            if not self.agent.has_ended():
                try:
                    self.kubelet.register(pod_uid=pod_uid)
                except (grpc.RpcError, ValueError):  # the socket does not answer, or is gone
                    self.agent.wait()
                else:
                    return first
            self.agent = self.agents.start(pod_uid)
        raise AssertionError(f"no agent stays: {self.agents.log()[-2000:]}")

    def start_pod(self, *results: Any) -> str:
        """Make claims (one for each result), and prepare them for a pod."""
        name = f"pod-{next(self._names)}"
        claims = [claim_object(f"{name}-{i}", [r], uid=str(uuid.uuid4())) for i, r in enumerate(results)]
        for claim in claims:
            self.server.add(claim)
        self.pods[name] = Pod(claims)
        self.prepare(name)
        return name

    def share_pod(self, name: str) -> str:
        """Start a pod that uses the claims of another."""
        sharing = f"pod-{next(self._names)}"
        self.pods[sharing] = Pod(self.pods[name].claims)
        self.prepare(sharing)
        return sharing

    def prepare(self, name: str) -> None:
        """Prepare the claims of a pod, and check what the agent says and what lies on the node."""
        refs = self.pods[name].refs()
        answer = self._insist(lambda: self.kubelet.prepare(*refs))
        for ref in refs:
            ids = [list(device.cdi_device_ids) for device in answer[ref.uid]]
            assert self.ids.setdefault(ref.uid, ids) == ids, (ref, ids)
        self.check(name)

    def end_pod(self, name: str) -> None:
        """End a pod, and undo the claims that no other pod uses."""
        pod = self.pods.pop(name)
        used = {ref.uid for other in self.pods.values() for ref in other.refs()}
        left = [Ref(ref.uid, "", "") for ref in pod.refs() if ref.uid not in used]
        errors = self._insist(lambda: self.kubelet.unprepare(*left)) if left else {}
        assert not any(errors.values()), errors
        for claim in pod.claims:
            if claim["metadata"]["uid"] not in used:
                self.server.remove(claim)
                del self.ids[claim["metadata"]["uid"]]

    def end_all(self) -> None:
        """End all pods."""
        for name in list(self.pods):
            self.end_pod(name)

    def check(self, name: str) -> None:
        """Check that what a pod was told is there, and limited as it was allocated."""
        for claim in self.pods[name].claims:
            uid = claim["metadata"]["uid"]
            limits = read_limits(self.root / "state" / "shares" / f"{uid}-0")
            consumed = claim["status"]["allocation"]["devices"]["results"][0]["consumedCapacity"]
            assert f"{limits.memory_bytes // _MIB}Mi" == consumed["memory"]
            assert str(limits.cores_percent) == consumed["cores"]
            assert (self.root / "cdi" / f"vgpu.dra-driver.io-claim_{uid}.json").exists()

    def files(self) -> list[str]:
        """Return all files on the node, with their lengths (but those of locks, which hold process ids)."""
        folders = (self.root / "state", self.root / "cdi", self.root / "kubelet")
        return sorted(
            f"{path.relative_to(self.root)} {path.stat().st_size if path.is_file() and path.suffix != '.lock' else ''}"
            for folder in folders
            for path in folder.rglob("*")
        )

    def results(self, count: int) -> list[Any]:
        """Return allocation results of random sizes, small enough for many pods."""
        # One core that nobody asked for is a place on an exclusive GPU: its limits are not what was allocated.
        return [
            result(self.random.choice(_DEVICES), f"{self.random.randint(1, 2000)}Mi", self.random.choice("024"))
            for _ in range(count)
        ]

    def _insist(self, call: Callable[[], Any]) -> Any:
        for _ in range(_TRIES):
            try:
                return call()
            except grpc.RpcError:
                # The agent was killed at the call, or before it.
                self.agent.wait()
                self.start_agent(self.agent.pod_uid)
            except PrepareError as error:
                raise AssertionError(f"{error}: {self.agents.log()[-2000:]}") from error
        raise AssertionError(f"no answer after {_TRIES} tries: {self.agents.log()[-2000:]}")


class Soak:
    """Does one thing after the other to a node, at random."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._random = node.random
        self._updates = itertools.count()
        self.kills = 0

    def cycle(self) -> None:
        """Start a pod or end one, and mostly do something to the agent or the kubelet before."""
        actions: list[Callable[[], None]] = [
            lambda: None,
            lambda: None,
            self._kill,
            self._kill_at_next_call,
            self._restart,
            self._update,
            self._restart_kubelet,
        ]
        self._random.choice(actions)()
        pods = self._node.pods
        if len(pods) >= _MOST_PODS or (pods and self._random.random() < 0.5):
            self._node.end_pod(self._random.choice(sorted(pods)))
        elif pods and self._random.random() < 0.2:
            self._node.share_pod(self._random.choice(sorted(pods)))
        else:
            self._node.start_pod(*self._node.results(self._random.randint(1, 3)))
        if self._node.agent.has_ended():  # it may have died within a change that the next one has to mend
            self._node.start_agent(self._node.agent.pod_uid)
        for name in pods:
            self._node.check(name)

    def _kill(self) -> None:
        self.kills += 1
        self._node.agent.kill()

    def _kill_at_next_call(self) -> None:
        self._node.agent.stop()
        self.kills += 1
        self._node.start_agent(self._node.agent.pod_uid, die_at=self._random.randint(0, 150))

    def _restart(self) -> None:
        self._node.agent.stop()
        self._node.start_agent(self._node.agent.pod_uid)

    def _update(self) -> None:
        """A rolling update: the new agent runs before the old one ends, or dies."""
        former = self._node.agent
        self._node.start_agent(f"update-{next(self._updates)}")
        self._random.choice([former.stop, former.kill])()

    def _restart_kubelet(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            self._node.kubelet.close()
            self._node.kubelet.register(pod_uid=self._node.agent.pod_uid)
        for name in list(self._node.pods):
            self._node.prepare(name)


def soak(node: Node, cycles: int, seed: int) -> None:
    """Run that many cycles on a node without pods; AssertionError if anything is not as it should be, or left over."""
    node.random.seed(seed)
    pod_uid = node.agent.pod_uid
    node.end_pod(node.start_pod(*node.results(1)))  # the first one makes files that stay
    before = node.files()
    work = Soak(node)
    for number in range(cycles):
        try:
            work.cycle()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, cycle {number}: {error}") from error
    node.end_all()
    node.agent.stop()
    node.start_agent(pod_uid)
    assert node.files() == before, f"seed {seed}: {set(node.files()) ^ set(before)}"
    _check_that_nothing_grows(node, max(20, cycles // 5))
    print(f"{cycles} cycles with {work.kills} kills, seed {seed}: all as it should be, nothing left")


def crash_everywhere(node: Node, step: int = 1) -> int:
    """Kill the agent before each change and answer, from its own start to a pod's end; return how many there were.

    Args:
        node: without pods.
        step: 1: at each point; more: at each of so many.
    """
    for points, death in enumerate(range(0, _MOST_POINTS, step)):
        node.agent.stop()
        agent = node.start_agent(die_at=death)
        name = node.start_pod(*node.results(2))  # insists, with a new agent that starts where the old one ended
        node.end_pod(name)
        if node.agent is agent:
            return points
        left = [path for path in node.files() if path.startswith(_OF_CLAIMS)]
        assert left == [], f"killed at {death}: {left}"
    raise AssertionError(f"more than {_MOST_POINTS} points")


def _check_that_nothing_grows(node: Node, cycles: int) -> None:
    """Start and end pods with one agent that lives, and compare what it has before and after."""

    def run(count: int) -> tuple[int, int, int]:
        for _ in range(count):
            node.end_pod(node.start_pod(result(_DEVICES[0], "10Mi", "2"), result(_DEVICES[1], "10Mi", "2")))
        return node.agent.descriptors(), node.agent.threads(), node.agent.resident_bytes()

    run(20)  # pools fill, caches are made
    counts = [run(max(cycles // 4, 5)) for _ in range(5)]
    # A connection in the moment of a count is in one of them; what leaks is in all that follow.
    for place, (what, most) in enumerate((("descriptors", 2), ("threads", 2), ("bytes", 4 * _MIB))):
        seen = [count[place] for count in counts]
        grown = min(seen[3:]) - max(seen[:2])
        assert grown <= most, f"{grown} {what} more after {cycles} cycles, counted {seen}"


def _ref(claim: dict[str, Any]) -> Ref:
    metadata = claim["metadata"]
    return Ref(metadata["uid"], metadata["namespace"], metadata["name"])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Kill a node agent again and again while pods come and go.")
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vgpu-", dir="/tmp") as folder:
        node = Node(Path(folder), random.Random(options.seed))
        try:
            soak(node, options.cycles, options.seed)
            points = crash_everywhere(node)
            print(f"killed at {points} changes and answers, one after the other: all as it should be, nothing left")
        finally:
            node.close()


if __name__ == "__main__":
    main()
