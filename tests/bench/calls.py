"""What calls of the driver cost inside a share, against the same calls without the library: `make bench-library`.

Processes with the library and without it take turns, so that both see the same machine. Called by tests.bench.library.
"""

import contextlib
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench.rig import Rig, Tenant, build
from tests.bench.tables import Case, Found

RUNS = 7
_PROCESSES = 256


@dataclass(frozen=True)
class _Figure:
    name: str
    call: str
    cores: int
    bar: str
    processes: int = 1


_FIGURES = (
    _Figure("cuLaunchKernel, memory limit only", "launch", 100, "native + 5 ns"),
    _Figure("cuLaunchKernel, compute share, within credit", "launch", 50, "native + 12 ns"),
    _Figure("cuLaunchKernel, two kernels in turn", "launch-two", 50, ""),
    _Figure("cuMemAlloc and cuMemFree", "pair", 100, "native + 250 ns"),
    _Figure("the same with 10,000 live allocations", "pair-live", 100, "1.2 times as much"),
    _Figure(f"the same with {_PROCESSES} processes", "pair", 100, "1.2 times as much", _PROCESSES),
    _Figure("cuMemGetInfo", "info", 100, "native + 50 ns"),
)


def cases(rig: Rig) -> Iterator[Case]:
    """Yield a case for each call."""
    program = build("calls", rig.root)
    for figure in _FIGURES:
        yield Case(figure.name, partial(_calls, rig, program, figure))
    yield Case("cuMemAlloc beyond the limit", partial(_rejection, rig, program))
    yield Case("start and end of a process without CUDA", partial(_start, rig))


def _calls(rig: Rig, program: Path, figure: _Figure) -> Found:
    rig.reset()
    rig.share(Tenant("s", figure.cores, ()), memory_bytes=32 << 30)
    with contextlib.ExitStack() as stack:
        for _ in range(figure.processes - 1):
            stack.enter_context(_held(rig, program))
        pairs = [(_once(rig, program, figure.call, None), _once(rig, program, figure.call, "s")) for _ in _turns()]
    native = statistics.median(first for first, _ in pairs)
    more = sorted(second - first for first, second in pairs)
    found = f"{native:.0f} ns + {statistics.median(more):.1f} ns"
    return Found(found, f"{more[0]:.1f} to {more[-1]:.1f} ns more", figure.bar)


def _rejection(rig: Rig, program: Path) -> Found:
    rig.reset()
    rig.share(Tenant("s", 100, ()), memory_bytes=32 << 30)
    rejected = sorted(_once(rig, program, "reject", "s") for _ in _turns())
    spread = f"{rejected[0]:.0f} to {rejected[-1]:.0f} ns"
    return Found(f"{statistics.median(rejected):.0f} ns", spread, "100 ns")


def _turns() -> range:
    return range(RUNS)


def _once(rig: Rig, program: Path, call: str, share: str | None) -> float:
    command = [str(program), call]
    run = subprocess.run(command, env=rig.environment(share), stdout=subprocess.PIPE, text=True, check=True)
    return float(run.stdout)


@contextlib.contextmanager
def _held(rig: Rig, program: Path) -> Iterator[None]:
    pipe = subprocess.PIPE
    with subprocess.Popen([str(program), "hold"], env=rig.environment("s"), stdin=pipe, stdout=pipe, text=True) as held:
        assert held.stdout is not None
        held.stdout.readline()
        try:
            yield
        finally:
            held.communicate("")


def _start(rig: Rig) -> Found:
    """How long a process without CUDA takes from start to end."""

    def seconds(share: str | None) -> float:
        environment, count = rig.environment(share), 100
        begin = time.perf_counter()
        for _ in range(count):
            subprocess.run(["/bin/true"], env=environment, check=True)
        return (time.perf_counter() - begin) / count

    pairs = [(seconds(None), seconds("s")) for _ in _turns()]
    ratios = sorted((with_library / without - 1) * 100 for without, with_library in pairs)
    native_ms = statistics.median(without for without, _ in pairs) * 1e3
    found = f"{native_ms:.2f} ms + {statistics.median(ratios):.1f} %"
    return Found(found, f"{ratios[0]:.1f} to {ratios[-1]:.1f} % more", "1 % more")
