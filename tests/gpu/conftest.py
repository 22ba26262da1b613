"""Shares of a real GPU, by `dra-driver run`: no Kubernetes, no toolkit, only the driver.

VGPU_GPU=stub tries the tests themselves. What a test believes is what the driver's NVML says outside of the share.
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

from dra_driver import running
from libvgpu.stub import StubGPU, StubSettings, create_driver_root

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "tests" / "unit" / "libvgpu"
STUB = os.environ.get("VGPU_GPU") == "stub"
if os.environ.get("VGPU_GPU", "") not in {"", "stub"}:
    raise pytest.UsageError(f"GPU: found {os.environ['VGPU_GPU']!r}, expected stub, or nothing for this machine's GPU")
STUB_UUID = "GPU-00000000-0000-4000-8000-000000000001"
KERNELS = ROOT / "libvgpu" / "stub" / "kernels.ptx"
PREAMBLE = f"""
import ctypes, json, sys, time
sys.path.insert(0, {str(UNIT)!r})
from gpu import *

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
        run = subprocess.run(
            [sys.executable, "-c", LOOK], env=self.environment, capture_output=True, text=True, timeout=60, check=True
        )
        first: dict[str, Any] = json.loads(run.stdout)[0]
        return first

    def start(self, code: str, *options: str) -> "subprocess.Popen[str]":
        """Start a Python program in a share of the first GPU; it begins with gpu.py and spin_kernel."""
        command = [sys.executable, "-m", "dra_driver", "run", "--driver-root", str(self.driver_root), "--device", "0"]
        program = PREAMBLE + textwrap.dedent(code)
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*command, *options, "--", sys.executable, "-c", program],
            env={**self.environment, running.ENV_RUNTIME_DIR: str(self.shares)},
            cwd=ROOT,
            stdin=pipe,
            stdout=pipe,
            text=True,
        )

    def run(self, code: str, *options: str) -> str:
        """Run a program in a share to its end; return what it printed."""
        with self.start(code, *options) as process:
            output, _ = process.communicate(timeout=240)
        assert process.returncode == 0
        return output


@pytest.fixture
def card(tmp_path: Path) -> Iterator[Card]:
    """Return the first GPU of this machine; skip without one."""
    (tmp_path / "shares").mkdir()
    root, environment = Path("/"), dict(os.environ)
    if STUB:
        root = tmp_path / "root"
        create_driver_root(root, [StubGPU("Stub 10G", 10 << 30, STUB_UUID, settings=StubSettings(bytes_per_us=1_000))])
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
