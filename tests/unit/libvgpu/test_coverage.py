"""Rarer ways to take and to keep memory: each is charged, checked against what the simulated card itself counted."""

from typing import TYPE_CHECKING

from libvgpu.shares import read_books
from libvgpu.stub import read_card

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20


def test_arrays_of_the_oldest_calls_are_charged(machine: "Machine") -> None:
    machine.share(64 * MIB)
    machine.run(f"""
        start()
        array = c_void_p()
        flat = (c_uint * 4)({MIB}, 48, 1, 1)
        check(cuda.cuArrayCreate(byref(array), flat))
        assert info()[0] == {16 * MIB}, info()
        assert cuda.cuArrayCreate(byref(c_void_p()), flat) == OUT_OF_MEMORY
        check(cuda.cuArrayDestroy(array))
        deep = (c_uint * 6)({MIB}, 12, 4, 1, 1, 0)
        check(cuda.cuArray3DCreate(byref(array), deep))
        assert info()[0] == {16 * MIB}, info()
        assert cuda.cuArray3DCreate(byref(c_void_p()), deep) == OUT_OF_MEMORY
    """)
    assert read_card(machine.card).peak_bytes == 48 * MIB


def test_memory_bound_to_a_multicast_object_stays_charged_after_its_handle_is_released(machine: "Machine") -> None:
    share = machine.share(64 * MIB)
    machine.run(f"""
start()
zero = c_ulonglong(0)
for bind in (
    lambda group, memory: cuda.cuMulticastBindMem(group, zero, memory, zero, c_size_t({40 * MIB}), zero),
    lambda group, memory: cuda.cuMulticastBindMem_v2(group, 0, zero, memory, zero, c_size_t({40 * MIB}), zero),
):
    group, memory = multicast({40 * MIB}), create({40 * MIB})
    check(bind(group, memory))
    check(cuda.cuMemRelease(memory))
    assert info()[0] == {24 * MIB}, info()
    check(cuda.cuMulticastUnbind(group, 0, zero, c_size_t({40 * MIB})))
    assert info()[0] == {64 * MIB}, info()
    memory = create({40 * MIB})
    check(bind(group, memory))
    check(cuda.cuMemRelease(memory))
    check(cuda.cuMemRelease(group))  # the end of the object ends its bindings
    assert info()[0] == {64 * MIB}, info()
""")
    assert read_books(share).used_bytes == 0


def test_memory_nodes_of_a_graph_inside_a_graph_are_charged(machine: "Machine") -> None:
    machine.share(64 * MIB)
    machine.run(f"""
start()
def nested(size):
    child, parent, node = new_graph(), new_graph(), c_void_p()
    memory_node(child, size)
    params = (ctypes.c_char * 256)()
    c_int.from_buffer(params).value = 4  # a child graph...
    c_void_p.from_buffer(params, 16).value = child.value
    c_int.from_buffer(params, 24).value = 1  # ...that moves into its parent
    check(cuda.cuGraphAddNode_v2(byref(node), parent, None, None, c_size_t(0), params))
    return instantiate(parent)

assert cuda.cuGraphLaunch(nested({80 * MIB}), None) == OUT_OF_MEMORY
check(cuda.cuGraphLaunch(nested({40 * MIB}), None))
synchronize()
assert info()[0] == {24 * MIB}, info()
""")
    assert read_card(machine.card).peak_bytes == 40 * MIB


def test_uploading_a_graph_takes_its_memory_within_the_share(machine: "Machine") -> None:
    machine.share(64 * MIB)
    machine.run(f"""
start()
big, small = new_graph(), new_graph()
memory_node(big, {80 * MIB})
memory_node(small, {40 * MIB})
for upload in (cuda.cuGraphUpload, cuda.cuGraphUpload_ptsz):
    result = upload(instantiate(big), None); assert result == OUT_OF_MEMORY, result
    check(upload(instantiate(small), None))
    assert info()[0] == {24 * MIB}, info()
check(cuda.cuDeviceGraphMemTrim(0))
assert info()[0] == {64 * MIB}, info()
""")
    assert read_card(machine.card).peak_bytes == 40 * MIB


def test_an_updated_graph_is_charged_for_what_it_is_now(machine: "Machine") -> None:
    machine.share(64 * MIB)
    machine.run(f"""
start()
small, big = new_graph(), new_graph()
memory_node(small, {8 * MIB})
memory_node(big, {80 * MIB})
executable = instantiate(small)
check(cuda.cuGraphExecUpdate_v2(executable, big, (c_void_p * 3)()))
assert cuda.cuGraphLaunch(executable, None) == OUT_OF_MEMORY
check(cuda.cuGraphExecUpdate(executable, small, None, byref(c_int())))
check(cuda.cuGraphLaunch(executable, None))
""")
    assert read_card(machine.card).peak_bytes == 8 * MIB


def test_what_is_captured_into_a_graph_that_there_is_already_is_charged_at_its_launch(machine: "Machine") -> None:
    machine.share(64 * MIB)
    machine.run(f"""
start()
stream, graph, pointer = c_void_p(), new_graph(), Pointer()
check(cuda.cuStreamCreate(byref(stream), 1))
check(cuda.cuStreamBeginCaptureToGraph(stream, graph, None, None, c_size_t(0), 2))
check(cuda.cuMemAllocAsync(byref(pointer), c_size_t({40 * MIB}), stream))
check(cuda.cuMemFreeAsync(pointer, stream))
check(cuda.cuStreamEndCapture(stream, byref(graph)))
assert info()[0] == {64 * MIB}, info()
check(cuda.cuGraphLaunch(instantiate(graph), stream))
synchronize()
assert info()[0] == {24 * MIB}, info()
""")
    assert read_card(machine.card).peak_bytes == 40 * MIB


def test_the_last_detach_of_a_context_frees_what_was_allocated_in_it(machine: "Machine") -> None:
    machine.share(64 * MIB)
    machine.run(f"""
        start()
        context = c_void_p()
        check(cuda.cuCtxCreate_v2(byref(context), 0, 0))
        check(cuda.cuCtxAttach(byref(context), 0))
        alloc({40 * MIB})
        check(cuda.cuCtxDetach(context))
        assert info()[0] == {24 * MIB}, info()
        check(cuda.cuCtxDetach(context))
        start()
        assert info()[0] == {64 * MIB}, info()
    """)


def test_what_is_allocated_in_a_green_context_outlives_it(machine: "Machine") -> None:
    share = machine.share(64 * MIB)
    machine.run(f"""
        check(cuda.cuInit(0))
        green, context = c_void_p(), c_void_p()
        description = ctypes.create_string_buffer(8)
        check(cuda.cuGreenCtxCreate(byref(green), description, 0, 1))
        start()
        check(cuda.cuCtxFromGreenCtx(byref(context), green))
        check(cuda.cuCtxSetCurrent(context))
        alloc({40 * MIB})
        check(cuda.cuGreenCtxDestroy(green))
        start()
        assert info()[0] == {24 * MIB}, info()
        check(cuda.cuDevicePrimaryCtxReset_v2(0))
        start()
        assert info()[0] == {64 * MIB}, info()
    """)
    assert read_books(share).used_bytes == 0


def test_a_green_context_on_a_device_without_a_share_is_refused(machine: "Machine") -> None:
    machine.share(MIB, device_uuid="GPU-99999999-0000-4000-8000-000000000009")
    output, _ = machine.refused(
        "check(cuda.cuInit(0)); print(cuda.cuGreenCtxCreate(byref(c_void_p()), ctypes.create_string_buffer(8), 0, 1))"
    )
    assert output == "800\n"


def test_what_could_not_be_counted_is_refused(machine: "Machine") -> None:
    machine.share(MIB)
    output = machine.run("""
        start()
        zero = c_ulonglong(0)
        print(
            cuda.cuMemMapArrayAsync(None, 1, None),
            cuda.cuMemMapArrayAsync_ptsz(None, 1, None),
            cuda.cuStreamBeginCaptureToCig(None, None),
            cuda.cuStreamBeginCaptureToCig_ptsz(None, None),
            cuda.cuLogicalEndpointBindMem(1, 0, zero, zero, zero, zero, zero),
            cuda.cuLogicalEndpointBindAddr(1, 0, zero, None, zero, zero),
        )
    """)
    assert output == "801 801 801 801 801 801\n"


def test_memory_mapped_twice_stays_charged_until_both_mappings_are_gone(machine: "Machine") -> None:
    share = machine.share(64 * MIB)
    machine.run(f"""
start()
size, zero = c_size_t({40 * MIB}), c_ulonglong(0)
memory, places = create({40 * MIB}), [Pointer(), Pointer()]
for place in places:
    check(cuda.cuMemAddressReserve(byref(place), size, c_size_t(0), Pointer(0), zero))
    check(cuda.cuMemMap(place, size, c_size_t(0), memory, zero))
check(cuda.cuMemRelease(memory))
check(cuda.cuMemUnmap(places[0], size))
assert info()[0] == {24 * MIB}, info()
assert try_alloc({25 * MIB})[0] == OUT_OF_MEMORY
check(cuda.cuMemUnmap(places[1], size))
assert info()[0] == {64 * MIB}, info()
""")
    assert read_card(machine.card).peak_bytes == 40 * MIB
    assert read_books(share).used_bytes == 0


def test_a_graph_is_charged_in_every_way_of_instantiating_it_again(machine: "Machine") -> None:
    machine.share(64 * MIB)
    machine.run(f"""
start()
small, big = new_graph(), new_graph()
memory_node(small, {40 * MIB})
memory_node(big, {80 * MIB})
parameters = (c_ulonglong * 4)()
ways = (
    lambda made, graph: cuda.cuGraphInstantiate(made, graph, None, None, c_size_t(0)),
    lambda made, graph: cuda.cuGraphInstantiate_v2(made, graph, None, None, c_size_t(0)),
    lambda made, graph: cuda.cuGraphInstantiateWithFlags(made, graph, c_ulonglong(0)),
    lambda made, graph: cuda.cuGraphInstantiateWithParams(made, graph, parameters),
    lambda made, graph: cuda.cuGraphInstantiateWithParams_ptsz(made, graph, parameters),
)
for graph, result in ((big, OUT_OF_MEMORY), (small, SUCCESS)):
    assert cuda.cuGraphClone(byref(c_void_p()), graph) == NOT_SUPPORTED  # as of any graph with memory nodes
    for way in ways:
        executable = c_void_p()
        check(way(byref(executable), graph))
        assert cuda.cuGraphLaunch(executable, None) == result
        synchronize()
        check(cuda.cuGraphExecDestroy(executable))
""")
    assert read_card(machine.card).peak_bytes == 40 * MIB
