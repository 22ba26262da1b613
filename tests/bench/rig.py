"""A simulated card with shares and tenants for the benchmarks of GPU time; time is what the card itself counted.

Called by tests.bench.compute. Tenants are the native program load.c: they ask for all the GPU they can get.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from api.vgpuconfig import Policy
from libvgpu.paths import library_path
from libvgpu.shares import Limits, create_share
from libvgpu.stub import StubGPU, StubSettings, create_driver_root, library_directory, read_card, stub_environment

NATIVE = Path(__file__).parent / "native"
ROOT = Path(__file__).parents[2]
UUID = "GPU-00000000-0000-4000-8000-000000000001"
_STEP_S = 0.02


def build(name: str, folder: Path) -> Path:
    """Compile a native program of the benchmarks, linked with the stub driver."""
    program = folder / name
    includes = [f"-I{ROOT / 'libvgpu' / 'include'}"]
    command = ["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", *includes, "-o", str(program)]
    libraries = [f"-L{library_directory()}", "-l:libcuda.so.1", "-lpthread", "-ldl"]
    subprocess.run([*command, str(NATIVE / f"{name}.c"), *libraries], check=True, timeout=60)
    return program


@dataclass(frozen=True)
class Tenant:
    """Processes that load the GPU within one share."""

    share: str
    cores: int
    lengths_ns: Sequence[int]
    """Of their kernels, in turn."""
    processes: int = 1
    streams: int = 1
    start_s: float = 0.0
    policy: Policy = Policy.FIXED
    priority: int = 0


@dataclass
class Run:
    """What the card counted: moments, and the GPU seconds of each share up to then."""

    moments_s: list[float] = field(default_factory=list)
    used_s: dict[str, list[float]] = field(default_factory=dict)

    def windows(self, share: str, width_s: float, from_s: float = 0.0, to_s: float = 1e9) -> list[float]:
        """Return the percent of the GPU that a share had, in each window of a width that can be cut from the run."""
        found = []
        used, end = self.used_s[share], 0
        for begin, moment in enumerate(self.moments_s):
            while end < len(used) and self.moments_s[end] - moment < width_s - _STEP_S / 2:
                end += 1
            if end == len(used) or self.moments_s[end] > to_s:
                break
            if moment >= from_s:
                found.append((used[end] - used[begin]) / (self.moments_s[end] - moment) * 100)
        return found

    def percent(self, share: str, from_s: float, to_s: float) -> float:
        """Return the percent of the GPU that a share had between two moments."""
        inside = [i for i, moment in enumerate(self.moments_s) if from_s <= moment <= to_s]
        first, last = inside[0], inside[-1]
        used = self.used_s[share]
        return (used[last] - used[first]) / (self.moments_s[last] - self.moments_s[first]) * 100


_SETTINGS = StubSettings(bytes_per_us=0)
"""Fills and copies take no time, so that what calling them costs is seen."""


class Rig:
    """A machine with one card; shares as folders, each of which stands for a container."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.card = root / "driver" / "dev" / "nvidia0"
        self.shares = root / "shares"
        self.load = build("load", root)

    def reset(self, granularity_bytes: int = 1) -> None:
        """Make a new card, without shares."""
        shutil.rmtree(self.shares, ignore_errors=True)
        settings = replace(_SETTINGS, granularity_bytes=granularity_bytes)
        create_driver_root(self.root / "driver", [StubGPU("Stub", 64 << 30, UUID, settings=settings)])

    def share(self, tenant: Tenant, memory_bytes: int = 1 << 30) -> Path:
        """Create the share of a tenant; return its folder."""
        fixed = tenant.policy is Policy.FIXED
        folder = self.shares / tenant.share / tenant.share
        limits = Limits(
            tenant.share,
            UUID,
            memory_bytes,
            tenant.cores,
            tenant.cores if fixed else 100,
            tenant.policy,
            tenant.priority,
        )
        create_share(folder, limits, durable=False)
        return folder

    def environment(self, share: str | None) -> dict[str, str]:
        """Return what a process is started with: inside a share, or without the library."""
        base = {**os.environ, **stub_environment(self.root / "driver")}
        if share is None:
            return base
        return {**base, "VGPU_SHARES_DIR": str(self.shares / share), "LD_PRELOAD": str(library_path())}

    def run(self, tenants: Sequence[Tenant], seconds: float, *, steered: bool = True) -> Run:
        """Let tenants load the card for a time; shares must exist. With or without what the node agent does."""
        run = Run()
        with contextlib.ExitStack() as stack:
            if steered:
                stack.enter_context(self._steered())
            owners: dict[int, str] = {}
            waiting: list[tuple[float, list[subprocess.Popen[str]]]] = []
            for tenant in tenants:
                run.used_s[tenant.share] = []
                group = [stack.enter_context(self._start(tenant, seconds)) for _ in range(tenant.processes)]
                owners.update({process.pid: tenant.share for process in group})
                waiting.append((tenant.start_s, group))
            for _, group in waiting:
                for process in group:
                    assert process.stdout is not None
                    process.stdout.readline()
            begin = time.monotonic()
            base = self._used_s(owners)
            while (now := time.monotonic() - begin) < seconds:
                for late, group in list(waiting):
                    if now >= late:
                        waiting.remove((late, group))
                        for process in group:
                            assert process.stdin is not None
                            process.stdin.write("go\n")
                            process.stdin.flush()
                run.moments_s.append(time.monotonic() - begin)
                for share, used in self._used_s(owners).items():
                    run.used_s[share].append(used - base[share])
                threading.Event().wait(_STEP_S)
        return run

    @contextlib.contextmanager
    def _steered(self) -> Iterator[None]:
        command = [sys.executable, "-m", "tests.bench.steer", str(self.root / "driver"), str(self.shares)]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                yield
            finally:
                process.communicate("", timeout=30)

    def _start(self, tenant: Tenant, seconds: float) -> "subprocess.Popen[str]":
        lengths = ",".join(map(str, tenant.lengths_ns))
        command = [str(self.load), str(seconds - tenant.start_s), lengths, str(tenant.streams)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self.environment(tenant.share), stdin=pipe, stdout=pipe, text=True)

    def _used_s(self, owners: dict[int, str]) -> dict[str, float]:
        used = dict.fromkeys(owners.values(), 0.0)
        for process in read_card(self.card).processes:
            if process.pid in owners:
                used[owners[process.pid]] += process.gpu_time_ns / 1e9
        return used


@contextlib.contextmanager
def rig() -> Iterator[Rig]:
    """Make a machine in a temporary folder, in memory where there is such a file system."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="vgpu-", dir=memory if memory.is_dir() else None) as folder:
        yield Rig(Path(folder))
