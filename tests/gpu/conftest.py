"""Shares of a real GPU, by `dra-driver run`: no Kubernetes, no toolkit, only the driver.

VGPU_GPU=stub tries the tests themselves. What a test believes is what the driver's NVML says outside of the share.
What libvgpu takes the driver to do is looked at without a share (Card.bare), and told at the end of a run (Figures).
"""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from api import names
from dra_driver import running
from libvgpu.shares import Limits, Policy, create_share
from libvgpu.stub import StubGPU, StubSettings, create_driver_root

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "tests" / "unit" / "libvgpu"
STUB = os.environ.get("VGPU_GPU") == "stub"
if os.environ.get("VGPU_GPU", "") not in {"", "stub"}:
    raise pytest.UsageError(f"GPU: found {os.environ['VGPU_GPU']!r}, expected stub, or nothing for this machine's GPU")
STUB_UUID = "GPU-00000000-0000-4000-8000-000000000001"
SETTINGS = StubSettings(
    bytes_per_us=1_000,
    context_bytes=300 << 20,
    module_bytes=2 << 20,
    granularity_bytes=2 << 20,
    pool_chunk_bytes=32 << 20,
    array_tile_bytes=64 << 10,
)
"""Of the stub: as like to a real card as can be."""
KERNELS = ROOT / "libvgpu" / "stub" / "kernels.ptx"
PREAMBLE = f"""
import ctypes, json, sys, time
sys.path[:0] = [{str(UNIT)!r}, {str(Path(__file__).parent)!r}]
from gpu import *
from probes import *

def spin_kernel():
    # Real PTX: `spin` watches the clock of the GPU for the nanoseconds in its parameter.
    module, function = c_void_p(), c_void_p()
    check(cuda.cuModuleLoadData(byref(module), open({str(KERNELS)!r}, "rb").read()))
    check(cuda.cuModuleGetFunction(byref(function), module, b"spin"))
    return function
"""
# Asks the driver from outside of any share.
LOOK = """
import json, pynvml
pynvml.nvmlInit()
gpus = []
for index in range(pynvml.nvmlDeviceGetCount()):
    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
    processes = {p.pid: p.usedGpuMemory or 0 for p in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)}
    gpus.append({"uuid": pynvml.nvmlDeviceGetUUID(gpu), "total": memory.total, "used": memory.used,
                 "processes": processes})
print(json.dumps(gpus))
"""


@dataclass(frozen=True)
class Card:
    """A GPU of this machine, and shares of it."""

    driver_root: Path
    shares: Path
    environment: dict[str, str] = field(repr=False)

    def look(self) -> dict[str, Any]:
        """Return what the driver says of the first GPU: uuid, total, used, and bytes by process id."""
        return self.look_at_all()[0]

    def look_at_all(self) -> list[dict[str, Any]]:
        """Return what the driver says of each GPU."""
        run = subprocess.run(
            [sys.executable, "-c", LOOK], env=self.environment, capture_output=True, text=True, timeout=60, check=True
        )
        found: list[dict[str, Any]] = json.loads(run.stdout)
        return found

    def start(self, code: str, *options: str) -> "subprocess.Popen[str]":
        """Start a Python program in a share of the first GPU; it begins with gpu.py and spin_kernel."""
        command = [sys.executable, "-m", "dra_driver", "run", "--driver-root", str(self.driver_root), "--device", "0"]
        program = PREAMBLE + textwrap.dedent(code)
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*command, *options, "--", sys.executable, "-c", program],
            env={**self.environment, names.ENV_RUNTIME_DIR: str(self.shares)},
            cwd=ROOT,
            stdin=pipe,
            stdout=pipe,
            text=True,
        )

    def run_on_all(self, code: str, memory_bytes: int) -> str:
        """Run a program in a share of each GPU of this machine; return what it printed. Skip where there is but one."""
        uuids = [gpu["uuid"] for gpu in self.look_at_all()]
        if len(uuids) < 2:
            pytest.skip("one GPU alone")
        folder = self.shares.parent / "all"
        for index, uuid in enumerate(uuids):
            name = f"share-{index}"
            limits = Limits(name, uuid, memory_bytes, cores_percent=0, ceiling_percent=100, policy=Policy.BURST)
            create_share(folder / names.SHARES_SUBDIR / name, limits)
        environment = running.share_environment(folder, ",".join(uuids), self.driver_root, self.environment)
        command = [sys.executable, "-c", PREAMBLE + textwrap.dedent(code)]
        run = subprocess.run(
            command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=240, check=True
        )
        return run.stdout

    def start_bare(self, code: str, *before: str, **environment: str) -> "subprocess.Popen[str]":
        """Start a Python program like those in shares outside of any; `before` is a command that starts it."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*before, sys.executable, "-c", PREAMBLE + textwrap.dedent(code)],
            env={**self.environment, "CUDA_VISIBLE_DEVICES": self.look()["uuid"], **environment},
            cwd=ROOT,
            stdin=pipe,
            stdout=pipe,
            text=True,
        )

    def bare(self, code: str, *before: str, **environment: str) -> str:
        """Run a program outside of any share to its end; return what it printed."""
        with self.start_bare(code, *before, **environment) as process:
            output, _ = process.communicate(timeout=240)
        assert process.returncode == 0
        return output

    def run(self, code: str, *options: str) -> str:
        """Run a program in a share to its end; return what it printed."""
        with self.start(code, *options) as process:
            output, _ = process.communicate(timeout=240)
        assert process.returncode == 0
        return output


class Figures:
    """What was found of the driver beside what libvgpu takes it to be."""

    def __init__(self) -> None:
        """Begin with none."""
        self.rows: list[tuple[str, str, str]] = []

    def add(self, what: str, taken_to_be: str, found: object) -> None:
        """Record a figure; before it is judged, so that it is told in any case."""
        self.rows.append((what, taken_to_be, str(found)))


_FIGURES = pytest.StashKey[Figures]()


def pytest_configure(config: pytest.Config) -> None:
    """Called by pytest."""
    config.stash[_FIGURES] = Figures()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Called by pytest: tell the figures."""
    rows = config.stash[_FIGURES].rows
    if rows:
        terminalreporter.section("what libvgpu takes the driver to do, and what it did")
    for what, taken_to_be, found in rows:
        terminalreporter.line(f"{what}: {found} (taken to be: {taken_to_be})")


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Return where to record what the driver does."""
    return request.config.stash[_FIGURES]


@pytest.fixture
def card(tmp_path: Path) -> Iterator[Card]:
    """Return the first GPU of this machine; skip without one."""
    (tmp_path / "shares").mkdir()
    root, environment = Path("/"), dict(os.environ)
    if STUB:
        root = tmp_path / "root"
        second = STUB_UUID[:-1] + "2"
        cards = [StubGPU("Stub 10G", 10 << 30, uuid, settings=SETTINGS) for uuid in (STUB_UUID, second)]
        create_driver_root(root, cards)
        environment = running.share_environment(tmp_path, STUB_UUID, root, os.environ)
        for name in ("LD_PRELOAD", "CUDA_VISIBLE_DEVICES", "VGPU_SHARES_DIR"):
            environment.pop(name)
    found = Card(root, tmp_path / "shares", environment)
    try:
        found.look()
    except (subprocess.CalledProcessError, IndexError):
        pytest.skip("no GPU")
    yield found
    assert list((tmp_path / "shares").iterdir()) == []
