"""Stream-ordered memory: what pools hold of the card is charged, checked against the simulated card's own count."""

from typing import TYPE_CHECKING

import pytest

from libvgpu.shares import read_books
from libvgpu.stub import StubGPU, change_settings, create_driver_root, read_card

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20


def test_a_destroyed_pool_is_charged_for_its_chunks_until_its_last_allocation_is_freed(machine: "Machine") -> None:
    change_settings(machine.card, pool_chunk_bytes=32 * MIB)
    share = machine.share(100 * MIB)
    machine.run(f"""
start()
kept = []
for _ in range(3):
    pool = new_pool()
    kept.append(take_from(pool, 1024))
    check(cuda.cuMemPoolDestroy(pool))
assert info()[0] == {4 * MIB}, info()
assert try_from(new_pool(), 1024)[0] == OUT_OF_MEMORY
assert cuda.cuMemPoolDestroy(pool) == 1
assert try_from(pool, 1024)[0] == 1
for pointer in kept:
    check(cuda.cuMemFreeAsync(pointer, None))
synchronize()
assert info()[0] == {100 * MIB}, info()
""")
    assert read_card(machine.card).peak_bytes == 96 * MIB
    assert read_books(share).used_bytes == 0


def test_a_destroyed_pool_is_charged_until_the_stream_has_reached_the_free(machine: "Machine") -> None:
    machine.share(64 * MIB)
    machine.run(f"""
start()
stream, spin = new_stream(), kernel()
pool = new_pool()
pointer = take_from(pool, {40 * MIB}, stream)
launch(spin, 400_000_000, stream)
check(cuda.cuMemFreeAsync(pointer, stream))
check(cuda.cuMemPoolDestroy(pool))
assert try_alloc({40 * MIB})[0] == OUT_OF_MEMORY
check(cuda.cuStreamSynchronize(stream))
alloc({40 * MIB})
""")
    assert read_card(machine.card).peak_bytes == 40 * MIB


def test_the_pool_that_a_device_uses_can_be_destroyed_while_memory_of_it_is_in_use(machine: "Machine") -> None:
    share = machine.share(64 * MIB)
    machine.run(f"""
start()
pool, now, own, pointer = new_pool(), c_void_p(), c_void_p(), Pointer()
check(cuda.cuDeviceSetMemPool(0, pool))
first = take_from(pool, {8 * MIB})
check(cuda.cuMemPoolDestroy(pool))
check(cuda.cuDeviceGetMemPool(byref(now), 0))
check(cuda.cuDeviceGetDefaultMemPool(byref(own), 0))
assert now.value == own.value
assert cuda.cuMemPoolDestroy(own) == 1
check(cuda.cuMemAllocAsync(byref(pointer), c_size_t({8 * MIB}), None))
assert info()[0] == {48 * MIB}, info()
check(cuda.cuMemFreeAsync(pointer, None))
free(first)
synchronize()
assert info()[0] == {64 * MIB}, info()
""")
    assert read_books(share).used_bytes == 0


def test_a_destroyed_pool_of_which_memory_is_in_use_is_no_pool_any_more(machine: "Machine") -> None:
    machine.share(64 * MIB)
    machine.run(f"""
start()
INVALID_VALUE, value, flags, pool = 1, c_ulonglong(), c_int(), new_pool()
kept = take_from(pool, {8 * MIB})
CALLS = (
    lambda: cuda.cuMemPoolGetAttribute(pool, 5, byref(value)),
    lambda: cuda.cuMemPoolSetAttribute(pool, 4, byref(value)),
    lambda: cuda.cuMemPoolGetAccess(byref(flags), pool, (c_int * 2)(1, 0)),
    lambda: cuda.cuMemPoolSetAccess(pool, (c_int * 3)(1, 0, 3), c_size_t(1)),
    lambda: cuda.cuMemPoolTrimTo(pool, c_size_t(0)),
    lambda: cuda.cuDeviceSetMemPool(0, pool),
)
assert [call() for call in CALLS] == [SUCCESS] * 6
check(cuda.cuMemPoolDestroy(pool))
assert [call() for call in CALLS] == [INVALID_VALUE] * 6
check(cuda.cuMemAllocAsync(byref(Pointer()), c_size_t({8 * MIB}), None))
""")


def test_stream_ordered_memory_is_charged_to_the_device_of_its_stream(machine: "Machine") -> None:
    cards = [StubGPU(f"Stub {i}", 1 << 30, f"GPU-00000000-0000-4000-8000-00000000000{i}") for i in (1, 2)]
    create_driver_root(machine.root, cards)
    machine.share(512 * MIB, name="first", device_uuid=cards[0].uuid)
    second = machine.share(64 * MIB, name="second", device_uuid=cards[1].uuid)
    machine.run(f"""
start(1)
stream = new_stream()
start(0)
pointer = Pointer()
for allocate in (cuda.cuMemAllocAsync, cuda.cuMemAllocAsync_ptsz):
    assert allocate(byref(Pointer()), c_size_t({100 * MIB}), stream) == OUT_OF_MEMORY
    check(allocate(byref(pointer), c_size_t({60 * MIB}), stream))
    assert info()[0] == {512 * MIB}, info()
    check(cuda.cuMemFreeAsync(pointer, stream))
    check(cuda.cuStreamSynchronize(stream))
""")
    assert [read_card(machine.root / "dev" / f"nvidia{i}").peak_bytes for i in (0, 1)] == [0, 60 * MIB]
    assert read_books(second).used_bytes == 0


@pytest.mark.parametrize("stream_of", [0, 1])
def test_memory_of_a_graph_is_charged_to_the_device_of_its_nodes(stream_of: int, machine: "Machine") -> None:
    cards = [StubGPU(f"Stub {i}", 1 << 30, f"GPU-00000000-0000-4000-8000-00000000000{i}") for i in (1, 2)]
    create_driver_root(machine.root, cards)
    first = machine.share(100 * MIB, name="first", device_uuid=cards[0].uuid)
    second = machine.share(100 * MIB, name="second", device_uuid=cards[1].uuid)
    machine.run(f"""
contexts = [start(0), start(1)]

def add_nodes(graph):
    for device, size in ((0, 10), (1, 40)):
        check(cuda.cuCtxSetCurrent(contexts[device]))
        parameters = (c_ulonglong * 16)()
        (c_int * 5).from_buffer(parameters)[:] = (1, 0, 1, device, 0)  # pinned, without handles, of the device
        parameters[13] = size * {MIB}
        check(cuda.cuGraphAddMemAllocNode(byref(c_void_p()), graph, None, c_size_t(0), parameters))

def new_graph():
    graph, executable = c_void_p(), c_void_p()
    check(cuda.cuGraphCreate(byref(graph), 0))
    add_nodes(graph)
    check(cuda.cuGraphInstantiateWithFlags(byref(executable), graph, c_ulonglong(0)))
    return executable

check(cuda.cuCtxSetCurrent(contexts[{stream_of}]))
stream = new_stream()
graphs = [new_graph() for _ in range(3)]
check(cuda.cuCtxSetCurrent(contexts[0]))
check(cuda.cuGraphUpload(graphs[0], stream))
check(cuda.cuGraphLaunch(graphs[0], stream))
check(cuda.cuGraphLaunch(graphs[1], stream))
assert cuda.cuGraphLaunch(graphs[2], stream) == OUT_OF_MEMORY
assert cuda.cuGraphUpload(graphs[2], stream) == OUT_OF_MEMORY
check(cuda.cuCtxSynchronize())
assert info()[0] == {80 * MIB}, info()
check(cuda.cuCtxSetCurrent(contexts[1]))
assert info()[0] == {20 * MIB}, info()
""")
    assert [read_card(machine.root / "dev" / f"nvidia{i}").peak_bytes for i in (0, 1)] == [20 * MIB, 80 * MIB]
    assert [read_books(share).used_bytes for share in (first, second)] == [0, 0]


def test_what_is_trimmed_of_pools_and_of_graphs_comes_back(machine: "Machine") -> None:
    machine.share(64 * MIB)
    machine.run(f"""
start()
pool, threshold = new_pool(), c_ulonglong({64 * MIB})
check(cuda.cuMemPoolSetAttribute(pool, 4, byref(threshold)))
check(cuda.cuMemFreeAsync(take_from(pool, {40 * MIB}), None))
synchronize()
assert used() == {40 * MIB}, used()
check(cuda.cuMemPoolTrimTo(pool, c_size_t(0)))
assert used() == 0, used()

graph, executable, pointer, stream = c_void_p(), c_void_p(), Pointer(), new_stream()
check(cuda.cuStreamBeginCapture_v2(stream, 2))
check(cuda.cuMemAllocAsync(byref(pointer), c_size_t({30 * MIB}), stream))
check(cuda.cuMemFreeAsync(pointer, stream))
check(cuda.cuStreamEndCapture(stream, byref(graph)))
check(cuda.cuGraphInstantiateWithFlags(byref(executable), graph, c_ulonglong(0)))
check(cuda.cuGraphLaunch(executable, stream))
check(cuda.cuStreamSynchronize(stream))
assert used() == {30 * MIB}, used()
check(cuda.cuDeviceGraphMemTrim(0))
assert used() == 0, used()
""")


def test_graphs_that_took_turns_do_not_exceed_the_share_when_they_run_at_once(machine: "Machine") -> None:
    share = machine.share(64 * MIB)
    machine.run(f"""
start()
one, other, spin = new_stream(), new_stream(), kernel()

def new_graph():
    pointer, graph, executable = Pointer(), c_void_p(), c_void_p()
    check(cuda.cuStreamBeginCapture_v2(one, 2))
    check(cuda.cuMemAllocAsync(byref(pointer), c_size_t({40 * MIB}), one))
    launch(spin, 400_000_000, one)
    check(cuda.cuMemFreeAsync(pointer, one))
    check(cuda.cuStreamEndCapture(one, byref(graph)))
    check(cuda.cuGraphInstantiateWithFlags(byref(executable), graph, c_ulonglong(0)))
    return executable

first, second = new_graph(), new_graph()
for graph in (first, second):
    check(cuda.cuGraphLaunch(graph, one))
    synchronize()
for graph in (first, second):  # on one stream they follow each other
    check(cuda.cuGraphLaunch(graph, one))
synchronize()
check(cuda.cuGraphLaunch(first, one))
assert cuda.cuGraphLaunch(second, other) == OUT_OF_MEMORY
synchronize()
check(cuda.cuGraphLaunch(second, other))
synchronize()
""")
    assert read_card(machine.card).peak_bytes == 40 * MIB
    assert read_books(share).used_bytes == 0
