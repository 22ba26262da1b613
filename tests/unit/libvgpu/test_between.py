"""What another thread does in the middle of a call: writes to what the call was given, ends a capture, takes memory.

The stub driver calls the program back in the very moment (exports.c), so nothing here depends on luck.
"""

import pytest

from libvgpu.shares import read_books
from libvgpu.stub import change_settings, read_card
from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
SETUP = """
import ctypes, time

Action = ctypes.CFUNCTYPE(None)

class Between(ctypes.Structure):
    _fields_ = [("function", ctypes.c_char_p), ("before", Action), ("after", Action)]

between = Between.in_dll(cuda, "vgpu_stub_between")

def in_between(function, before=None, after=None):
    between.before, between.after = (Action(each) if each else Action() for each in (before, after))
    between.function = function.encode()

context = start()
"""

ALLOCATIONS = {
    "cuMemAlloc_v2": "cuda.cuMemAlloc_v2(byref(p), c_size_t(SIZE))",
    "cuMemAllocPitch_v2": "cuda.cuMemAllocPitch_v2(byref(p), byref(c_size_t()), c_size_t(SIZE // 16), c_size_t(16), 4)",
    "cuMemAllocManaged": "cuda.cuMemAllocManaged(byref(p), c_size_t(SIZE), 1)",
    "cuMemAllocAsync": "cuda.cuMemAllocAsync(byref(p), c_size_t(SIZE), None)",
    "cuMemCreate": "cuda.cuMemCreate(byref(p), c_size_t(SIZE), (c_int * 16)(1, 0, 1, 0), c_ulonglong(0))",
    "cuArray3DCreate_v2": "cuda.cuArray3DCreate_v2(byref(p), (c_ulonglong * 5)(SIZE // 16, 16, 0, 0x0100000001, 0))",
}
"""Calls that take SIZE bytes, and put what they made into `p`."""
CALLED = {"cuMemAllocAsync": "cuMemAllocFromPoolAsync"}
"""What the driver is asked for instead."""


@pytest.mark.parametrize("call", ALLOCATIONS)
def test_a_pointer_that_another_thread_overwrites_gives_nothing_back(machine: Machine, call: str) -> None:
    machine.share(64 * MIB)
    granted = machine.run(
        SETUP
        + f"""
SIZE, CALLED = {16 * MIB}, "{CALLED.get(call, call)}"
p = Pointer()
check({ALLOCATIONS[call]})
first, granted = p.value, 1
def overwrite():
    p.value = first

in_between(CALLED, after=overwrite)
while granted < 10:
    if {ALLOCATIONS[call]} != SUCCESS:
        break
    granted += 1
say(granted)
"""
    )
    assert int(granted) <= 4
    assert read_card(machine.card).peak_bytes <= 64 * MIB


CHANGED = {
    "cuMemCreate": ((1, 0, 2, 0), (2, 1), f"cuda.cuMemCreate(byref(p), c_size_t({32 * MIB}), what, c_ulonglong(0))"),
    "cuArray3DCreate_v2": ((1, 0, 1, 0, 0, 0, 1, 1), (0, 32 * MIB), "cuda.cuArray3DCreate_v2(byref(p), what)"),
    "cuMipmappedArrayCreate": (
        (1, 0, 1, 0, 0, 0, 1, 1),
        (0, 32 * MIB),
        "cuda.cuMipmappedArrayCreate(byref(p), what, 1)",
    ),
    "cuMemPoolCreate": (
        (1, 0, 2, 0),
        (2, 1),
        f"cuda.cuMemPoolCreate(byref(p), what); cuda.cuMemAllocFromPoolAsync(byref(q), c_size_t({32 * MIB}), p, None)",
    ),
}
"""What a call is given, in ints: something small or on the host; what makes 32 MiB of the device of it; the call."""


@pytest.mark.parametrize("call", CHANGED)
def test_a_description_that_another_thread_changes_is_taken_as_it_was_counted(machine: Machine, call: str) -> None:
    machine.share(16 * MIB)
    given, (place, changed), asked = CHANGED[call]
    machine.run(
        SETUP
        + f"""
p, q, what = c_void_p(), c_void_p(), (c_int * 22)(*{given})
in_between("{call}", before=lambda: what.__setitem__({place}, {changed}))
{asked}
assert what[{place}] == {changed}
"""
    )
    assert read_card(machine.card).peak_bytes < MIB


CAPTURE = """
stream, graph = c_void_p(), c_void_p()
check(cuda.cuStreamCreate(byref(stream), 1))

def end_capture():
    check(cuda.cuStreamEndCapture(stream, byref(graph)))
"""


def test_memory_of_a_capture_that_another_thread_would_end_stays_in_its_graph(machine: Machine) -> None:
    share = machine.share(64 * MIB)
    with machine.start(
        SETUP
        + CAPTURE
        + f"""
import threading

def end_capture_elsewhere():
    def end():
        check(cuda.cuCtxSetCurrent(context))
        end_capture()
    threads.append(threading.Thread(target=end))
    threads[-1].start()
    threads[-1].join(0.2)  # it is in time, or has to wait for this call

alloc({60 * MIB})
threads = []
in_between("cuMemAllocFromPoolAsync", before=end_capture_elsewhere)
for _ in range(4):
    check(cuda.cuStreamBeginCapture_v2(stream, 2))
    cuda.cuMemAllocAsync(byref(Pointer()), c_size_t({8 * MIB}), stream)
    threads[-1].join()
    assert info()[0] == {4 * MIB}, info()
say(len(threads))
wait_for_line()
"""
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "4\n"
        assert read_card(machine.card).peak_bytes == read_books(share).used_bytes == 60 * MIB
        process.communicate("\n", timeout=60)
    assert process.returncode == 0


def test_kernels_of_a_capture_that_another_thread_ends_are_paid(machine: Machine) -> None:
    machine.share(cores_percent=20)
    passed_s = machine.run(
        SETUP
        + CAPTURE
        + """
function, begin = kernel(), time.monotonic()
in_between('cuLaunchKernel', before=end_capture)
for _ in range(8):
    check(cuda.cuStreamBeginCapture_v2(stream, 2))
    launch(function, 40_000_000, stream)
    check(cuda.cuStreamSynchronize(stream))
say(time.monotonic() - begin)
"""
    )
    assert read_card(machine.card).gpu_time_ns / 1e9 < 0.45 * float(passed_s)


def test_a_forks_child_that_ends_asks_the_driver_nothing_about_its_parent(machine: Machine) -> None:
    machine.share(64 * MIB)
    machine.run(
        SETUP
        + """
import os
launch(kernel(), 300_000_000)
child = os.fork()
if child == 0:
    in_between("cuEventQuery", before=lambda: os._exit(7))
    ctypes.CDLL(None).exit(0)
assert os.waitpid(child, 0)[1] == 0
synchronize()
"""
    )


IMAGE = 'image = b".version 8.0\\n.target sm_80\\n.address_size 64\\n"'
GROWING = {
    "cuModuleLoadData": "cuda.cuModuleLoadData(byref(c_void_p()), image)",
    "cuCtxCreate_v2": "cuda.cuCtxCreate_v2(byref(c_void_p()), 0, 0)",
    "cuArray3DCreate_v2": "cuda.cuArray3DCreate_v2(byref(c_void_p()), (c_ulonglong * 5)(16, 16, 0, 0x0100000001, 0))",
    "cuGreenCtxCreate": "cuda.cuGreenCtxCreate(byref(c_void_p()), ctypes.create_string_buffer(8), 0, 1)",
}
"""Calls that take what the driver alone knows."""


@pytest.mark.parametrize("call", GROWING)
def test_what_another_thread_was_made_to_charge_does_not_hide_what_is_refused(machine: Machine, call: str) -> None:
    machine.share(64 * MIB)
    with machine.start(
        SETUP
        + IMAGE
        + f"""
import threading
first = c_void_p()
check(cuda.cuModuleLoadData(byref(first), image))

def unload():
    check(cuda.cuCtxSetCurrent(context))
    check(cuda.cuModuleUnload(first))

def let_another_thread_unload():
    between.function = None
    thread = threading.Thread(target=unload)
    thread.start()
    thread.join()

say("ready")
wait_for_line()
in_between("{call}", after=let_another_thread_unload)
assert {GROWING[call]} == OUT_OF_MEMORY
say(info()[0])
wait_for_line()
"""
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        taken = 80 * MIB
        change_settings(machine.card, module_bytes=taken, context_bytes=taken, array_tile_bytes=taken)
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == f"{64 * MIB}\n"
        assert read_card(machine.card).used_bytes == 0
        process.communicate("\n", timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize("call", GROWING)
def test_threads_make_one_after_the_other_what_only_the_driver_knows_the_size_of(machine: Machine, call: str) -> None:
    machine.share(64 * MIB)
    machine.run(
        SETUP
        + IMAGE
        + f"""
import threading
both = threading.Barrier(2)

def meet():
    try:
        both.wait(0.2)
        met.append(True)
    except threading.BrokenBarrierError:
        pass

def make():
    check(cuda.cuCtxSetCurrent(context))
    check({GROWING[call]})

met, threads = [], [threading.Thread(target=make) for _ in range(2)]
in_between("{call}", before=meet)
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not met
"""
    )
