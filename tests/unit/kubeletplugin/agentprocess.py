"""Node agents in processes of their own, which a test can kill: `kill -9` from outside, or at a chosen change.

AgentProcesses is the test's side. `python -m tests.unit.kubeletplugin.agentprocess` is the other: it loads everything
once and forks an agent for each line that it reads, so that an agent takes no longer to start than its own work does.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

_START_S = 120.0
_PACE = {"heartbeat_s": 0.02, "monitor_interval_s": 0.02, "driver_interval_s": 0.02, "collect_interval_s": 0.05}
"""Of what an agent does by itself: quick, so that what leaks there is found in the time of a test."""


@dataclass
class AgentProcess:
    """A running agent."""

    pid: int
    pod_uid: str
    _ended: threading.Event
    """Set when the process is gone."""
    serves: bool = False

    def has_ended(self) -> bool:
        """Return whether it is gone."""
        return self._ended.is_set()

    def tell_end(self) -> None:
        """Note that it is gone."""
        self._ended.set()

    def kill(self) -> None:
        """Kill it, as a crash would; returns when it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as the kubelet ends a pod; returns when it is gone."""
        self._end(signal.SIGTERM)

    def wait(self) -> None:
        """Wait until it is gone by itself."""
        assert self._ended.wait(_START_S), f"agent {self.pid} lives"

    def _end(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        self.wait()

    def descriptors(self) -> int:
        """Return how many files and sockets it has open."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def threads(self) -> int:
        """Return how many threads it has."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/task").iterdir())

    def resident_bytes(self) -> int:
        """Return how much memory it has."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class AgentProcesses:
    """Starts agents on one node, from its making until close()."""

    def __init__(self, root: Path, kubeconfig: Path) -> None:
        """Take the folder of the node's files, and how to reach the API server."""
        command = [sys.executable, "-m", "tests.unit.kubeletplugin.agentprocess", str(root), str(kubeconfig)]
        self._log = (root / "agents.log").open("a+")
        self._parent = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self._agents: list[AgentProcess] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="agents")
        self._reader.start()

    def start(self, pod_uid: str = "agent", die_at: int = -1) -> AgentProcess:
        """Start an agent and wait until it serves; with `die_at` it is killed before that change or answer of its life.

        One that dies before it serves has ended when this returns.
        """
        assert self._parent.stdin is not None
        with self._changed:
            # By number and not by process id: ids are used again.
            agent = AgentProcess(-1, pod_uid, threading.Event())
            self._agents.append(agent)
            request = {"number": len(self._agents) - 1, "pod_uid": pod_uid, "die_at": die_at}
            print(json.dumps(request), file=self._parent.stdin, flush=True)
            self._changed.wait_for(lambda: agent.serves or agent.has_ended(), _START_S)
        assert agent.serves or (agent.has_ended() and die_at >= 0), f"the agent did not start: {self.log()[-2000:]}"
        return agent

    def log(self) -> str:
        """Return what all agents have logged."""
        self._log.seek(0)
        return self._log.read()

    def close(self) -> None:
        """Kill all agents that are left, and wait for them."""
        for agent in self._agents:
            if not agent.has_ended() and agent.pid > 0:
                agent.kill()
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait(_START_S)
        self._reader.join()
        assert self._parent.stdout is not None
        self._parent.stdout.close()
        self._log.close()

    def _read(self) -> None:
        assert self._parent.stdout is not None
        for line in self._parent.stdout:
            event, number, pid = line.split()
            with self._changed:
                agent = self._agents[int(number)]
                agent.pid = int(pid)
                if event == "serving":
                    agent.serves = True
                elif event == "ended":
                    agent.tell_end()
                self._changed.notify_all()


def _main(root: Path, kubeconfig: str) -> None:
    _load_everything()

    def reap(_number: int, _frame: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) > 0:
                ended.append(pid)

    # Signals wake the reading of stdin; what ended is told from there, not from within the handler.
    ended: list[int] = []
    numbers: dict[int, int] = {}
    signal.signal(signal.SIGCHLD, reap)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    import select

    stdin: IO[str] = sys.stdin
    while True:
        ready, _, _ = select.select([stdin.fileno(), reader], [], [])
        if reader in ready:
            os.read(reader, 1024)
        while ended:
            pid = ended.pop(0)
            print("ended", numbers.pop(pid), pid, flush=True)
        if stdin.fileno() not in ready:
            continue
        line = stdin.readline()
        if not line:
            return
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            code = 1
            try:
                _run_agent(root, kubeconfig, request)
                code = 0
            except BaseException:  # noqa: BLE001 - for whoever reads the log
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        numbers[pid] = request["number"]
        print("started", request["number"], pid, flush=True)


def _load_everything() -> None:
    import grpc  # noqa: F401 - so that no agent has to

    from kubeletplugin import agent  # noqa: F401
    from libvgpu.layout import layout

    layout()


def _run_agent(root: Path, kubeconfig: str, request: dict[str, Any]) -> None:
    from prometheus_client import CollectorRegistry

    from api.httpkube import HTTPKubeClient
    from dra_driver.logs import setup_logging
    from kubeletplugin.agent import NodeAgent
    from kubeletplugin.hardware.discovery import FakeDiscovery
    from tests.unit.kubeletplugin.builders import discovery, gpu, settings

    signals: SimpleQueue[int] = SimpleQueue()
    signal.signal(signal.SIGTERM, lambda number, _frame: signals.put(number))
    setup_logging("json", "info")
    backend = FakeDiscovery(discovery(*(gpu(number, 80 << 30) for number in range(4))))
    options = settings(root, pod_uid=request["pod_uid"], **_PACE)
    if request["die_at"] >= 0:
        _die_at(request["die_at"])  # before anything is done: what a start writes can be cut short as well
    agent = NodeAgent(HTTPKubeClient(kubeconfig), options, backend, CollectorRegistry())
    agent.start()
    print("serving", request["number"], os.getpid(), flush=True)
    signals.get()
    agent.stop()


def _die_at(number: int) -> None:
    from kubeletplugin.kubelet.services import DRAService
    from tests.unit.kubeletplugin.faults import before_each_change

    numbers = itertools.count()  # threads make changes too, and each has its number

    def die(_change: str) -> None:
        if next(numbers) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    for_each = DRAService._for_each

    def die_before_the_answer(self: DRAService, *arguments: Any) -> Any:
        answers = for_each(self, *arguments)
        die("answer")
        return answers

    setattr(DRAService, "_for_each", die_before_the_answer)  # noqa: B010 -- mypy has no objection to this spelling
    before_each_change(die)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2])
