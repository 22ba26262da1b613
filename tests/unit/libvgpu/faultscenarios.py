"""How each hooked function is used and what it took is released: the programs of test_faults.

A scenario is what one use does; it runs for each of its variants, whose name is `v` there: other versions of a
function, and its per-thread-default-stream twin. `take(release, function, *arguments)` calls a function and says
whether it worked; what worked is released later. A test compares the functions that are named here with hooks.def.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.unit.libvgpu.moves import MOVES, REFUSED, SETUP


@dataclass(frozen=True)
class Scenario:
    """One kind of use."""

    use: str
    variants: Sequence[str] = ("",)
    setup: str = "context = start()"
    """Leaves the context to return to in `context`."""
    after: str = "pass"
    """Gives back what the driver keeps for later."""
    limits: Mapping[str, Any] = field(default_factory=dict)

    @property
    def functions(self) -> set[str]:
        """The functions of the driver that it names."""
        return named("\n".join((self.use, self.setup, self.after, *self.variants)))


def named(text: str) -> set[str]:
    """Return the functions of the driver that a program names."""
    return set(re.findall(r"\bcu[A-Z]\w+", text))


HELPERS = """
import tempfile
PROP = (c_int * 16)(1, 0, 1, 0)
IMAGE = b".version 8.0\\n.target sm_80\\n.address_size 64\\n.visible .entry none() { ret; }\\n"
ZERO, NOWHERE = c_ulonglong(0), Pointer(0)

def fn(name):
    return getattr(cuda, name)

def image_file():
    file = tempfile.NamedTemporaryFile()
    file.write(IMAGE + b"\\0")
    file.flush()
    return file

def mapped(where, handle, size):
    # Reserves and maps; both are released later.
    size = c_size_t(size)
    return take(
        lambda: cuda.cuMemAddressFree(where, size), cuda.cuMemAddressReserve, byref(where), size, c_size_t(0), NOWHERE,
        ZERO,
    ) and take(lambda: cuda.cuMemUnmap(where, size), cuda.cuMemMap, where, size, c_size_t(0), handle, ZERO)

def created(handle, size):
    return take(lambda: cuda.cuMemRelease(handle), cuda.cuMemCreate, byref(handle), c_size_t(size), PROP, ZERO)

def new_stream(destroy="cuStreamDestroy_v2"):
    stream = c_void_p()
    take(lambda: fn(destroy)(stream), cuda.cuStreamCreate, byref(stream), 1)
    return stream

def captured(stream, size, begin=None, end="cuStreamEndCapture"):
    # A graph that allocates, and frees again.
    graph, pointer = c_void_p(), Pointer()
    begin = begin or (lambda: cuda.cuStreamBeginCapture_v2(stream, 2))
    if begin() == SUCCESS:
        if cuda.cuMemAllocAsync(byref(pointer), c_size_t(size), stream) == SUCCESS:
            cuda.cuMemFreeAsync(pointer, stream) == SUCCESS or cuda.cuMemFreeAsync(pointer, stream)
        if fn(end)(stream, byref(graph)) != SUCCESS:
            fn(end)(stream, byref(graph))
    return graph

def instantiated(graph, name="cuGraphInstantiateWithFlags", *more):
    executable = c_void_p()
    call = fn(name), byref(executable), graph, *(more or (ZERO,))
    done = graph.value is not None and take(lambda: cuda.cuGraphExecDestroy(executable), *call)
    return executable if done else None
"""

_FREE = "lambda: cuda.cuMemFree_v2(p)"
_TAKE = f"take({_FREE}, cuda.cuMemAlloc_v2, byref(p), c_size_t(%s))"
_OTHER = "take(lambda: cuda.cuMemFree_v2(q), cuda.cuMemAlloc_v2, byref(q), c_size_t(%s))"
_TRIM = "check(cuda.cuDeviceGraphMemTrim(0))"
_MOVES = {**REFUSED, **{name: arguments for kind in MOVES.values() for name, arguments in kind.items()}}
_CALLS = ", ".join(f"{name!r}: lambda: cuda.{name}({arguments})" for name, arguments in _MOVES.items())
_OVERSUBSCRIBE: dict[str, Any] = {"oversubscribe": True, "host_memory_bytes": 100 << 20}
_OLD = """
old = not v.endswith('_v2')
p, free = (c_uint if old else Pointer)(), fn('cuMemFree' if old else 'cuMemFree_v2')
"""

SCENARIOS = {
    "memory": Scenario(
        _OLD + "take(lambda: free(p), fn(v), byref(p), c_size_t(5 * MIB))", ("cuMemAlloc_v2", "cuMemAlloc")
    ),
    "pitched": Scenario(
        _OLD + "take(lambda: free(p), fn(v), byref(p), byref(c_size_t()), c_size_t(1000), c_size_t(1000), 4)",
        ("cuMemAllocPitch_v2", "cuMemAllocPitch"),
    ),
    "managed": Scenario(f"p = Pointer()\ntake({_FREE}, cuda.cuMemAllocManaged, byref(p), c_size_t(5 * MIB), 1)"),
    "array": Scenario(
        """
p = c_void_p()
description = {
    "cuArrayCreate": (c_uint * 4)(MIB, 4, 1, 1),
    "cuArrayCreate_v2": (c_ulonglong * 3)(MIB, 4, 0x0100000001),
    "cuArray3DCreate": (c_uint * 6)(MIB, 2, 2, 1, 1, 0),
    "cuArray3DCreate_v2": (c_ulonglong * 5)(MIB, 2, 2, 0x0100000001, 0),
}[v]
take(lambda: cuda.cuArrayDestroy(p), fn(v), byref(p), description)
""",
        ("cuArrayCreate", "cuArrayCreate_v2", "cuArray3DCreate", "cuArray3DCreate_v2"),
    ),
    "mipmap": Scenario(
        "p = c_void_p()\ntake(lambda: cuda.cuMipmappedArrayDestroy(p), cuda.cuMipmappedArrayCreate, byref(p), "
        "(c_ulonglong * 5)(MIB, 4, 0, 0x0100000001, 0), 1)"
    ),
    "stream-ordered": Scenario(
        "p, free = Pointer(), fn(v.replace('Alloc', 'Free'))\n"
        "take(lambda: free(p, None), fn(v), byref(p), c_size_t(5 * MIB), None)",
        ("cuMemAllocAsync", "cuMemAllocAsync_ptsz"),
    ),
    "pool": Scenario(
        """
pool, p = c_void_p(), Pointer()
free = cuda.cuMemFreeAsync_ptsz if v.endswith("_ptsz") else cuda.cuMemFreeAsync
if take(lambda: cuda.cuMemPoolDestroy(pool), cuda.cuMemPoolCreate, byref(pool), (c_int * 22)(1, 0, 1, 0)):
    take(lambda: free(p, None), fn(v), byref(p), c_size_t(5 * MIB), pool, None)
    cuda.cuMemPoolTrimTo(pool, c_size_t(0))
    value, access = c_ulonglong(), c_int()
    cuda.cuMemPoolGetAttribute(pool, 5, byref(value))
    cuda.cuMemPoolSetAttribute(pool, 4, byref(c_ulonglong()))
    cuda.cuMemPoolGetAccess(byref(access), pool, (c_int * 2)(1, 0))
    cuda.cuMemPoolSetAccess(pool, (c_int * 3)(1, 0, 3), c_size_t(1))
    cuda.cuDeviceSetMemPool(0, pool)
""",
        ("cuMemAllocFromPoolAsync", "cuMemAllocFromPoolAsync_ptsz"),
    ),
    "virtual memory": Scenario(
        "p, where = Pointer(), Pointer()\nif created(p, 4 * MIB): mapped(where, p, 4 * MIB)",
    ),
    "retained handle": Scenario(
        """
p, q, where = Pointer(), Pointer(), Pointer()
if created(p, 4 * MIB) and mapped(where, p, 4 * MIB):
    take(lambda: cuda.cuMemRelease(q), cuda.cuMemRetainAllocationHandle, byref(q), where)
"""
    ),
    "multicast": Scenario(
        """
p, group, where, whole = Pointer(), Pointer(), Pointer(), c_size_t(4 * MIB)
if take(lambda: cuda.cuMemRelease(group), cuda.cuMulticastCreate, byref(group), (c_ulonglong * 4)(1, 4 * MIB, 0, 0)):
    if created(p, 4 * MIB) and mapped(where, p, 4 * MIB):
        what = (where,) if "Addr" in v else (p, ZERO)
        device = (0,) if v.endswith("_v2") else ()
        take(lambda: cuda.cuMulticastUnbind(group, 0, ZERO, whole), fn(v), group, *device, ZERO, *what, whole, ZERO)
""",
        ("cuMulticastBindMem", "cuMulticastBindMem_v2", "cuMulticastBindAddr", "cuMulticastBindAddr_v2"),
    ),
    "green context": Scenario(
        "g = c_void_p()\ntake(lambda: cuda.cuGreenCtxDestroy(g), cuda.cuGreenCtxCreate, byref(g), "
        "ctypes.create_string_buffer(8), 0, 1)"
    ),
    "oversubscribed": Scenario(
        f"p, q = Pointer(), Pointer()\n{_OTHER % '100 * MIB'}\n{_TAKE % '90 * MIB'}", limits=_OVERSUBSCRIBE
    ),
    "stream-ordered, oversubscribed": Scenario(
        f"p, q = Pointer(), Pointer()\n{_OTHER % '100 * MIB'}\n"
        "take(lambda: cuda.cuMemFreeAsync(p, None), cuda.cuMemAllocAsync, byref(p), c_size_t(90 * MIB), None)",
        limits=_OVERSUBSCRIBE,
    ),
    "moved": Scenario(
        f"""
p, q, location, here = Pointer(), Pointer(), (c_int * 2)(1, 0), c_ulonglong(1)
if {_OTHER % "100 * MIB"} and take({_FREE}, cuda.cuMemAllocManaged, byref(p), c_size_t(90 * MIB), 1):
    arguments = {{"cuMemAdvise": (3, 0), "cuMemAdvise_v2": (3, here), "cuMemPrefetchAsync": (0, None),
        "cuMemPrefetchAsync_v2": (here, 0, None)}}.get(v.removesuffix("_ptsz"))
    if arguments is None:
        zero, one = (c_size_t * 1)(0), c_size_t(1)
        fn(v)((Pointer * 1)(p), (c_size_t * 1)(90 * MIB), one, location, zero, one, ZERO, None)
    else:
        fn(v)(p, c_size_t(90 * MIB), *arguments)
""",
        (
            "cuMemAdvise",
            "cuMemAdvise_v2",
            "cuMemPrefetchAsync",
            "cuMemPrefetchAsync_ptsz",
            "cuMemPrefetchAsync_v2",
            "cuMemPrefetchAsync_v2_ptsz",
            "cuMemPrefetchBatchAsync",
            "cuMemPrefetchBatchAsync_ptsz",
            "cuMemDiscardAndPrefetchBatchAsync",
            "cuMemDiscardAndPrefetchBatchAsync_ptsz",
        ),
        limits=_OVERSUBSCRIBE,
    ),
    "opened": Scenario(
        """
p, handle = Pointer(), ctypes.create_string_buffer(64)
description = (c_ulonglong * 13)(1)
arguments = {
    "cuIpcOpenMemHandle": lambda: (byref(p), Handle(), 1),
    "cuIpcOpenMemHandle_v2": lambda: (byref(p), Handle(), 1),
    "cuMemImportFromShareableHandle": lambda: (byref(p), None, 1),
    "cuMemPoolImportFromShareableHandle": lambda: (byref(p), None, 1, ZERO),
    "cuImportExternalMemory": lambda: (byref(p), description),
    "cuIpcCloseMemHandle": lambda: (p,),
}[v]
assert fn(v)(*arguments()) != SUCCESS  # there is nothing of that kind: the hook has to bear it
""",
        (
            "cuIpcOpenMemHandle",
            "cuIpcOpenMemHandle_v2",
            "cuMemImportFromShareableHandle",
            "cuMemPoolImportFromShareableHandle",
            "cuImportExternalMemory",
            "cuIpcCloseMemHandle",
        ),
        setup="context = start()\nclass Handle(ctypes.Structure): _fields_ = [('bytes', ctypes.c_char * 64)]",
    ),
    "exported": Scenario(
        """
p, q, descriptor = Pointer(), Pointer(), c_int()
kind = (c_int * 16)(1, 1, 1, 0)
if take(lambda: cuda.cuMemRelease(p), cuda.cuMemCreate, byref(p), c_size_t(4 * MIB), kind, ZERO):
    if cuda.cuMemExportToShareableHandle(byref(descriptor), p, 1, ZERO) == SUCCESS:
        there = c_void_p(descriptor.value)
        take(lambda: cuda.cuMemRelease(q), cuda.cuMemImportFromShareableHandle, byref(q), there, 1)
        os.close(descriptor.value)
"""
    ),
    "memory of another API": Scenario(
        """
m, description = c_void_p(), (c_ulonglong * 13)(1)
c_int.from_buffer(description, 8).value, description[3] = os.open("/dev/zero", os.O_RDWR), 4096
if not take(lambda: cuda.cuDestroyExternalMemory(m), cuda.cuImportExternalMemory, byref(m), description):
    os.close(c_int.from_buffer(description, 8).value)
"""
    ),
    "module without room": Scenario(
        f"p, m = Pointer(), c_void_p()\n{_TAKE % '118 * MIB - 1000'}\n"
        "take(lambda: cuda.cuModuleUnload(m), cuda.cuModuleLoadData, byref(m), IMAGE)"
    ),
    "pitch without room": Scenario(
        f"p, q = Pointer(), Pointer()\n{_OTHER % '118 * MIB - 1100'}\n"
        f"take({_FREE}, cuda.cuMemAllocPitch_v2, byref(p), byref(c_size_t()), c_size_t(100), c_size_t(10), 4)"
    ),
    "pool without room": Scenario(
        f"p, q = Pointer(), Pointer()\n{_OTHER % '116 * MIB'}\n"
        "take(lambda: cuda.cuMemFreeAsync(p, None), cuda.cuMemAllocAsync, byref(p), c_size_t(5 * MIB), None)"
    ),
    "context": Scenario(
        """
c, p = c_void_p(), Pointer()
destroy = {"cuCtxCreate": cuda.cuCtxDestroy, "cuCtxCreate_v3": cuda.cuCtxDetach}.get(v, cuda.cuCtxDestroy_v2)
more = {"cuCtxCreate_v3": (None, 0), "cuCtxCreate_v4": (None,)}.get(v, ())
if take(lambda: destroy(c), fn(v), byref(c), *more, 0, 0):
    cuda.cuMemAlloc_v2(byref(p), c_size_t(5 * MIB))  # ends with it
""",
        ("cuCtxCreate", "cuCtxCreate_v2", "cuCtxCreate_v3", "cuCtxCreate_v4"),
    ),
    "primary context": Scenario(
        """
c, p = c_void_p(), Pointer()
if take(lambda: fn(v)(0), cuda.cuDevicePrimaryCtxRetain, byref(c), 0) and cuda.cuCtxSetCurrent(c) == SUCCESS:
    cuda.cuMemAlloc_v2(byref(p), c_size_t(5 * MIB))
    cuda.cuCtxSetCurrent(context)
""",
        (
            "cuDevicePrimaryCtxRelease",
            "cuDevicePrimaryCtxRelease_v2",
            "cuDevicePrimaryCtxReset",
            "cuDevicePrimaryCtxReset_v2",
        ),
        setup="context = c_void_p()\ncheck(cuda.cuInit(0))\ncheck(cuda.cuCtxCreate_v2(byref(context), 0, 0))",
        after="cuda.cuDevicePrimaryCtxReset_v2(0)",
    ),
    "module": Scenario(
        """
m = c_void_p()
what = {"cuModuleLoad": (image.name.encode(),), "cuModuleLoadDataEx": (IMAGE, 0, None, None)}.get(v, (IMAGE,))
take(lambda: cuda.cuModuleUnload(m), fn(v), byref(m), *what)
""",
        ("cuModuleLoad", "cuModuleLoadData", "cuModuleLoadDataEx", "cuModuleLoadFatBinary"),
        setup="context, image = start(), image_file()",
    ),
    "library": Scenario(
        """
m = c_void_p()
what = IMAGE if v == "cuLibraryLoadData" else image.name.encode()
if take(lambda: cuda.cuLibraryUnload(m), fn(v), byref(m), what, None, None, 0, None, None, 0):
    cuda.cuLibraryGetKernel(byref(c_void_p()), m, b"none")
    cuda.cuLibraryEnumerateKernels(byref(c_void_p()), 1, m)
""",
        ("cuLibraryLoadData", "cuLibraryLoadFromFile"),
        setup="context, image = start(), image_file()",
    ),
    "function": Scenario(
        """
m, f = c_void_p(), c_void_p()
if take(lambda: cuda.cuModuleUnload(m), cuda.cuModuleLoadData, byref(m), IMAGE):
    if cuda.cuModuleGetFunction(byref(f), m, b"none") == SUCCESS:
        cuda.cuFuncLoad(f)
"""
    ),
    "heap": Scenario(
        "take(lambda: cuda.cuCtxSetLimit(2, c_size_t(8 * MIB)), cuda.cuCtxSetLimit, 2, c_size_t(20 * MIB))"
    ),
    "graph": Scenario(
        """
stream, log = new_stream(), ctypes.create_string_buffer(64)
graph = captured(stream, 5 * MIB)
more = {"cuGraphInstantiate": (None, log, c_size_t(64)), "cuGraphInstantiate_v2": (None, log, c_size_t(64)),
    "cuGraphInstantiateWithFlags": (ZERO,)}.get(v, ((c_ulonglong * 5)(),))
executable = instantiated(graph, v, *more)
if executable is not None:
    cuda.cuGraphUpload(executable, stream)
    cuda.cuGraphLaunch(executable, stream)
""",
        (
            "cuGraphInstantiate",
            "cuGraphInstantiate_v2",
            "cuGraphInstantiateWithFlags",
            "cuGraphInstantiateWithParams",
            "cuGraphInstantiateWithParams_ptsz",
        ),
        after=_TRIM,
    ),
    "graph, launched": Scenario(
        """
executable = instantiated(captured(new_stream(), 5 * MIB))
if executable is not None:
    fn(v)(executable, None)
""",
        ("cuGraphLaunch", "cuGraphLaunch_ptsz", "cuGraphUpload", "cuGraphUpload_ptsz"),
        after=_TRIM,
    ),
    "graph, with another kernel": Scenario(
        """
graph, node, p = c_void_p(), c_void_p(), Pointer()
params = (c_ulonglong * 9)(function.value, 1 << 32 | 1, 1 << 32 | 1, 1 << 32 | 1, 0, 0, 0, 0, 0)
if take(lambda: cuda.cuGraphDestroy(graph), cuda.cuGraphCreate, byref(graph), 0):
    cuda.cuGraphAddKernelNode_v2(byref(node), graph, None, c_size_t(0), params)
    executable = instantiated(graph)
    if executable is not None and node.value is not None:
        fn(v)(executable, node, (c_ulonglong * 32)(0, 0, *params) if v == "cuGraphExecNodeSetParams" else params)
        cuda.cuGraphLaunch(executable, None)
""",
        ("cuGraphExecKernelNodeSetParams", "cuGraphExecKernelNodeSetParams_v2", "cuGraphExecNodeSetParams"),
        setup="context = start()\nfunction = kernel('none')",
    ),
    "graph, updated": Scenario(
        """
stream = new_stream()
executable, larger = instantiated(captured(stream, 5 * MIB)), captured(stream, 7 * MIB)
if executable is not None and larger.value is not None:
    fn(v)(executable, larger, *((None, byref(c_int())) if v == "cuGraphExecUpdate" else ((c_void_p * 3)(),)))
    cuda.cuGraphLaunch(executable, stream)
""",
        ("cuGraphExecUpdate", "cuGraphExecUpdate_v2"),
        after=_TRIM,
    ),
    "captured": Scenario(
        """
twin = v.endswith("_ptsz")
stream, target = new_stream("cuStreamDestroy" if twin else "cuStreamDestroy_v2"), c_void_p()
more = {"cuStreamBeginCapture": (), "cuStreamBeginCapture_v2": (2,),
    "cuStreamBeginCaptureToGraph": (target, None, None, c_size_t(0), 2),
    "cuStreamBeginRecaptureToGraph": (2, target, None, None)}[v.removesuffix("_ptsz")]
if stream.value is not None and take(lambda: cuda.cuGraphDestroy(target), cuda.cuGraphCreate, byref(target), 0):
    captured(stream, 5 * MIB, lambda: fn(v)(stream, *more), "cuStreamEndCapture_ptsz" if twin else "cuStreamEndCapture")
""",
        (
            "cuStreamBeginCapture",
            "cuStreamBeginCapture_ptsz",
            "cuStreamBeginCapture_v2",
            "cuStreamBeginCapture_v2_ptsz",
            "cuStreamBeginCaptureToGraph",
            "cuStreamBeginCaptureToGraph_ptsz",
            "cuStreamBeginRecaptureToGraph",
            "cuStreamBeginRecaptureToGraph_ptsz",
        ),
    ),
    "launched": Scenario(
        """
ones, zero, p = (c_uint(1),) * 6, c_uint(0), Pointer()
config = (c_ulonglong * 8)(1 << 32 | 1, 1 << 32 | 1, 1 << 32 | 1)
entry = (c_ulonglong * 7)(function.value, 1 << 32 | 1, 1 << 32 | 1, 1 << 32 | 1, 0, stream.value, 0)
arguments = {
    "cuLaunchKernel": (function, *ones, zero, None, None, None),
    "cuLaunchKernelEx": (config, function, None, None),
    "cuLaunchCooperativeKernel": (function, *ones, zero, None, None),
    "cuLaunchCooperativeKernelMultiDevice": (entry, 1, 0),
    "cuLaunch": (function,),
    "cuLaunchGrid": (function, 1, 1),
    "cuLaunchGridAsync": (function, 1, 1, stream),
}[v.removesuffix("_ptsz")]
if take(lambda: cuda.cuMemFree_v2(p), cuda.cuMemAlloc_v2, byref(p), c_size_t(MIB)):
    fn(v)(*arguments)
""",
        (
            "cuLaunchKernel",
            "cuLaunchKernel_ptsz",
            "cuLaunchKernelEx",
            "cuLaunchKernelEx_ptsz",
            "cuLaunchCooperativeKernel",
            "cuLaunchCooperativeKernel_ptsz",
            "cuLaunchCooperativeKernelMultiDevice",
            "cuLaunch",
            "cuLaunchGrid",
            "cuLaunchGridAsync",
        ),
        setup="""context, stream = start(), c_void_p()
check(cuda.cuStreamCreate(byref(stream), 1))
function = kernel("none")
for _ in range(3): try_launch(function, 0)
synchronize()""",
        limits={"cores_percent": 50},
    ),
    "synchronized": Scenario(
        """
event, p = c_void_p(), Pointer()
if take(lambda: cuda.cuMemFree_v2(p), cuda.cuMemAlloc_v2, byref(p), c_size_t(MIB)):
    try_launch(function, 0, stream)
    cuda.cuEventCreate(byref(event), 0)
    cuda.cuEventRecord(event, stream)
    waits = {"cuCtxSynchronize": (), "cuCtxSynchronize_v2": (context,), "cuEventSynchronize": (event,)}
    fn(v)(*waits.get(v, (stream,)))
    cuda.cuEventDestroy_v2(event)
""",
        (
            "cuCtxSynchronize",
            "cuCtxSynchronize_v2",
            "cuStreamSynchronize",
            "cuStreamSynchronize_ptsz",
            "cuEventSynchronize",
        ),
        setup="""context, stream = start(), c_void_p()
check(cuda.cuStreamCreate(byref(stream), 1))
function = kernel("none")""",
        limits={"cores_percent": 50},
    ),
    "filled or copied": Scenario(
        "p = Pointer()\nif take(lambda: cuda.cuMemFree_v2(p), cuda.cuMemAlloc_v2, byref(p), c_size_t(MIB)): calls[v]()",
        tuple(_MOVES),
        setup=f"{SETUP}\ncontext = start()\nready()\ncalls = {{{_CALLS}}}",
        limits={"cores_percent": 50},
    ),
}
