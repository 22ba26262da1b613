"""Capture, clones and bindings in their rarer forms: what they lead to is charged, by the card's own count."""

from typing import TYPE_CHECKING

import pytest

from libvgpu.shares import read_books
from libvgpu.stub import read_card

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
BEGINNINGS = {
    "cuStreamBeginCapture": "(stream)",
    "cuStreamBeginCapture_ptsz": "(stream)",
    "cuStreamBeginCapture_v2": "(stream, 2)",
    "cuStreamBeginCapture_v2_ptsz": "(stream, 2)",
    "cuStreamBeginCaptureToGraph": "(stream, new_graph(), None, None, c_size_t(0), 2)",
    "cuStreamBeginCaptureToGraph_ptsz": "(stream, new_graph(), None, None, c_size_t(0), 2)",
}


@pytest.mark.parametrize("begin", BEGINNINGS)
@pytest.mark.parametrize("end", ["cuStreamEndCapture", "cuStreamEndCapture_ptsz"])
def test_captured_allocations_are_charged_when_their_graph_is_launched(
    begin: str, end: str, machine: "Machine"
) -> None:
    machine.share(64 * MIB)
    machine.run(f"""
start()
stream = c_void_p()
check(cuda.cuStreamCreate(byref(stream), 1))
def capture(size):
    pointer, graph = Pointer(), c_void_p()
    check(cuda.{begin}{BEGINNINGS[begin]})
    check(cuda.cuMemAllocAsync(byref(pointer), c_size_t(size), stream))
    check(cuda.cuMemFreeAsync_ptsz(pointer, stream))
    check(cuda.{end}(stream, byref(graph)))
    return instantiate(graph)
small, big = capture({40 * MIB}), capture({80 * MIB})
assert info()[0] == {64 * MIB}, info()
assert cuda.cuGraphLaunch(big, stream) == OUT_OF_MEMORY
check(cuda.cuGraphLaunch_ptsz(small, stream))
synchronize()
assert info()[0] == {24 * MIB}, info()
check(cuda.cuMemAllocAsync(byref(Pointer()), c_size_t({60 * MIB}), stream))  # captured no longer: charged now
assert info()[0] == {4 * MIB}, info()
""")
    assert read_card(machine.card).peak_bytes == 60 * MIB


def test_launches_of_a_graphs_clone_are_paid(machine: "Machine") -> None:
    share = machine.share(64 * MIB)
    machine.run("""
start()
stream, graph, clone, spin = c_void_p(), c_void_p(), c_void_p(), kernel()
check(cuda.cuStreamCreate(byref(stream), 1))
check(cuda.cuStreamBeginCapture_v2(stream, 2))
launch(spin, 5_000_000, stream)
check(cuda.cuStreamEndCapture(stream, byref(graph)))
check(cuda.cuGraphClone(byref(clone), graph))
check(cuda.cuGraphDestroy(graph))
for _ in range(2):  # instantiated again
    executable = instantiate(clone)
    for _ in range(8):
        check(cuda.cuGraphLaunch(executable, stream))
    check(cuda.cuStreamSynchronize(stream))
    check(cuda.cuGraphExecDestroy(executable))
""")
    held_ns = read_card(machine.card).gpu_time_ns
    assert held_ns == 16 * 5_000_000
    assert read_books(share).gpu_time_ns >= held_ns // 2


@pytest.mark.parametrize("version", ["", "_v2"])
def test_memory_bound_by_its_address_stays_charged_when_mapping_and_handle_are_gone(
    version: str, machine: "Machine"
) -> None:
    share = machine.share(64 * MIB)
    machine.run(f"""
start()
size, zero, place = c_size_t({40 * MIB}), c_ulonglong(0), Pointer()
group, memory, device = multicast({40 * MIB}), create({40 * MIB}), {"(0,)" if version else "()"}
check(cuda.cuMemAddressReserve(byref(place), size, c_size_t(0), Pointer(0), zero))
check(cuda.cuMemMap(place, size, c_size_t(0), memory, zero))
check(cuda.cuMemSetAccess(place, size, (c_int * 3)(1, 0, 3), c_size_t(1)))
check(cuda.cuMulticastBindAddr{version}(group, *device, zero, place, size, zero))
check(cuda.cuMemUnmap(place, size))
check(cuda.cuMemRelease(memory))
assert info()[0] == {24 * MIB}, info()
check(cuda.cuMulticastUnbind(group, 0, zero, size))
assert info()[0] == {64 * MIB}, info()
""")
    assert read_books(share).used_bytes == 0


ELSEWHERE = """
import threading

class Between(ctypes.Structure):
    _fields_ = [("function", ctypes.c_char_p), ("before", ctypes.CFUNCTYPE(None)), ("after", ctypes.CFUNCTYPE(None))]

context, captured, stream, graph = start(), c_void_p(), c_void_p(), c_void_p()
check(cuda.cuStreamCreate(byref(captured), 1))
check(cuda.cuStreamCreate(byref(stream), 1))

def elsewhere(function, *arguments):
    def call():
        check(cuda.cuCtxSetCurrent(context))
        results.append(function(*arguments))
    results = []
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return results[0]
"""
"""A capture in the mode that forbids other threads to ask for events."""


def test_a_measurement_spoils_no_capture_that_another_thread_begins_meanwhile(machine: "Machine") -> None:
    machine.share(MIB)
    machine.run(
        ELSEWHERE
        + """
between = Between.in_dll(cuda, "vgpu_stub_between")

def begin():
    between.function = None
    check(elsewhere(cuda.cuStreamBeginCapture_v2, captured, 0))

launch(kernel(), 1000, stream)
between.before = ctypes.CFUNCTYPE(None)(begin)
between.function = b"cuEventQuery"
check(cuda.cuStreamSynchronize(stream))
assert between.function is None
check(elsewhere(cuda.cuStreamEndCapture, captured, byref(graph)))
"""
    )


def test_a_launch_of_a_graph_with_memory_spoils_no_capture_of_another_thread(machine: "Machine") -> None:
    machine.share(64 * MIB)
    machine.run(
        ELSEWHERE
        + f"""
pointer = Pointer()
check(cuda.cuStreamBeginCapture_v2(stream, 2))
check(cuda.cuMemAllocAsync(byref(pointer), c_size_t({MIB}), stream))
check(cuda.cuMemFreeAsync(pointer, stream))
check(cuda.cuStreamEndCapture(stream, byref(graph)))
executable = instantiate(graph)
check(cuda.cuGraphLaunch(executable, stream))
check(elsewhere(cuda.cuStreamBeginCapture_v2, captured, 0))
check(cuda.cuGraphLaunch(executable, stream))
check(elsewhere(cuda.cuStreamEndCapture, captured, byref(graph)))
"""
    )
