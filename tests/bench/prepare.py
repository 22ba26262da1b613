"""How long the node agent takes to prepare and undo claims: `python -m tests.bench.prepare [--kubeconfig F]`.

The agent runs in a process of its own, as it does on a node, and is called over its socket. Claims are read from a
real API server if a kubeconfig is given, else from answers that a third process has ready. Called by `make bench`.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from api import kube
from api.errors import NotFoundError
from api.httpkube import HTTPKubeClient
from dra_driver.wiring import keep_what_is_loaded
from kubeletplugin.agent import NodeAgent
from kubeletplugin.agentsettings import AgentSettings
from kubeletplugin.claims.claimreading import ClaimReader, ClaimReference
from kubeletplugin.claims.planning import plan
from kubeletplugin.files import write_durably
from kubeletplugin.hardware.devices import DeviceTable
from kubeletplugin.hardware.discovery import FakeDiscovery
from kubeletplugin.hardware.nodeviews import NodeView
from kubeletplugin.state.libraries import install_library
from kubeletplugin.state.nodestates import NodePaths, NodeState
from kubeletplugin.state.restoring import restore
from libvgpu.paths import library_path
from tests.bench.cannedanswers import CannedAnswers
from tests.bench.kubeletcalls import KubeletCalls
from tests.bench.processes import cpu_s
from tests.unit.kubeletplugin.builders import CLAIMS, NODE, claim_object, discovery, gpu, result
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet, Ref

_DEVICES = [gpu(number, 80 << 30) for number in range(16)]
_AT_ONCE = 100
_NAMESPACE = "default"

Claim = dict[str, Any]


def main() -> None:
    """Measure and print; or be one of the other two processes."""
    parser = argparse.ArgumentParser(description="Measure prepare and unprepare of the node agent.")
    parser.add_argument("--kubeconfig", help="a real API server to read claims from")
    parser.add_argument("--rounds", type=int, default=100, help="single calls to measure")
    parser.add_argument("--dir", type=Path, default=_state_parent(), help="where the state lies (default: %(default)s)")
    parser.add_argument("--serve-agent", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve-claims", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_agent:
        _serve_agent(options.serve_agent, options.kubeconfig)
    elif options.serve_claims:
        _serve_claims(options.serve_claims)
    else:
        with tempfile.TemporaryDirectory(prefix="vgpu-", dir=options.dir) as folder:
            _measure(Path(folder), options.kubeconfig, options.rounds)


def _state_parent() -> Path:
    """Where the state lies on a node, if we may write there.

    Not /tmp: an ext4 without a journal passes over inodes that were deleted in the last minutes, so that in a folder
    where tests make and delete thousands of files a new file costs ten times as much as elsewhere. For the same reason
    a second run in a row shows higher figures than the first there; docs/performance.md says how to make a better one.
    """
    on_a_node = Path("/var/lib")
    return on_a_node if os.access(on_a_node, os.W_OK) else Path(tempfile.gettempdir())


def _measure(root: Path, kubeconfig: str | None, rounds: int) -> None:
    claims = [_claim(number) for number in range(rounds + _AT_ONCE)]
    with contextlib.ExitStack() as stack:
        if kubeconfig is None:
            kubeconfig = stack.enter_context(_local_claims(root, claims))
        else:
            stack.enter_context(_stored_claims(kubeconfig, claims))
        refs = [Ref(claim["metadata"]["uid"], _NAMESPACE, claim["metadata"]["name"]) for claim in claims]
        _measure_calls(root, kubeconfig, refs, rounds)
        _measure_start(root, kubeconfig, refs)
        with _cdi_dir() as cdi_dir:
            _print_steps(root / "steps", cdi_dir, kubeconfig, refs[:rounds])


def _measure_calls(root: Path, kubeconfig: str, refs: Sequence[Ref], rounds: int) -> None:
    with contextlib.ExitStack() as stack:
        agent = stack.enter_context(_child("--serve-agent", root, "--kubeconfig", kubeconfig))
        kubelet = stack.enter_context(contextlib.closing(FakeKubelet(root / "kubelet")))
        kubelet.register()
        for ref in refs[:5]:  # connections are made, modules loaded
            kubelet.prepare(ref)
            kubelet.unprepare(ref)
        single, burst = refs[:rounds], refs[rounds:]
        calls = stack.enter_context(contextlib.closing(KubeletCalls(kubelet.info.endpoint)))
        calls.prepare(single[:1])
        calls.unprepare(single[:1])
        process = Path("/proc") / agent

        def measure(name: str, claims: int, act: Callable[[], list[float]]) -> None:
            before_s = cpu_s(process)
            _print(name, act())
            print(f"{'  agent, CPU per claim':45} {(cpu_s(process) - before_s) / claims * 1e3:12.2f} ms")

        for name, call in (
            ("prepare", calls.prepare),
            ("prepare again", calls.prepare),
            ("unprepare", calls.unprepare),
        ):
            measure(f"{name}, one at a time", rounds, lambda: [call([ref])[0] for ref in single])  # noqa: B023 - called at once
        for name, call in (("prepare", calls.prepare), ("unprepare", calls.unprepare)):
            measure(f"{name}, {_AT_ONCE} calls at once", _AT_ONCE, lambda: call(*([ref] for ref in burst)))  # noqa: B023
        for name, call in (("prepare", calls.prepare), ("unprepare", calls.unprepare)):
            measure(f"{name}, one call with {_AT_ONCE} claims", _AT_ONCE, lambda: call(burst))  # noqa: B023
        _print(
            "  floor: a file with fsync, rename, fsync", [_timed(_fsync_floor, root, ref.uid) for ref in refs[:rounds]]
        )
        kubelet.prepare(*refs)  # for the start that is measured next


def _measure_start(root: Path, kubeconfig: str, refs: Sequence[Ref]) -> None:
    """From the start of the process to the kubelet's registration, as after a reboot: all CDI specs are gone."""
    started_s = time.perf_counter()
    with (
        _child("--serve-agent", root, "--kubeconfig", kubeconfig) as agent,
        contextlib.closing(FakeKubelet(root / "kubelet")) as kubelet,
    ):
        kubelet.register()
        name = f"start to registered, {len(_DEVICES)} GPUs, {len(refs)} shares"
        _print(name, [time.perf_counter() - started_s])
        print(f"{'  agent, CPU':45} {cpu_s(Path('/proc') / agent) * 1e3:8.2f} ms")
        kubelet.unprepare(*refs)


def _print_steps(root: Path, cdi_dir: Path, kubeconfig: str, refs: Sequence[Ref]) -> None:
    """Measure the parts of a prepare, in this process and one after the other."""
    paths = NodePaths(root / "state", cdi_dir)
    state = NodeState(paths, "vgpu.dra-driver.io", NODE, install_library(_library(root), paths.library_dir))
    restore(state)
    reader = ClaimReader(HTTPKubeClient(kubeconfig))
    view = NodeView("vgpu.dra-driver.io", NODE, DeviceTable(_DEVICES))
    seconds: dict[str, list[float]] = {}

    def step(name: str, action: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        found = action()
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        return found

    for ref in refs:
        reference = ClaimReference(ref.namespace, ref.name, ref.uid)  # type: ignore[arg-type]
        claim = step("read the claim (GET)", lambda: reader.read(reference))  # noqa: B023 - called at once
        planned, _ = step("plan and reserve", lambda: state.ledger.reserve(claim.uid, lambda o: plan(claim, view, o)))  # noqa: B023
        step("make the record durable", lambda: state.ledger.settle(planned.uid))  # noqa: B023
        step("write shares and CDI spec", lambda: state.put(planned))  # noqa: B023
    for ref in refs:
        step("undo", lambda: state.remove(ref.uid))  # type: ignore[arg-type]  # noqa: B023
    for name, figures in seconds.items():
        _print(f"  step: {name}", figures)


def _fsync_floor(root: Path, name: str) -> None:
    """What the disk asks for a durable file of the size of a record, without any of our code."""
    write_durably(root / name, b"x" * 500)


def _claim(number: int) -> Claim:
    device = _DEVICES[number % len(_DEVICES)]
    return claim_object(f"bench-{number}", [result(device, "100Mi", "0")], uid=str(uuid.uuid4()))


def _timed(call: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def _print(name: str, seconds: Sequence[float]) -> None:
    if len(seconds) == 1:
        print(f"{name:45} {seconds[0] * 1e3:8.2f} ms")
        return
    p99 = statistics.quantiles(seconds, n=100)[98]
    print(f"{name:45} p50 {statistics.median(seconds) * 1e3:7.2f} ms   p99 {p99 * 1e3:7.2f} ms")


@contextlib.contextmanager
def _child(*arguments: str | Path) -> Iterator[str]:
    """Run another process of this benchmark; yields the line that it says once it serves."""
    command = [sys.executable, "-m", "tests.bench.prepare", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.communicate("", timeout=30)  # end of file on stdin ends it


@contextlib.contextmanager
def _local_claims(root: Path, claims: Sequence[Claim]) -> Iterator[str]:
    (root / "claims.json").write_text(json.dumps(claims))
    with _child("--serve-claims", root / "claims.json") as url:
        config = {
            "clusters": [{"name": "bench", "cluster": {"server": url}}],
            "users": [{"name": "bench", "user": {}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
            "current-context": "bench",
        }
        (root / "kubeconfig").write_text(json.dumps(config))
        yield str(root / "kubeconfig")


@contextlib.contextmanager
def _stored_claims(kubeconfig: str, claims: Sequence[Claim]) -> Iterator[None]:
    """Store the claims, with their allocation, and take over the uids that they got."""
    client = HTTPKubeClient(kubeconfig)
    try:
        for claim in claims:
            claim["metadata"].pop("uid")
            stored = client.create(CLAIMS, claim)
            claim["metadata"] = stored["metadata"]
            for entry in claim["status"]["allocation"]["devices"]["results"]:
                entry["shareID"] = str(uuid.uuid4())
            client.replace(CLAIMS, {**stored, "status": claim["status"]}, "status")
        yield
    finally:
        for claim in claims:
            with contextlib.suppress(NotFoundError):
                client.delete(CLAIMS, {"metadata": {"namespace": _NAMESPACE, "name": claim["metadata"]["name"]}})


def _library(root: Path) -> Path:
    try:
        return library_path()
    except Exception:  # noqa: BLE001 - the agent can be measured before the library is built
        root.mkdir(parents=True, exist_ok=True)
        stand_in = root / "libvgpu.so"
        stand_in.write_bytes(b"a stand-in for the library")
        return stand_in


def _serve_agent(root: Path, kubeconfig: str) -> None:
    with _cdi_dir() as cdi_dir:
        settings = AgentSettings(NODE, root / "kubelet", cdi_dir, root / "state", library=_library(root))
        backend = FakeDiscovery(discovery(*_DEVICES))
        agent = NodeAgent(HTTPKubeClient(kubeconfig), settings, backend, CollectorRegistry())
        agent.start()
        keep_what_is_loaded()  # as the program does
        print(os.getpid(), flush=True)
        sys.stdin.read()
        agent.stop()


@contextlib.contextmanager
def _cdi_dir() -> Iterator[Path]:
    """On a node CDI specs are under /run, in memory; so they are here, where there is such a file system."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="vgpu-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def _serve_claims(file: Path) -> None:
    answers: dict[str, Any] = {
        kube.NODES.path(name=NODE): {"metadata": {"uid": "node-uid"}},
        "/apis/resource.k8s.io": {"versions": [{"version": "v1"}]},
        kube.RUNTIME_CLASSES.path(): {"items": []},
    }
    for claim in json.loads(file.read_text()):
        answers[CLAIMS.path(_NAMESPACE, claim["metadata"]["name"])] = claim
    server = CannedAnswers(answers)
    print(server.url, flush=True)
    server.serve_until_eof()


if __name__ == "__main__":
    main()
