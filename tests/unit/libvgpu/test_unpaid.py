"""Work that is hard to measure, by documented calls alone: none of it may run for nothing.

Each program has a share of 20 % and work that would fill the GPU.
"""

import time
from typing import TYPE_CHECKING

import pytest

from libvgpu.shares import read_books
from libvgpu.stub import create_driver_root, read_card
from tests.unit.libvgpu.conftest import GPU, SECOND_GPU, Machine

if TYPE_CHECKING:
    from pathlib import Path

CORES = 20
MOST = 45
"""Percent of a GPU that such a program may get: its share, and what may run ahead of its payment while it is new."""

SETUP = """
import os, time
context = start()
work = c_void_p()
check(cuda.cuStreamCreate(byref(work), 1))
begin = time.monotonic()
"""
END = """
check(cuda.cuStreamSynchronize(work))
say(time.monotonic() - begin)
"""
OPEN_CAPTURE = """
side = c_void_p()
check(cuda.cuStreamCreate(byref(side), 1))
check(cuda.cuStreamBeginCapture_v2(side, {mode}))
function = kernel()
for _ in range(10):
    launch(function, 40_000_000, work)
    check(cuda.cuStreamSynchronize(work))
graph = c_void_p()
check(cuda.cuStreamEndCapture(side, byref(graph)))
"""
RELEASED_PRIMARY_CONTEXT = """
function, again = kernel(), c_void_p()
for _ in range(10):
    launch(function, 40_000_000, work)
    check(cuda.cuStreamSynchronize(work))
    check(cuda.cuDevicePrimaryCtxRetain(byref(again), 0))
    check(cuda.cuDevicePrimaryCtxRelease_v2(0))
"""
EACH_KERNEL_ONCE = """
for function in [kernel("spin%d" % number) for number in range(20)]:
    launch(function, 40_000_000, work)
    {after}
"""
MODULES_LOADED_BETWEEN = """
function, module = kernel(), c_void_p()
image = b".version 8.0\\n.target sm_80\\n.address_size 64\\n.visible .entry none() { ret; }\\n"
for _ in range(10):
    launch(function, 40_000_000, work)
    check(cuda.cuStreamSynchronize(work))
    check(cuda.cuModuleLoadData(byref(module), image))
    check(cuda.cuModuleUnload(module))
"""
STREAM_OF_ANOTHER_CONTEXT = """
function, other = kernel(), c_void_p()
check(cuda.cuCtxCreate_v2(byref(other), 0, 0))
for _ in range(10):
    launch(function, 40_000_000, work)
    check(cuda.cuStreamSynchronize(work))
"""
BECOMES_LONG = """
function = kernel()
for _ in range(5_000):
    launch(function, 1_000, work)
check(cuda.cuStreamSynchronize(work))
begin = time.monotonic()
for number in range(1_500):
    launch(function, 400_000, work)
    if number % 50 == 0:
        check(cuda.cuStreamSynchronize(work))
"""


def _used_percent(machine: Machine, output: str) -> float:
    used_ns = sum(process.gpu_time_ns for process in read_card(machine.card).processes)
    return used_ns / float(output.rsplit(maxsplit=1)[-1]) / 1e7


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(OPEN_CAPTURE.format(mode=0), id="beside an open capture of mode global"),
        pytest.param(OPEN_CAPTURE.format(mode=2), id="beside an open capture of mode relaxed"),
        pytest.param(RELEASED_PRIMARY_CONTEXT, id="between retains of the primary context"),
        pytest.param(EACH_KERNEL_ONCE.format(after="check(cuda.cuStreamSynchronize(work))"), id="each kernel once"),
        pytest.param(EACH_KERNEL_ONCE.format(after="pass"), id="each kernel once, all at once"),
        pytest.param(MODULES_LOADED_BETWEEN, id="between loads of modules"),
        pytest.param(STREAM_OF_ANOTHER_CONTEXT, id="on a stream of another context"),
        pytest.param(BECOMES_LONG, id="by a kernel that becomes 2,000 times as long"),
    ],
)
def test_work_that_is_hard_to_measure_gets_no_more_than_the_share(work: str, machine: Machine) -> None:
    share = machine.share(cores_percent=CORES)
    used = _used_percent(machine, machine.run(SETUP + work + END))
    assert 0 < used < MOST
    assert read_books(share).gpu_time_ns > 0


def test_processes_that_end_after_one_kernel_pay_for_each_other(machine: Machine) -> None:
    share = machine.share(cores_percent=CORES)
    begin = time.monotonic()
    for _ in range(5):
        machine.run("start(); launch(kernel(), 200_000_000); synchronize()")
    used_ns = sum(process.gpu_time_ns for process in read_card(machine.card).processes)
    assert read_books(share).gpu_time_ns == pytest.approx(used_ns, rel=0.1)
    assert used_ns / (time.monotonic() - begin) / 1e7 < MOST


@pytest.mark.parametrize("end", ["", "check(cuda.cuDevicePrimaryCtxReset_v2(0))"])
def test_work_that_still_runs_when_its_process_or_context_ends_is_paid_as_far_as_it_ran(
    end: str, machine: Machine
) -> None:
    share = machine.share(cores_percent=CORES)
    machine.run(f"""
    import time
    start()
    streams = [c_void_p(), c_void_p()]
    for stream in streams:
        check(cuda.cuStreamCreate(byref(stream), 1))
    launch(kernel(), 100_000_000, streams[0])
    time.sleep(0.05)
    launch(kernel("another"), 100_000_000, streams[1])
    {end}
    """)
    assert read_books(share).gpu_time_ns >= 50_000_000


def test_work_that_was_done_when_its_process_ended_is_paid_for_what_it_took(machine: Machine) -> None:
    share = machine.share(cores_percent=CORES)
    machine.run(f"""
    import pathlib, time
    from libvgpu.stub import read_card
    start()
    launch(kernel(), 100_000_000)
    while read_card(pathlib.Path({str(machine.card)!r})).gpu_time_ns < 100_000_000:
        time.sleep(0.01)
    """)
    assert read_books(share).gpu_time_ns == pytest.approx(100_000_000, rel=0.5)


def test_a_stream_of_another_gpu_is_paid_there(tmp_path: "Path", built: "Path") -> None:
    create_driver_root(tmp_path / "root", [GPU, SECOND_GPU])
    machine = Machine(tmp_path / "root", built / "libvgpu.so", tmp_path / "shares")
    (tmp_path / "shares").mkdir()
    machine.share(name="first")
    share = machine.share(name="second", device_uuid=SECOND_GPU.uuid, cores_percent=CORES)
    program = """
    import time
    there = start(1)
    function, work = kernel(), c_void_p()
    check(cuda.cuStreamCreate(byref(work), 1))
    start(0)
    begin = time.monotonic()
    for _ in range(10):
        launch(function, 40_000_000, work)
        check(cuda.cuStreamSynchronize(work))
    say(time.monotonic() - begin)
    """
    seconds = float(machine.run(program))
    used_ns = sum(process.gpu_time_ns for process in read_card(tmp_path / "root" / "dev" / "nvidia1").processes)
    assert 0 < used_ns / seconds / 1e7 < MOST
    assert read_books(share).gpu_time_ns == pytest.approx(used_ns, rel=0.2)


def test_work_that_cannot_be_measured_since_hundreds_of_kernels_wait_has_a_price(machine: Machine) -> None:
    share = machine.share(cores_percent=CORES)
    program = """
    start()
    first, second = c_void_p(), c_void_p()
    for stream in (first, second):
        check(cuda.cuStreamCreate(byref(stream), 1))
    launch(kernel("long"), 500_000_000, first)
    for number in range(300):
        launch(kernel("held%d" % number), 1_000, first)
    for number in range(5):
        launch(kernel("spin%d" % number), 200_000_000, second)
    synchronize()
    """
    machine.run(program)
    used_ns = sum(process.gpu_time_ns for process in read_card(machine.card).processes)
    assert read_books(share).gpu_time_ns >= 0.6 * used_ns
