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
