"""The driver through ctypes, for the programs that the tests start inside a share. Runs in the child, never in pytest.

Each function asserts success unless its name starts with `try_`, which returns the driver's result instead.
"""

import ctypes
import sys
from ctypes import byref, c_int, c_size_t, c_uint, c_ulonglong, c_void_p

SUCCESS, OUT_OF_MEMORY, NOT_PERMITTED, NOT_SUPPORTED = 0, 2, 800, 801

cuda = ctypes.CDLL("libcuda.so.1")
Pointer = c_ulonglong


def check(result: int) -> None:
    """Fail the program unless a call succeeded."""
    assert result == SUCCESS, f"CUDA result {result}"


def start(device: int = 0) -> c_void_p:
    """Initialise the driver and make a context on a device."""
    context = c_void_p()
    check(cuda.cuInit(0))
    check(cuda.cuDevicePrimaryCtxRetain(byref(context), device))
    check(cuda.cuCtxSetCurrent(context))
    return context


def try_alloc(size: int) -> tuple[int, Pointer]:
    """Return the result of cuMemAlloc, and the pointer."""
    pointer = Pointer()
    return cuda.cuMemAlloc_v2(byref(pointer), c_size_t(size)), pointer


def alloc(size: int) -> Pointer:
    """Allocate."""
    result, pointer = try_alloc(size)
    check(result)
    return pointer


def grab(most: int = 256) -> int:
    """Allocate MiB after MiB until the driver refuses, or there are `most`; return how many there are."""
    for count in range(most):
        result, _ = try_alloc(1 << 20)
        if result != SUCCESS:
            assert result in (OUT_OF_MEMORY, NOT_PERMITTED), result
            return count
    return most


def free(pointer: Pointer) -> None:
    """Free."""
    check(cuda.cuMemFree_v2(pointer))


def info() -> tuple[int, int]:
    """Return (free, total) bytes as cuMemGetInfo has them."""
    free_bytes, total = c_size_t(), c_size_t()
    check(cuda.cuMemGetInfo_v2(byref(free_bytes), byref(total)))
    return free_bytes.value, total.value


def used() -> int:
    """Return what the books have: asking CUDA for free memory would look again."""
    nvml, device, values = ctypes.CDLL("libnvidia-ml.so.1"), c_void_p(), (c_ulonglong * 3)()
    check(nvml.nvmlInit_v2())
    check(nvml.nvmlDeviceGetHandleByIndex_v2(0, byref(device)))
    check(nvml.nvmlDeviceGetMemoryInfo(device, values))
    return values[2]


def kernel(name: str = "spin") -> c_void_p:
    """Return a function of a module; `spin` takes the nanoseconds that it runs as its parameter."""
    module, function = c_void_p(), c_void_p()
    ptx = f".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry {name}(.param .u64 ns) {{ ret; }}\n"
    check(cuda.cuModuleLoadData(byref(module), ptx.encode()))
    check(cuda.cuModuleGetFunction(byref(function), module, name.encode()))
    return function


def try_launch(function: c_void_p, gpu_ns: int, stream: c_void_p | None = None) -> int:
    """Return the result of a launch that keeps the GPU busy for gpu_ns."""
    argument = c_ulonglong(gpu_ns)
    params = (c_void_p * 1)(ctypes.addressof(argument))
    sizes = (c_uint(1),) * 6
    return int(cuda.cuLaunchKernel(function, *sizes, c_uint(0), stream, params, None))


def launch(function: c_void_p, gpu_ns: int, stream: c_void_p | None = None) -> None:
    """Launch."""
    check(try_launch(function, gpu_ns, stream))


def new_stream() -> c_void_p:
    """Return a stream that waits for no other."""
    stream = c_void_p()
    check(cuda.cuStreamCreate(byref(stream), 1))
    return stream


def new_pool() -> c_void_p:
    """Return a pool of the first device's memory."""
    pool = c_void_p()
    check(cuda.cuMemPoolCreate(byref(pool), (c_int * 22)(1, 0, 1, 0)))
    return pool


def try_from(pool: c_void_p, size: int, stream: c_void_p | None = None) -> tuple[int, Pointer]:
    """Return the result of an allocation from a pool, and the pointer."""
    pointer = Pointer()
    return cuda.cuMemAllocFromPoolAsync(byref(pointer), c_size_t(size), pool, stream), pointer


def take_from(pool: c_void_p, size: int, stream: c_void_p | None = None) -> Pointer:
    """Allocate from a pool."""
    result, pointer = try_from(pool, size, stream)
    check(result)
    return pointer


def create(size: int) -> Pointer:
    """Return a handle of memory without an address, on the first device."""
    handle = Pointer()
    check(cuda.cuMemCreate(byref(handle), c_size_t(size), (c_int * 16)(1, 0, 1, 0), c_ulonglong(0)))
    return handle


def multicast(size: int) -> Pointer:
    """Return a multicast object over the first device."""
    handle = Pointer()
    check(cuda.cuMulticastCreate(byref(handle), (c_ulonglong * 4)(1, size, 0, 0)))
    check(cuda.cuMulticastAddDevice(handle, 0))
    return handle


def new_graph() -> c_void_p:
    """Return an empty graph."""
    graph = c_void_p()
    check(cuda.cuGraphCreate(byref(graph), 0))
    return graph


def memory_node(graph: c_void_p, size: int) -> None:
    """Let a graph allocate and free memory of the first device."""
    # CUDA_MEM_ALLOC_NODE_PARAMS: the pool's properties are 88 bytes, then access descriptors, then the size
    params, node = (ctypes.c_char * 120)(), c_void_p()
    (c_int * 4).from_buffer(params)[:] = [1, 0, 1, 0]
    c_size_t.from_buffer(params, 104).value = size
    check(cuda.cuGraphAddMemAllocNode(byref(node), graph, None, c_size_t(0), params))
    pointer, end = Pointer.from_buffer(params, 112), c_void_p()
    check(cuda.cuGraphAddMemFreeNode(byref(end), graph, byref(node), c_size_t(1), pointer))


def instantiate(graph: c_void_p) -> c_void_p:
    """Return an executable of a graph."""
    executable = c_void_p()
    check(cuda.cuGraphInstantiateWithFlags(byref(executable), graph, c_ulonglong(0)))
    return executable


def synchronize() -> None:
    """Wait for the current context."""
    check(cuda.cuCtxSynchronize())


def say(*words: object) -> None:
    """Print at once: the test reads along."""
    print(*words, flush=True)


def wait_for_line() -> None:
    """Wait until the test says to go on."""
    assert sys.stdin.readline()


__all__ = [name for name in dir() if not name.startswith("_")] + ["c_int"]
