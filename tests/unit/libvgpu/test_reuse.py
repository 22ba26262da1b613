"""Handles and addresses that come back as something else: the driver gives them again as soon as they are free.

The stub driver gives the one that was destroyed last first (handles.h), so each program here knows what comes back, and
checks that it did. The books are compared with the card's own count, mostly without NVML: what is charged by calls
alone shows what was forgotten, and what was not.
"""

import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from libvgpu.shares import read_books
from libvgpu.stub import StubGPU, StubSettings, create_driver_root, read_card

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
# 16 multiprocessors of 2048 threads: each KiB of a thread's is 32 MiB, and the first one is the context's own.
CARDS = [
    StubGPU(
        name=f"Stub {letter}",
        memory_bytes=1 << 30,
        uuid=f"GPU-00000000-0000-4000-8000-00000000000{letter}",
        multiprocessors=16,
    )
    for letter in "ab"
]
PRELUDE = """
import pathlib, threading, time
from libvgpu.shares import read_books
from libvgpu.stub import inject_fault, read_card
CARDS, SHARES = [pathlib.Path(each) for each in {cards!r}], [pathlib.Path(each) for each in {shares!r}]
MIB = 1 << 20

def exact():
    booked = [read_books(share).used_bytes / MIB for share in SHARES]
    counted = [read_card(card).used_bytes / MIB for card in CARDS]
    assert booked == counted, (booked, counted)
    return booked

def again(old, new):
    assert old.value == new.value is not None, "the handle did not come again"
    return new

def context_on(device):
    made = c_void_p()
    check(cuda.cuCtxCreate_v2(byref(made), 0, device))
    return made

def image(local, *names):
    text = ".version 8.0\\n.target sm_80\\n.address_size 64\\n"
    for name in names:
        text += f".visible .entry {{name}}() {{{{ .local .align 8 .b8 own[{{local}}]; ret; }}}}\\n"
    return text.encode()

def load(local, name=b"wide"):
    module, function = c_void_p(), c_void_p()
    check(cuda.cuModuleLoadData(byref(module), image(local, name.decode())))
    check(cuda.cuModuleGetFunction(byref(function), module, name))
    return module, function

def array(side):
    made = c_void_p()
    check(cuda.cuArrayCreate_v2(byref(made), (c_ulonglong * 3)(side, side, 0x0100000001)))
    return made

class Between(ctypes.Structure):
    _fields_ = [("function", ctypes.c_char_p), ("before", ctypes.c_void_p), ("after", ctypes.CFUNCTYPE(None))]

def behind(function, action):
    # Just after the driver has done a call, and before its caller knows: in another thread, which may have to wait.
    def start_action():
        between.function = None
        thread.start()
        thread.join(0.2)
    def act():
        action()
        done.append(True)
    between, done, thread = Between.in_dll(cuda, "vgpu_stub_between"), [], threading.Thread(target=act, daemon=True)
    between.after = ctypes.CFUNCTYPE(None)(start_action)
    between.function = function
    def wait():
        thread.join()
        assert done
    return wait

check(cuda.cuInit(0))
"""


class Two:
    """A machine with two cards, and a share of 256 MiB of each."""

    def __init__(self, machine: "Machine", *, nvml: bool = False, **settings: int) -> None:
        create_driver_root(machine.root, [replace(card, settings=StubSettings(**settings)) for card in CARDS])
        self.cards = [machine.root / "dev" / f"nvidia{number}" for number in range(2)]
        self.machine = machine
        self.shares = [machine.share(256 * MIB, name=card.name[-1], device_uuid=card.uuid) for card in CARDS]
        if not nvml:
            machine.remove_nvml()

    def run(self, code: str) -> str:
        """Run a program that has CARDS, SHARES, and exact(), which returns the MiB in use that both agree on."""
        return self.machine.run(
            PRELUDE.format(cards=[str(card) for card in self.cards], shares=[str(share) for share in self.shares])
            + code
        )

    def only_the_first(self) -> "Two":
        """Leave a process no other device than the first: launches are planned ahead then."""
        self.cards[1].unlink()
        del self.cards[1], self.shares[1]
        return self


@pytest.fixture
def two(machine: "Machine") -> Two:
    """Return two cards with a share each, where NVML is silent."""
    return Two(machine)


@pytest.fixture
def one(two: Two) -> Two:
    """Return the same with one card."""
    return two.only_the_first()


# ---- Contexts ----

FILL_CONTEXT = """
def fill(device, mib):
    made = context_on(device)
    alloc(mib * MIB)
    array(1024)                                         # 1 MiB
    check(cuda.cuCtxSetLimit(2, c_size_t((8 + mib) * MIB)))  # the heap: 8 are the context's own
    launch(load(5000)[1], 0)                            # 128 MiB
    check(cuda.cuMemAllocManaged(byref(Pointer()), c_size_t(mib * MIB), 1))
    return made
"""


def test_a_context_on_another_gpu_starts_with_nothing_of_the_one_whose_handle_it_gets(machine: "Machine") -> None:
    Two(machine, nvml=True, context_bytes=MIB).run(
        FILL_CONTEXT
        + """
first = fill(0, 10)
assert exact() == [10 + 1 + 10 + 128 + 10 + 1, 0]
check(cuda.cuCtxDestroy_v2(first))
assert exact() == [0, 0]
second = again(first, fill(1, 6))
assert exact() == [0, 6 + 1 + 6 + 128 + 6 + 1]
check(cuda.cuCtxDestroy_v2(second))
again(first, fill(1, 30))
assert exact() == [0, 30 + 1 + 30 + 128 + 30 + 1]
check(cuda.cuCtxDestroy_v2(first))
assert exact() == [0, 0]
"""
    )


@pytest.mark.parametrize(
    "ends",
    {
        "cuCtxDestroy_v2": "cuda.cuCtxDestroy_v2(first)",
        "cuCtxDetach": "cuda.cuCtxDetach(first)",
        "cuDevicePrimaryCtxRelease": "cuda.cuDevicePrimaryCtxRelease(0)",
        "cuDevicePrimaryCtxReset_v2": "cuda.cuDevicePrimaryCtxReset_v2(0)",
    }.items(),
    ids=lambda ends: ends[0],
)
def test_a_context_that_another_thread_gets_while_the_old_one_ends_keeps_what_it_has(
    ends: tuple[str, str], two: Two
) -> None:
    function, call = ends
    two.run(
        FILL_CONTEXT
        + f"""
def next_one():
    again(first, fill(1, 6))
primary = "{function}".startswith("cuDevice")
first = start() if primary else context_on(0)
alloc(10 * MIB)
wait = behind(b"{function}", next_one)
check({call})
wait()
assert exact() == [0, 6 + 1 + 6 + 128 + 6]
"""
    )


@pytest.mark.parametrize("end", ["cuCtxDestroy(first)", "cuCtxDestroy_v2(first)", "cuDevicePrimaryCtxReset_v2(0)"])
def test_others_take_and_free_memory_while_the_driver_waits_for_the_work_of_a_context_that_ends(
    end: str, two: Two
) -> None:
    two.run(
        f"""
def use():
    check(cuda.cuCtxSetCurrent(other))
    alloc(10 * MIB)
    info()
    load(16)
    if created:
        context_on(0)
        alloc(4 * MIB)
    done.set()
def wait_for_others():
    between.function = None
    threading.Thread(target=use, daemon=True).start()
    in_time.append(done.wait(60))
    if created:
        free(spare)
        in_time.append(True)
created, done, in_time = "Primary" not in "{end}", threading.Event(), []
other = context_on(1)
spare = alloc(2 * MIB)
first = context_on(0) if created else start()
alloc(20 * MIB)
between = Between.in_dll(cuda, "vgpu_stub_between")
kept = ctypes.CFUNCTYPE(None)(wait_for_others)
between.before, between.function = ctypes.cast(kept, ctypes.c_void_p), "{end}".partition("(")[0].encode()
assert exact() == [20, 2]
check(cuda.{end})
assert in_time == ([True, True] if created else [True]), in_time
assert exact() == ([4, 10] if created else [0, 12])
"""
    )


def test_a_context_that_the_driver_does_not_destroy_keeps_what_it_has(machine: "Machine") -> None:
    Two(machine, nvml=True, context_bytes=MIB).run(
        FILL_CONTEXT
        + """
first = fill(0, 10)
held = exact()
inject_fault(CARDS[0], "cuCtxDestroy_v2", 1, 999)
assert cuda.cuCtxDestroy_v2(first) == 999
assert exact() == held
alloc(MIB)
check(cuda.cuCtxDestroy_v2(first))
assert exact() == [0, 0]
"""
    )


def test_a_thread_whose_context_was_destroyed_pays_for_none_until_it_has_the_next(two: Two) -> None:
    two.run(
        """
first = context_on(0)
def use():
    check(cuda.cuCtxSetCurrent(first))
    alloc(10 * MIB)
    turn.wait(); turn.wait()
    results.append(try_alloc(10 * MIB)[0])
    check(cuda.cuCtxSetCurrent(second))
    alloc(20 * MIB)
turn, results = threading.Barrier(2), []
thread = threading.Thread(target=use, daemon=True)
thread.start()
turn.wait()
check(cuda.cuCtxDestroy_v2(first))
second = again(first, context_on(1))
turn.wait()
thread.join()
assert results == [709], results  # CUDA_ERROR_CONTEXT_IS_DESTROYED
assert exact() == [0, 20]
"""
    )


def test_measurements_touch_no_event_that_the_application_got_the_handle_of(two: Two) -> None:
    two.run(
        """
first = context_on(0)
function = kernel()
for _ in range(20):
    launch(function, 1000)
    synchronize()
check(cuda.cuCtxDestroy_v2(first))
second = context_on(0)
events = [c_void_p() for _ in range(64)]
for event in events:
    check(cuda.cuEventCreate(byref(event), 0))
    check(cuda.cuEventRecord(event, None))
function, passed = kernel(), ctypes.c_float()
for _ in range(20):
    launch(function, 50_000_000 // 20)
    synchronize()
for event in events:
    check(cuda.cuEventElapsedTime(byref(passed), events[0], event))
    assert passed.value < 50, "recorded again"
for event in events:
    check(cuda.cuEventDestroy_v2(event))
"""
    )


# ---- Functions ----

GRAPHS = """
def graph_of(*work, mib=0):
    graph, stream, pointer = c_void_p(), new_stream(), Pointer()
    check(cuda.cuStreamBeginCapture_v2(stream, 2))
    if mib:
        check(cuda.cuMemAllocAsync(byref(pointer), c_size_t(mib * MIB), stream))
    for function, gpu_ns in work:
        launch(function, gpu_ns, stream)
    if mib:
        check(cuda.cuMemFreeAsync(pointer, stream))
    check(cuda.cuStreamEndCapture(stream, byref(graph)))
    made = instantiate(graph)
    check(cuda.cuGraphDestroy(graph))
    check(cuda.cuStreamDestroy_v2(stream))
    return made
"""


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_function_costs_what_it_takes_and_not_what_the_last_one_of_its_handle_took(elsewhere: bool, one: Two) -> None:
    one.run(
        f"""
context = start()
def spin():
    module, function = c_void_p(), c_void_p()
    ptx = b".version 8.0\\n.target sm_80\\n.address_size 64\\n.visible .entry spin(.param .u64 ns) {{ ret; }}\\n"
    check(cuda.cuModuleLoadData(byref(module), ptx))
    check(cuda.cuModuleGetFunction(byref(function), module, b"spin"))
    return module, function
def reload():
    check(cuda.cuCtxSetCurrent(context))
    check(cuda.cuModuleUnload(module))
    again(function, spin()[1])
module, function = spin()
for _ in range(3000):
    launch(function, 1000)
synchronize()
for _ in range(20):
    launch(function, 1000)
if {elsewhere}:
    thread = threading.Thread(target=reload, daemon=True)
    thread.start()
    thread.join()
else:
    reload()
for _ in range(20):
    launch(function, 10_000_000)
synchronize()
"""
    )
    assert read_books(one.shares[0]).gpu_time_ns >= 0.9 * read_card(one.cards[0]).gpu_time_ns


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_memory_of_a_functions_threads_is_reserved_where_one_without_any_had_its_handle(
    elsewhere: bool, one: Two
) -> None:
    one.run(
        f"""
context = start()
def reload(local):
    global module
    check(cuda.cuCtxSetCurrent(context))
    check(cuda.cuModuleUnload(module))
    module = again_of(load(local))
def again_of(loaded):
    again(function, loaded[1])
    return loaded[0]
def in_turn(local):
    if not {elsewhere}:
        return reload(local)
    thread = threading.Thread(target=reload, args=(local,), daemon=True)
    thread.start()
    thread.join()
module, function = load(16)
def warm():
    for _ in range(2000):
        check(try_launch(function, 0))
    synchronize()
    for _ in range(5):
        check(try_launch(function, 0))
warm()
in_turn(20_000)
assert try_launch(function, 0) == OUT_OF_MEMORY
assert exact() == [0]
in_turn(16)
warm()
in_turn(5000)
check(try_launch(function, 0))
assert exact() == [128]
"""
    )
    assert read_card(one.cards[0]).peak_bytes == 128 * MIB


def test_a_function_that_another_thread_loads_while_the_last_one_is_unloaded_is_asked_for_what_it_needs(
    one: Two,
) -> None:
    one.run(
        """
context = start()
def next_one():
    check(cuda.cuCtxSetCurrent(context))
    check(try_launch(again(function, load(5000)[1]), 0))
module, function = load(16)
check(try_launch(function, 0))
wait = behind(b"cuModuleUnload", next_one)
check(cuda.cuModuleUnload(module))
wait()
assert exact() == [128]
"""
    )


def test_a_kernel_and_a_function_that_get_each_others_handles_are_asked_for_what_they_need(one: Two) -> None:
    one.run(
        """
start()
def library(local):
    made, found = c_void_p(), c_void_p()
    check(cuda.cuLibraryLoadData(byref(made), image(local, "wide"), None, None, 0, None, None, 0))
    check(cuda.cuLibraryGetKernel(byref(found), made, b"wide"))
    return made, found
first, small = library(16)
check(try_launch(small, 0))
check(cuda.cuLibraryUnload(first))
module, large = load(20_000)
again(small, large)
assert try_launch(large, 0) == OUT_OF_MEMORY
check(cuda.cuModuleUnload(module))
again(small, load(16)[1])
second, fits = library(5000)
check(try_launch(fits, 0))
assert exact() == [128]
"""
    )
    assert read_card(one.cards[0]).peak_bytes == 128 * MIB


@pytest.mark.parametrize("by", ["function", "graph"])
def test_a_kernel_of_a_library_is_asked_for_what_it_needs_on_each_gpu(by: str, two: Two) -> None:
    two.run(
        GRAPHS
        + f"""
library, wide = c_void_p(), c_void_p()
contexts = [context_on(0), context_on(1)]
check(cuda.cuLibraryLoadData(byref(library), image(5000, "wide"), None, None, 0, None, None, 0))
check(cuda.cuLibraryGetKernel(byref(wide), library, b"wide"))
graph = graph_of((wide, 0))
for device, expected in ((0, [128, 0]), (1, [128, 128])):
    check(cuda.cuCtxSetCurrent(contexts[device]))
    check(cuda.cuGraphLaunch(graph, None) if "{by}" == "graph" else try_launch(wide, 0))
    assert exact() == expected
"""
    )


# ---- Graphs ----


def test_a_graph_takes_what_is_in_it_and_not_what_the_last_one_of_its_handle_took(one: Two) -> None:
    one.run(
        GRAPHS
        + """
start()
spin, wide = kernel(), load(5000)[1]
first = graph_of((spin, 1000), mib=100)
for _ in range(100):
    check(cuda.cuGraphLaunch(first, None))
synchronize()
assert exact() == [100]
check(cuda.cuGraphExecDestroy(first))
check(cuda.cuDeviceGraphMemTrim(0))
second = again(first, graph_of((spin, 10_000_000), (wide, 0)))
for _ in range(10):
    check(cuda.cuGraphLaunch(second, None))
synchronize()
assert exact() == [128]
check(cuda.cuGraphExecDestroy(second))
assert cuda.cuGraphLaunch(again(second, graph_of(mib=200)), None) == OUT_OF_MEMORY
assert exact() == [128]
"""
    )
    assert read_books(one.shares[0]).gpu_time_ns >= 0.9 * read_card(one.cards[0]).gpu_time_ns
    assert read_card(one.cards[0]).peak_bytes <= 228 * MIB


def test_a_graph_that_the_driver_does_not_destroy_is_still_known(one: Two) -> None:
    one.run(
        GRAPHS
        + """
start()
large, wide = graph_of(mib=300), graph_of((load(20_000)[1], 0))
for each in (large, wide):
    inject_fault(CARDS[0], "cuGraphExecDestroy", 1, 999)
    assert cuda.cuGraphExecDestroy(each) == 999
    assert cuda.cuGraphLaunch(each, None) == OUT_OF_MEMORY
assert exact() == [0]
"""
    )
    assert read_card(one.cards[0]).peak_bytes == 0


@pytest.mark.parametrize("of", ["graph", "context"])
def test_what_is_too_much_to_have_an_estimate_is_a_new_function_in_its_handles_next_life(of: str, one: Two) -> None:
    one.run(
        GRAPHS
        + f"""
def many(count):  # of work that has an estimate each: their table is full then
    names = [f"instant{{number}}" for number in range(count)]
    module = c_void_p()
    check(cuda.cuModuleLoadData(byref(module), image(16, *names)))
    for name in names:
        function = c_void_p()
        check(cuda.cuModuleGetFunction(byref(function), module, name.encode()))
        for size in range(31):
            check(cuda.cuLaunchKernel(function, c_uint(1 << size), *(c_uint(1),) * 5, c_uint(0), None, None, None))
start()
many(300)
for _ in range(9):
    if "{of}" == "graph":
        first = graph_of((load(16)[1], 0))
        check(cuda.cuGraphLaunch(first, None))
        synchronize()
        check(cuda.cuGraphExecDestroy(first))
        second = again(first, graph_of((load(20_000)[1], 0)))
        assert cuda.cuGraphLaunch(second, None) == OUT_OF_MEMORY
    else:
        own = context_on(0)
        first = load(16)[1]
        check(try_launch(first, 0))
        check(cuda.cuCtxDestroy_v2(own))
        own = context_on(0)
        second = again(first, load(20_000)[1])
        assert try_launch(second, 0) == OUT_OF_MEMORY
"""
    )
    assert read_card(one.cards[0]).peak_bytes == 0


@pytest.mark.parametrize("line", ["threads", "contexts"])
def test_graphs_on_default_streams_that_do_not_wait_for_each_other_count_together(line: str, one: Two) -> None:
    one.run(
        GRAPHS
        + f"""
context = start()
spin = kernel()
graphs = [graph_of((spin, 300_000_000), mib=150) for _ in range(2)]
stream = c_void_p(2 if "{line}" == "threads" else 0)
def first():
    check(cuda.cuCtxSetCurrent(context))
    check(cuda.cuGraphLaunch(graphs[0], stream))
    turn.wait(); turn.wait()
turn = threading.Barrier(2)
thread = threading.Thread(target=first, daemon=True)
thread.start()
turn.wait()
if "{line}" == "contexts":
    context_on(0)
assert cuda.cuGraphLaunch(graphs[1], stream) == OUT_OF_MEMORY
turn.wait()
thread.join()
"""
    )
    assert read_card(one.cards[0]).peak_bytes == 150 * MIB


# ---- Streams ----


@pytest.mark.parametrize("destroy", ["cuStreamDestroy", "cuStreamDestroy_v2"])
def test_a_capture_on_a_stream_is_not_ended_by_the_last_one_of_its_handle(destroy: str, one: Two) -> None:
    one.run(
        f"""
context = start()
def next_one():
    check(cuda.cuCtxSetCurrent(context))
    again(first, stream := new_stream())
    check(cuda.cuStreamBeginCapture_v2(stream, 2))
spin, graph = kernel(), c_void_p()
first = new_stream()
check(cuda.cuStreamBeginCapture_v2(first, 2))
wait = behind(b"{destroy}", next_one)
check(cuda.{destroy}(first))
wait()
for _ in range(5):
    launch(spin, 100_000_000, first)
check(cuda.cuStreamEndCapture(first, byref(graph)))
"""
    )
    assert read_card(one.cards[0]).gpu_time_ns == read_books(one.shares[0]).gpu_time_ns == 0


def test_a_capture_ends_with_the_context_of_its_stream_whichever_is_current(one: Two) -> None:
    one.run(
        """
first = context_on(0)
streams = [new_stream(), new_stream()]
second = context_on(0)
spin = kernel()
for stream in streams:
    check(cuda.cuStreamBeginCapture_v2(stream, 2))
check(cuda.cuCtxDestroy_v2(second))
check(cuda.cuCtxSetCurrent(first))
launch(kernel(), 100_000_000, streams[0])
"""
    )
    assert read_card(one.cards[0]).gpu_time_ns == read_books(one.shares[0]).gpu_time_ns == 0


def test_what_is_captured_is_not_paid_where_the_driver_does_not_say_in_which_context(one: Two) -> None:
    one.run(
        """
start()
spin, stream, graph = kernel(), new_stream(), c_void_p()
for _ in range(10):
    launch(spin, 10_000_000, stream)
    synchronize()
inject_fault(CARDS[0], "cuStreamGetCtx", 1, 999)
check(cuda.cuStreamBeginCapture_v2(stream, 2))
for _ in range(50):
    launch(spin, 10_000_000, stream)
check(cuda.cuStreamEndCapture(stream, byref(graph)))
"""
    )
    assert read_books(one.shares[0]).gpu_time_ns <= 2 * read_card(one.cards[0]).gpu_time_ns


# ---- Memory ----


def test_a_pool_on_another_gpu_is_charged_there(two: Two) -> None:
    two.run(
        """
def pool_on(device):
    made = c_void_p()
    check(cuda.cuMemPoolCreate(byref(made), (c_int * 22)(1, 0, 1, device)))
    return made
start()
first = pool_on(0)
free(take_from(first, 40 * MIB))
take = take_from(first, 30 * MIB)
check(cuda.cuMemPoolDestroy(first))
assert exact() == [30, 0]
free(take)
assert exact() == [0, 0]
second = again(first, pool_on(1))
context = context_on(1)
take_from(second, 50 * MIB)
assert exact() == [0, 50]
check(cuda.cuMemPoolTrimTo(second, c_size_t(0)))
assert try_from(second, 250 * MIB)[0] == OUT_OF_MEMORY
check(cuda.cuMemPoolDestroy(second))
assert exact() == [0, 50]
"""
    )


def test_arrays_and_plain_memory_that_get_each_others_handles_and_addresses_are_charged_for_themselves(
    two: Two,
) -> None:
    two.run(
        """
first = context_on(0)
small = array(1024)
check(cuda.cuCtxDestroy_v2(first))
second = context_on(1)
large = again(small, array(2048))
assert exact() == [0, 4]
check(cuda.cuArrayDestroy(large))
plain = alloc(4 * MIB)
assert exact() == [0, 4]
free(plain)
check(cuda.cuMemAllocAsync(byref(ordered := Pointer()), c_size_t(4 * MIB), None))
assert again(plain, ordered) and exact() == [0, 4]
check(cuda.cuMemFreeAsync(ordered, None))
synchronize()
info()  # looks what the pool has let go of
assert again(small, array(512)) and exact() == [0, 0.25]
"""
    )


def test_memory_by_handle_is_charged_for_itself(two: Two) -> None:
    two.run(
        """
def create_on(device, mib):
    made = Pointer()
    check(cuda.cuMemCreate(byref(made), c_size_t(mib * MIB), (c_int * 16)(1, 1, 1, device), c_ulonglong(0)))
    return made
start()
shared, file = create_on(0, 16), c_int()
check(cuda.cuMemExportToShareableHandle(byref(file), shared, 1, c_ulonglong(0)))
first = create_on(0, 32)
check(cuda.cuMemRelease(first))
second = again(first, create_on(1, 64))
assert exact() == [16, 64]
check(cuda.cuMemRelease(second))
check(cuda.cuMemImportFromShareableHandle(byref(imported := Pointer()), c_void_p(file.value), 1))
again(first, imported)
assert exact() == [16, 0]
check(cuda.cuMemRelease(imported))
assert exact() == [16, 0]
again(first, create_on(0, 8))
assert exact() == [24, 0]
"""
    )


def test_managed_memory_that_was_moved_leaves_nothing_where_its_address_comes_again(two: Two) -> None:
    two.run(
        """
def managed(mib):
    made = Pointer()
    check(cuda.cuMemAllocManaged(byref(made), c_size_t(mib * MIB), 1))
    return made
def booked():
    return [read_books(share).used_bytes / MIB for share in SHARES]
start()
first = managed(32)
check(cuda.cuMemPrefetchAsync(first, c_size_t(32 * MIB), 1, None))
assert booked() == [32, 32]
free(first)
assert booked() == [0, 0]
again(first, managed(32))
assert booked() == [32, 0]
"""
    )


def test_green_contexts_and_their_device_are_another_in_their_handles_next_life(machine: "Machine") -> None:
    two = Two(machine, nvml=True, context_bytes=MIB)
    two.run(
        """
def green_on(device):
    made = c_void_p()
    check(cuda.cuGreenCtxCreate(byref(made), ctypes.create_string_buffer(8), device, 1))
    return made
def use(green, mib):
    own = c_void_p()
    check(cuda.cuCtxFromGreenCtx(byref(own), green))
    check(cuda.cuCtxSetCurrent(own))
    alloc(mib * MIB)
first = green_on(0)
use(first, 10)
assert exact() == [12, 0]
check(cuda.cuGreenCtxDestroy(first))
assert exact() == [0, 0]
second = again(first, green_on(1))
use(second, 20)
assert exact() == [0, 22]
check(cuda.cuGreenCtxDestroy(second))
assert exact() == [0, 0]
"""
    )


# ---- All at once ----


def test_threads_that_make_and_destroy_one_of_everything_leave_nothing_charged(two: Two, churn_program: "Path") -> None:
    environment = two.machine.environment()
    run = subprocess.run([churn_program], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == 2 * f"{256 * MIB} of {256 * MIB}\n"
    for card, share in zip(two.cards, two.shares, strict=True):
        assert read_books(share).used_bytes == 0
        assert read_card(card).peak_bytes > 0
