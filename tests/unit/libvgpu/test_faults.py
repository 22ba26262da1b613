"""Every driver call fails once, at each place where the library makes one: the books still say what the card holds.

A fault on "*" counts all calls of the driver, the library's own questions among them. So each hook is driven through
the failure of every call that it makes, one after the other.
"""

from typing import TYPE_CHECKING, Any

import pytest

from libvgpu.shares import read_books
from libvgpu.stub import change_settings

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
MOST_CALLS = 24
"""No scenario makes more calls of the driver than this in any one of its steps."""

DRIVE = """
import os, pathlib
from libvgpu.stub import clear_faults, inject_fault, read_card
from libvgpu.shares import read_books
CARD, SHARE = pathlib.Path("CARD_PATH"), pathlib.Path("SHARE_PATH")
held = []

def take(release, function, *arguments):
    # Returns whether it worked; what worked will be released.
    worked = function(*arguments) == SUCCESS
    if worked and release is not None:
        held.append(release)
    return worked

def exact():
    clear_faults(CARD)
    check(cuda.cuCtxSetCurrent(context))
    synchronize()
    info()  # pools that were synchronised give back
    used = read_books(SHARE).used_bytes
    mine = [process.memory_bytes for process in read_card(CARD).processes if process.pid == os.getpid()]
    assert used == sum(mine), (step, nth, used, mine)
    if not held:
        host_bytes = [process.host_bytes for process in read_card(CARD).processes if process.pid == os.getpid()]
        assert read_books(SHARE).host_bytes == sum(host_bytes) == 0
    return used

def release_all():
    # The first attempt may meet the fault; the second does not.
    while held:
        release = held.pop()
        if release() != SUCCESS:
            assert release() == SUCCESS, (step, nth)

context = start()
step, nth = "start", 0
at_rest = exact()
for nth in range(1, MOST_CALLS):
    for step in ("taking", "releasing"):
        if step == "taking":
            inject_fault(CARD, "*", nth, 999)
            use()
            exact()
            release_all()
        else:
            use()
            inject_fault(CARD, "*", nth, 999)
            release_all()
        clear_faults(CARD)
        after()
        assert exact() == at_rest, (step, nth, exact(), at_rest)
"""

PROP = "(c_int * 16)(1, 0, 1, 0)"
FREE = "lambda: cuda.cuMemFree_v2(p)"
GRAPH = """
def graph_of(size):
    stream, graph, executable, pointer = c_void_p(), c_void_p(), c_void_p(), Pointer()
    if not take(None, cuda.cuStreamCreate, byref(stream), 1):
        return None, None
    if cuda.cuStreamBeginCapture_v2(stream, 2) == SUCCESS:
        if cuda.cuMemAllocAsync(byref(pointer), c_size_t(size), stream) == SUCCESS:
            cuda.cuMemFreeAsync(pointer, stream) == SUCCESS or cuda.cuMemFreeAsync(pointer, stream)
        if cuda.cuStreamEndCapture(stream, byref(graph)) != SUCCESS:
            cuda.cuStreamEndCapture(stream, byref(graph))
    if graph.value is None or not take(
        lambda: cuda.cuGraphExecDestroy(executable), cuda.cuGraphInstantiateWithFlags, byref(executable), graph,
        c_ulonglong(0),
    ):
        return None, None
    return executable, stream
"""

SCENARIOS = {
    "memory": f"p = Pointer()\ntake({FREE}, cuda.cuMemAlloc_v2, byref(p), c_size_t(5 * MIB))",
    "managed": f"p = Pointer()\ntake({FREE}, cuda.cuMemAllocManaged, byref(p), c_size_t(5 * MIB), 1)",
    "pitched": (
        f"p = Pointer()\ntake({FREE}, cuda.cuMemAllocPitch_v2, byref(p), byref(c_size_t()), c_size_t(1000), "
        "c_size_t(1000), 4)"
    ),
    "array": (
        "p = c_void_p()\ntake(lambda: cuda.cuArrayDestroy(p), cuda.cuArrayCreate_v2, byref(p), "
        "(c_ulonglong * 3)(MIB, 4, 0x0100000001))"
    ),
    "mipmap": (
        "p = c_void_p()\ntake(lambda: cuda.cuMipmappedArrayDestroy(p), cuda.cuMipmappedArrayCreate, byref(p), "
        "(c_ulonglong * 5)(MIB, 4, 0, 0x0100000001, 0), 1)"
    ),
    "stream-ordered": (
        "p = Pointer()\ntake(lambda: cuda.cuMemFreeAsync(p, None), cuda.cuMemAllocAsync, byref(p), "
        "c_size_t(5 * MIB), None)"
    ),
    "pool": (
        "pool, p = c_void_p(), Pointer()\n"
        "if take(lambda: cuda.cuMemPoolDestroy(pool), cuda.cuMemPoolCreate, byref(pool), (c_int * 22)(1, 0, 1, 0)):\n"
        "    take(lambda: cuda.cuMemFreeAsync(p, None), cuda.cuMemAllocFromPoolAsync, byref(p), c_size_t(5 * MIB), "
        "pool, None)"
    ),
    "virtual memory": (
        "p, where = Pointer(), Pointer()\n"
        f"if take(lambda: cuda.cuMemRelease(p), cuda.cuMemCreate, byref(p), c_size_t(4 * MIB), {PROP}, "
        "c_ulonglong(0)) and take(\n"
        "    lambda: cuda.cuMemAddressFree(where, c_size_t(4 * MIB)), cuda.cuMemAddressReserve, byref(where), "
        "c_size_t(4 * MIB), c_size_t(0), Pointer(0), c_ulonglong(0)):\n"
        "    take(lambda: cuda.cuMemUnmap(where, c_size_t(4 * MIB)), cuda.cuMemMap, where, c_size_t(4 * MIB), "
        "c_size_t(0), p, c_ulonglong(0))"
    ),
    "retained handle": (
        "p, q, where, whole = Pointer(), Pointer(), Pointer(), c_size_t(4 * MIB)\n"
        f"if take(lambda: cuda.cuMemRelease(p), cuda.cuMemCreate, byref(p), whole, {PROP}, c_ulonglong(0)) and take(\n"
        "    lambda: cuda.cuMemAddressFree(where, whole), cuda.cuMemAddressReserve, byref(where), whole, "
        "c_size_t(0), Pointer(0), c_ulonglong(0)) and take(\n"
        "    lambda: cuda.cuMemUnmap(where, whole), cuda.cuMemMap, where, whole, c_size_t(0), p, c_ulonglong(0)):\n"
        "    take(lambda: cuda.cuMemRelease(q), cuda.cuMemRetainAllocationHandle, byref(q), where)"
    ),
    "multicast": (
        "p, group, zero, whole = Pointer(), Pointer(), c_ulonglong(0), c_size_t(4 * MIB)\n"
        "if take(lambda: cuda.cuMemRelease(group), cuda.cuMulticastCreate, byref(group), "
        "(c_ulonglong * 4)(1, 4 * MIB, 0, 0)) and take(\n"
        f"    lambda: cuda.cuMemRelease(p), cuda.cuMemCreate, byref(p), whole, {PROP}, zero):\n"
        "    take(lambda: cuda.cuMulticastUnbind(group, 0, zero, whole), cuda.cuMulticastBindMem, group, zero, p, "
        "zero, whole, zero)"
    ),
    "green context": (
        "g = c_void_p()\ntake(lambda: cuda.cuGreenCtxDestroy(g), cuda.cuGreenCtxCreate, byref(g), "
        "ctypes.create_string_buffer(8), 0, 1)"
    ),
    "oversubscribed": (
        f"p, q = Pointer(), Pointer()\ntake(lambda: cuda.cuMemFree_v2(q), cuda.cuMemAlloc_v2, byref(q), "
        f"c_size_t(100 * MIB))\ntake({FREE}, cuda.cuMemAlloc_v2, byref(p), c_size_t(90 * MIB))"
    ),
    "module without room": (
        'image = b".version 8.0\\n.target sm_80\\n.address_size 64\\n.visible .entry none() { ret; }\\n"\n'
        "p, m = Pointer(), c_void_p()\n"
        f"take({FREE}, cuda.cuMemAlloc_v2, byref(p), c_size_t(118 * MIB - 1000))\n"
        "take(lambda: cuda.cuModuleUnload(m), cuda.cuModuleLoadData, byref(m), image)"
    ),
    "pitch without room": (
        "p, q, size = Pointer(), Pointer(), 118 * MIB - 1100\n"
        f"take(lambda: cuda.cuMemFree_v2(q), cuda.cuMemAlloc_v2, byref(q), c_size_t(size))\n"
        f"take({FREE}, cuda.cuMemAllocPitch_v2, byref(p), byref(c_size_t()), c_size_t(100), c_size_t(10), 4)"
    ),
    "pool without room": (
        "p, q = Pointer(), Pointer()\n"
        "take(lambda: cuda.cuMemFree_v2(q), cuda.cuMemAlloc_v2, byref(q), c_size_t(116 * MIB))\n"
        "take(lambda: cuda.cuMemFreeAsync(p, None), cuda.cuMemAllocAsync, byref(p), c_size_t(5 * MIB), None)"
    ),
    "context": (
        "c = c_void_p()\ntake(lambda: cuda.cuCtxDestroy_v2(c), cuda.cuCtxCreate_v2, byref(c), 0, 0)\n"
        "p = Pointer()\ncuda.cuMemAlloc_v2(byref(p), c_size_t(5 * MIB)) if c.value else None"
    ),
    "module": (
        'image = b".version 8.0\\n.target sm_80\\n.address_size 64\\n.visible .entry none() { ret; }\\n"\n'
        "m = c_void_p()\ntake(lambda: cuda.cuModuleUnload(m), cuda.cuModuleLoadData, byref(m), image)"
    ),
    "heap": "take(lambda: cuda.cuCtxSetLimit(2, c_size_t(8 * MIB)), cuda.cuCtxSetLimit, 2, c_size_t(20 * MIB))",
    "graph": (
        "executable, stream = graph_of(5 * MIB)\n"
        "if executable is not None:\n"
        "    cuda.cuGraphUpload(executable, stream)\n"
        "    cuda.cuGraphLaunch(executable, stream)"
    ),
}
AFTER = {"graph": "check(cuda.cuDeviceGraphMemTrim(0))"}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_books_are_exact_whichever_call_of_the_driver_fails(name: str, machine: "Machine") -> None:
    host: dict[str, Any] = {"oversubscribe": True, "host_memory_bytes": 100 * MIB} if name == "oversubscribed" else {}
    share = machine.share(128 * MIB, **host)
    change_settings(machine.card, context_bytes=10 * MIB, module_bytes=MIB)
    use = "\n".join(f"    {line}" for line in SCENARIOS[name].splitlines())
    functions = f"MIB = {MIB}\nMOST_CALLS = {MOST_CALLS}\n{GRAPH}def use():\n{use}\n"
    functions += f"def after():\n    {AFTER.get(name, 'pass')}\n"
    machine.run(functions + DRIVE.replace("CARD_PATH", str(machine.card)).replace("SHARE_PATH", str(share)))
    assert (read_books(share).used_bytes, read_books(share).host_bytes) == (0, 0)
