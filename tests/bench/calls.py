"""What calls of the driver cost inside a share, against the same calls without the library: `make bench-library`.

Processes with the library and without it take turns, so that both see the same machine. Called by tests.bench.library.
"""

import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench.rig import Rig, Tenant, build
from tests.bench.tables import Case, Found

RUNS = 7
_PROCESSES = 256
_STARTS = 100


@dataclass(frozen=True)
class _Figure:
    name: str
    call: str
    cores: int
    bar: str
    processes: int = 1
    granularity_bytes: int = 1


_BLOCK_BYTES = 2 << 20
"""Real drivers give memory out in such blocks, and put several small allocations into one."""
_FIGURES = (
    _Figure("cuLaunchKernel, memory limit only", "launch", 100, "native + 5 ns"),
    _Figure("cuLaunchKernel, compute share, within credit", "launch", 50, "native + 12 ns"),
    _Figure("cuLaunchKernel, two kernels in turn", "launch-two", 50, ""),
    _Figure("cuMemsetD8Async, compute share, within credit", "fill", 50, "native + 30 ns"),
    _Figure("cuMemcpyDtoDAsync, compute share, within credit", "copy", 50, "native + 30 ns"),
    _Figure("a kernel, a fill and a copy in turn", "three", 50, "native + 90 ns"),
    _Figure("cuMemAlloc and cuMemFree", "pair", 100, "native + 250 ns"),
    _Figure("the same with 10,000 live allocations", "pair-live", 100, "1.2 times as much"),
    _Figure(f"the same with {_PROCESSES} processes", "pair", 100, "1.2 times as much", _PROCESSES),
    _Figure("cuMemAlloc and cuMemFree, in blocks of 2 MiB", "pair", 100, "native + 250 ns", 1, _BLOCK_BYTES),
    _Figure("the same with 10,000 live allocations in blocks", "pair-live", 100, "1.2 times as much", 1, _BLOCK_BYTES),
    _Figure("cuMemGetInfo", "info", 100, "native + 50 ns"),
)


def cases(rig: Rig) -> Iterator[Case]:
    """Yield a case for each call."""
    program = build("calls", rig.root)
    for figure in _FIGURES:
        yield Case(figure.name, partial(_calls, rig, program, figure))
    yield Case("cuMemAlloc beyond the limit", partial(_rejection, rig, program))
    for name, command in (
        ("true", ["/bin/true"]),
        ("bash -c true", ["/bin/bash", "-c", "true"]),
        ("python3 -c pass", [sys.executable, "-c", "pass"]),
    ):
        yield Case(f"CPU time of a process without CUDA: {name}", partial(_start, rig, command))


def _calls(rig: Rig, program: Path, figure: _Figure) -> Found:
    rig.reset(granularity_bytes=figure.granularity_bytes)
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


def _start(rig: Rig, command: Sequence[str]) -> Found:
    """What a process without CUDA takes from start to end, without a library, with ours and with an empty one.

    CPU time, since that minds no busy machine.
    """
    ours = rig.environment("s")
    environments = (rig.environment(None), ours, {**ours, "LD_PRELOAD": str(_empty(rig.root))})

    def cpu_us(environment: Mapping[str, str]) -> float:
        _, _, usage = os.wait4(os.posix_spawn(command[0], list(command), environment), 0)
        return (usage.ru_utime + usage.ru_stime) * 1e6

    native, more, least, ratios = [], [], [], []
    for _ in _turns():
        found = [[cpu_us(environment) for environment in environments] for _ in range(_STARTS)]
        without, with_ours, with_empty = (statistics.median(times) for times in zip(*found, strict=True))
        native.append(without)
        more.append(with_ours - without)
        least.append(with_empty - without)
        ratios.append((with_ours / without - 1) * 100)
    text = f"{statistics.median(native):.0f} us + {statistics.median(more):.0f} us ({statistics.median(ratios):.1f} %)"
    bar = f"1 % more; an empty library: {statistics.median(least):.0f} us more"
    return Found(text, f"{min(ratios):.1f} to {max(ratios):.1f} % more", bar)


def _empty(folder: Path) -> Path:
    """Compile a library with nothing in it: what any takes to be loaded."""
    library = folder / "empty.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-o", str(library), os.devnull], check=True, timeout=60)
    return library
