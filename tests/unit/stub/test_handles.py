"""Handles come again as soon as what had them is destroyed, the last one first; before, they are an error."""

import pytest

from tests.unit.stub.conftest import Machine, MakeMachine

SETUP = """
gpu = Driver()
PTX = KERNELS.read_bytes() + b"\\0"
ARRAY = (c_uint64 * 5)(16, 16, 0, 0x0100000001, 0)
def create(function, *arguments):
    return lambda: gpu.create(function, *arguments)
def context():
    made = gpu.create("cuCtxCreate_v2", c_uint(0), c_int(0))
    gpu.cuCtxPopCurrent_v2(byref(c_void_p()))
    return made
def node():
    return gpu.create("cuGraphAddEmptyNode", graph, None, 0)
def external():
    fd = os.memfd_create("memory")
    os.ftruncate(fd, 4096)
    return gpu.create("cuImportExternalMemory", (c_uint64 * 13)(1, fd, 0, 4096))
def linker():
    made = c_void_p()
    gpu.cuLinkCreate_v2(c_uint(0), None, None, byref(made))
    return made
graph = gpu.create("cuGraphCreate", c_uint(0))
def code_of(function, *arguments):
    try:
        getattr(gpu, function)(*arguments)
    except CudaError as error:
        return error.code
    return 0
"""
KINDS = {
    "context": ("context", "cuCtxDestroy_v2", "cuCtxPushCurrent_v2", 709),
    "green context": (
        "create('cuGreenCtxCreate', create_string_buffer(8), c_int(0), c_uint(1))",
        "cuGreenCtxDestroy",
        "cuGreenCtxDestroy",
        1,
    ),
    "stream": ("create('cuStreamCreate', c_uint(1))", "cuStreamDestroy_v2", "cuStreamQuery", 400),
    "event": ("create('cuEventCreate', c_uint(0))", "cuEventDestroy_v2", "cuEventQuery", 400),
    "module": ("create('cuModuleLoadData', PTX)", "cuModuleUnload", "cuModuleUnload", 400),
    "library": (
        "create('cuLibraryLoadData', PTX, None, None, 0, None, None, 0)",
        "cuLibraryUnload",
        "cuLibraryUnload",
        400,
    ),
    "linker": ("linker", "cuLinkDestroy", "cuLinkDestroy", 400),
    "graph": ("create('cuGraphCreate', c_uint(0))", "cuGraphDestroy", "cuGraphDestroy", 1),
    "node": ("node", "cuGraphDestroyNode", "cuGraphDestroyNode", 1),
    "executable graph": (
        "create('cuGraphInstantiateWithFlags', graph, 0)",
        "cuGraphExecDestroy",
        "cuGraphExecDestroy",
        1,
    ),
    "pool": ("create('cuMemPoolCreate', (c_int * 22)(1, 0, 1, 0))", "cuMemPoolDestroy", "cuMemPoolDestroy", 1),
    "array": ("create('cuArray3DCreate_v2', ARRAY)", "cuArrayDestroy", "cuArrayDestroy", 400),
    "mipmapped array": (
        "create('cuMipmappedArrayCreate', ARRAY, c_uint(2))",
        "cuMipmappedArrayDestroy",
        "cuMipmappedArrayDestroy",
        400,
    ),
    "memory": ("create('cuMemCreate', 2 * MIB, (c_int * 8)(1, 0, 1, 0), 0)", "cuMemRelease", "cuMemRelease", 1),
    "external memory": ("external", "cuDestroyExternalMemory", "cuDestroyExternalMemory", 400),
}
"""How a thing is made, how it is destroyed, and what answers with which error then."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_destroyed_handle_is_an_error_and_comes_again(machine: Machine, kind: str) -> None:
    make, destroy, ask, error = KINDS[kind]
    said = machine.run(
        SETUP
        + f"""
make = {make}
others, first, second = make(), make(), make()
gpu.{destroy}(first)
gpu.{destroy}(second)
say(error=code_of("{ask}", first), again=[make().value, make().value] == [second.value, first.value])
"""
    )
    assert said == {"error": error, "again": True}


def test_what_a_context_has_ends_with_it_and_comes_again_on_another_card(make_machine: MakeMachine) -> None:
    said = make_machine(1 << 30, 1 << 30).run(
        SETUP
        + """
def on(device):
    own = gpu.create("cuCtxCreate_v2", c_uint(0), c_int(device))
    return own, [create(*what)() for what in (
        ("cuStreamCreate", c_uint(1)), ("cuEventCreate", c_uint(0)), ("cuModuleLoadData", PTX),
        ("cuArray3DCreate_v2", ARRAY))] + [c_void_p(gpu.alloc(1 << 20))]
first, had = on(0)
gpu.cuCtxDestroy_v2(first)
errors = [code_of(ask, one) for ask, one in zip(
    ("cuStreamQuery", "cuEventQuery", "cuModuleUnload", "cuArrayDestroy", "cuMemFree_v2"), had)]
second, has = on(1)
device = c_int()
gpu.cuCtxGetDevice(byref(device))
say(errors=errors, device=device.value, again=[second.value == first.value] + [
    one.value == other.value for one, other in zip(had, has)])
"""
    )
    assert said == {"errors": [400, 400, 400, 400, 1], "device": 1, "again": [True] * 6}


def test_a_thread_has_no_context_where_its_own_was_destroyed_and_another_got_the_handle(machine: Machine) -> None:
    said = machine.run(
        SETUP
        + """
import threading
first = context()
def use():
    gpu.cuCtxSetCurrent(first)
    turn.wait(); turn.wait()
    codes.append(code_of("cuCtxGetDevice", byref(c_int())))
    gpu.cuCtxSetCurrent(second)
    codes.append(code_of("cuCtxGetDevice", byref(c_int())))
turn, codes = threading.Barrier(2), []
thread = threading.Thread(target=use, daemon=True)
thread.start()
turn.wait()
gpu.cuCtxDestroy_v2(first)
second = context()
turn.wait()
thread.join()
say(codes=codes, again=first.value == second.value)
"""
    )
    assert said == {"codes": [709, 0], "again": True}


def test_whoever_waits_for_a_context_does_not_wait_for_a_stream_that_came_again_meanwhile(machine: Machine) -> None:
    said = machine.run(
        SETUP
        + """
import threading
spin = gpu.kernel("spin")
first, other = (gpu.create("cuStreamCreate", c_uint(1)) for _ in range(2))
for _ in range(5):
    gpu.launch(spin, 20_000_000, first)
def wait():
    gpu.cuCtxSetCurrent(gpu.context)
    gpu.cuCtxSynchronize()
thread = threading.Thread(target=wait, daemon=True)
thread.start()
gpu.cuStreamDestroy_v2(first)
second = gpu.create("cuStreamCreate", c_uint(1))
thread.join(30)
say(waits=thread.is_alive(), again=first.value == second.value)
"""
    )
    assert said == {"waits": False, "again": True}
