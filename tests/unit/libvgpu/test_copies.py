"""Fills, and copies that stay on the device, are paid like kernels; copies to and from the host are not paid.

The simulated card does what stays on it on its engine, as fast as its memory, and counts who has the engine for how
long. What goes to or from the host takes the link's time, beside the engine.
"""

from typing import TYPE_CHECKING

import pytest

from libvgpu.entrypoints import entry_points
from libvgpu.shares import read_books
from libvgpu.stub import change_settings, read_card
from tests.unit.libvgpu.moves import LINKED, MOVES, REFUSED, SETUP

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.libvgpu.conftest import Machine

BYTES_PER_US = 1_000
"""A slow memory, so that little is moved for long."""
CORES = 20
UNPAID = 60
"""Percent of an idle GPU: what only those get who do not pay."""

COUNT = """
import os, pathlib
from libvgpu.shares import read_books
from libvgpu.stub import read_card
CARD, SHARE = pathlib.Path({card!r}), pathlib.Path({share!r})

def taken():
    check(cuda.cuCtxSynchronize())
    used_ns = sum(process.gpu_time_ns for process in read_card(CARD).processes)
    return used_ns, read_books(SHARE).gpu_time_ns, read_books(SHARE).launches

context = start()
ready()
"""


def _counting(machine: "Machine", share: "Path") -> str:
    return SETUP + COUNT.format(card=str(machine.card), share=str(share))


@pytest.fixture
def slow(machine: "Machine") -> "Machine":
    """Return a machine whose card has a slow memory and a slow link."""
    change_settings(machine.card, bytes_per_us=BYTES_PER_US, link_bytes_per_us=BYTES_PER_US)
    return machine


@pytest.mark.parametrize("kind", MOVES)
def test_what_stays_on_the_device_is_paid_by_whatever_call(kind: str, slow: "Machine") -> None:
    share = slow.share(cores_percent=100)
    calls = "\n".join(f"    {name!r}: lambda: cuda.{name}({arguments})," for name, arguments in MOVES[kind].items())
    slow.run(
        _counting(slow, share)
        + f"""
calls = {{
{calls}
}}
for name, call in calls.items():
    used, _, launches = taken()
    for _ in range(6):
        result = call()
        assert result == SUCCESS, (name, result)
    more_used, more_launches = taken()[0] - used, taken()[2] - launches
    assert more_used >= 6 * SIZE, (name, more_used)  # at 1 byte in a ns
    assert more_launches == 6, (name, more_launches)
"""
    )
    used_ns = sum(process.gpu_time_ns for process in read_card(slow.card).processes)
    assert read_books(share).gpu_time_ns > 0.7 * used_ns


@pytest.mark.parametrize("kind", LINKED)
def test_copies_over_the_link_cost_nothing_by_whatever_call(kind: str, slow: "Machine") -> None:
    share = slow.share(cores_percent=100)
    calls = "\n".join(f"    {name!r}: lambda: cuda.{name}({arguments})," for name, arguments in LINKED[kind].items())
    slow.run(
        _counting(slow, share)
        + f"""
calls = {{
{calls}
}}
before = taken()
for name, call in calls.items():
    check(call())
    assert taken() == before, (name, taken(), before)
"""
    )


def test_what_the_driver_refuses_costs_nothing(slow: "Machine") -> None:
    share = slow.share(cores_percent=100)
    calls = "\n".join(f"    lambda: cuda.{name}({arguments})," for name, arguments in REFUSED.items())
    slow.run(
        _counting(slow, share)
        + f"""
import itertools
function = kernel()
for known in (False, True):  # new work, and work that has a price
    before = taken()
    calls = [
        {calls}
        lambda: cuda.cuMemsetD8Async(Pointer(32), 0, n, stream),
        lambda: cuda.cuMemcpyDtoDAsync_v2(d, Pointer(32), n, stream),
        lambda: cuda.cuLaunchKernel(function, 1, c_uint(1 << 20), 1, 1, 1, 1, 0, stream, None, None),
    ]
    for call in calls:
        for _ in range(300):
            assert call() != SUCCESS
    check(cuda.cuCtxSynchronize())
    after = taken()
    assert (after[0], after[2]) == (before[0], before[2]), (after, before)
    assert after[1] - before[1] < 5_000_000, (after, before)  # of hundreds: what came back is taken off later
    if not known:
        for _ in range(20):
            check(cuda.cuMemsetD8Async(d, 0, n, stream))
            check(cuda.cuMemcpyDtoDAsync_v2(d, e, n, stream))
            launch(function, 1_000, stream)
"""
    )


HELD = """
import time
context = start()
ready()
end = time.monotonic() + 1
while time.monotonic() < end:
    {call}
synchronize()
"""
GRAPH = """
import time
context = start()
ready()
graph, node, executable = c_void_p(), c_void_p(), c_void_p()
check(cuda.cuStreamBeginCapture_v2(stream, 2))
check(cuda.cuMemsetD8Async(d, 0, n, stream))
check(cuda.cuMemcpyDtoDAsync_v2(d, e, n, stream))
check(cuda.cuStreamEndCapture(stream, byref(graph)))
fill = (c_ulonglong * 5)(d.value, 0, 1 << 32, SIZE, 1)  # CUDA_MEMSET_NODE_PARAMS
check(cuda.cuGraphAddMemsetNode(byref(node), graph, None, c_size_t(0), fill, context))
check(cuda.cuGraphAddMemcpyNode(byref(node), graph, None, c_size_t(0), deep(d, DEVICE, e, DEVICE), context))
check(cuda.cuGraphInstantiateWithFlags(byref(executable), graph, c_ulonglong(0)))
end = time.monotonic() + 1
while time.monotonic() < end:
    check(cuda.cuGraphLaunch(executable, stream))
synchronize()
"""
HOLDING = {
    "fills": HELD.format(call="check(cuda.cuMemsetD8Async(d, 0, n, stream))"),
    "synchronous fills": HELD.format(
        call="check(cuda.cuMemsetD2D32_v2(d, c_size_t(1024), 0, c_size_t(256), c_size_t(256)))"
    ),
    "copies": HELD.format(call="check(cuda.cuMemcpyDtoDAsync_v2(d, e, n, stream))"),
    "copies by address": HELD.format(call="check(cuda.cuMemcpy_ptds(d, e, n))"),
    "copies of boxes": HELD.format(call="check(cuda.cuMemcpy2DAsync_v2(flat(d, DEVICE, e, DEVICE), stream))"),
    "a graph of fills and copies": GRAPH,
    "batches that fail after their first copy": HELD.format(
        call="assert cuda.cuMemcpyBatchAsync_v2((Pointer * 2)(d.value, d.value), (Pointer * 2)(e.value, e.value), "
        "(c_size_t * 2)(SIZE, 0), c_size_t(2), (c_int * 6)(1), (c_size_t * 1)(0), ONE, stream) != SUCCESS"
    ),
}


def _percent(machine: "Machine", pid: int, seconds: float) -> float:
    times = {process.pid: process.gpu_time_ns for process in read_card(machine.card).processes}
    return times[pid] / 1e7 / seconds


@pytest.mark.parametrize("program", HOLDING)
def test_a_share_that_only_moves_bytes_gets_no_more_than_its_part_of_an_idle_gpu(program: str, slow: "Machine") -> None:
    share = slow.share(cores_percent=CORES)
    with slow.start(SETUP + HOLDING[program]) as process:
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert 0 < _percent(slow, process.pid, 1) < 1.5 * CORES < UNPAID
    assert read_books(share).throttled_ns > 0


def test_a_share_that_only_copies_leaves_a_busy_neighbour_its_part(slow: "Machine") -> None:
    slow.share(container="copier", cores_percent=CORES)
    slow.share(container="neighbour", cores_percent=70)
    busy = """
    import time
    start()
    function, end = kernel(), time.monotonic() + 2
    while time.monotonic() < end:
        launch(function, 1_000_000)
    synchronize()
    """
    copies = HOLDING["copies"].replace("time.monotonic() + 1", "time.monotonic() + 2")
    with slow.start(busy, container="neighbour") as neighbour, slow.start(SETUP + copies, container="copier") as copier:
        neighbour.communicate(timeout=60)
        copier.communicate(timeout=60)
    assert copier.returncode == neighbour.returncode == 0
    assert 0 < _percent(slow, copier.pid, 2) < 1.5 * CORES
    # It has 70 %, and would have no more than a half beside somebody who does not pay.
    assert _percent(slow, neighbour.pid, 2) > 1.5 * _percent(slow, copier.pid, 2)


def test_a_pipeline_pays_for_its_kernels_and_not_for_its_copies_over_the_link(slow: "Machine") -> None:
    share = slow.share(cores_percent=CORES)
    change_settings(slow.card, link_bytes_per_us=BYTES_PER_US // 10)
    slow.run(
        SETUP
        + """
context = start()
ready()
function = kernel()
for _ in range(20):
    check(cuda.cuMemcpyHtoDAsync_v2(d, h, n, stream))
    launch(function, 200_000, stream)
    check(cuda.cuMemcpyDtoHAsync_v2(h, d, n, stream))
check(cuda.cuStreamSynchronize(stream))  # once: in a full stream no kernel waits for a program that a machine holds up
"""
    )
    used_ns = sum(process.gpu_time_ns for process in read_card(slow.card).processes)
    assert used_ns == 20 * 200_000
    assert read_books(share).gpu_time_ns < 6 * used_ns  # a pair of copies takes 26 times as long as a kernel
    assert read_books(share).launches == 20


def test_every_fill_and_copy_that_is_hooked_is_tried() -> None:
    tried = set(REFUSED).union(*MOVES.values())
    hooked = {entry.symbol for entry in entry_points() if entry.effect == "launched"}
    moving = {symbol for symbol in hooked if "Launch" not in symbol}
    assert moving == tried
