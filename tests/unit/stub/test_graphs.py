"""Graphs and stream capture of the stub driver."""

from tests.unit.stub.conftest import Machine

MS = 1_000_000
CAPTURE = """
gpu = Driver()
spin = gpu.kernel("spin")
stream, side = (gpu.create("cuStreamCreate", c_uint(1)) for _ in range(2))
def begin():
    gpu.cuStreamBeginCapture_v2(stream, c_int(0))
def end():
    graph = c_void_p()
    gpu.cuStreamEndCapture(stream, byref(graph))
    return graph
def instantiate(graph):
    return gpu.create("cuGraphInstantiateWithFlags", graph, 0)
def nodes(graph):
    count = c_size_t()
    gpu.cuGraphGetNodes(graph, None, byref(count))
    return count.value
"""


def test_captured_work_runs_only_when_its_graph_is_launched(machine: Machine) -> None:
    said = machine.run(
        CAPTURE
        + """
data = gpu.alloc(4)
gpu.cuMemsetD32_v2(data, c_uint(1), 1)
begin()
gpu.launch(spin, 3_000_000, stream)
gpu.cuMemsetD32Async(data, c_uint(9), 1, stream)
graph = end()
before = gpu.read(data, 4)[0]
executable = instantiate(graph)
for _ in range(4):
    gpu.cuGraphLaunch(executable, stream)
gpu.cuStreamSynchronize(stream)
say(nodes=nodes(graph), before=before, after=gpu.read(data, 4)[0])
"""
    )
    assert said == {"nodes": 2, "before": 1, "after": 9}
    assert machine.card().gpu_time_ns == 4 * 3 * MS + 5 * 2_000  # fills of a word: as long as the shortest kernel


def test_a_second_stream_joins_a_capture_by_an_event_and_has_to_come_back(machine: Machine) -> None:
    said = machine.run(
        CAPTURE
        + """
fork, join = (gpu.create("cuEventCreate", c_uint(2)) for _ in range(2))
def fork_work():
    begin()
    gpu.cuEventRecord(fork, stream)
    gpu.cuStreamWaitEvent(side, fork, c_uint(0))
    gpu.launch(spin, 1000, stream)
    gpu.launch(spin, 1000, side)
fork_work()
gpu.cuEventRecord(join, side)
gpu.cuStreamWaitEvent(stream, join, c_uint(0))
joined = nodes(end())
fork_work()
try:
    end()
except CudaError as error:
    say(joined=joined, code=error.code)
"""
    )
    assert said == {"joined": 2, "code": 904}


def test_a_capturing_stream_cannot_be_waited_for(machine: Machine) -> None:
    said = machine.run(
        CAPTURE
        + """
codes = []
begin()
for call in (lambda: gpu.cuStreamSynchronize(stream), lambda: gpu.cuStreamQuery(stream), gpu.cuCtxSynchronize):
    try:
        call()
    except CudaError as error:
        codes.append(error.code)
end()
gpu.cuStreamSynchronize(stream)
say(codes=codes)
"""
    )
    assert said == {"codes": [900, 900, 900]}


def test_kernel_nodes_can_be_added_cloned_and_changed_after_instantiating(machine: Machine) -> None:
    machine.run(
        CAPTURE
        + """
class Node(ctypes.Structure):
    _fields_ = [("function", c_void_p), ("grid", c_uint * 3), ("block", c_uint * 3), ("shared", c_uint),
                ("params", c_void_p), ("extra", c_void_p)]
def params(nanoseconds):
    value = c_uint64(nanoseconds)
    pointers = (c_void_p * 1)(ctypes.addressof(value))
    node = Node(spin, (c_uint * 3)(1, 1, 1), (c_uint * 3)(1, 1, 1), 0, ctypes.addressof(pointers), None)
    node.keep = value, pointers
    return node
graph = gpu.create("cuGraphCreate", c_uint(0))
first = gpu.create("cuGraphAddKernelNode", graph, None, 0, byref(params(1_000_000)))
second = gpu.create("cuGraphAddKernelNode", graph, byref(first), 1, byref(params(2_000_000)))
clone = c_void_p()
gpu.cuGraphClone(byref(clone), graph)
executable = instantiate(graph)
gpu.cuGraphExecKernelNodeSetParams(executable, second, byref(params(5_000_000)))
for one in (executable, instantiate(clone)):
    gpu.cuGraphLaunch(one, stream)
gpu.cuCtxSynchronize()
say(nodes=nodes(clone))
"""
    )
    assert machine.card().gpu_time_ns == (1 + 5) * MS + (1 + 2) * MS
