"""The CUDA driver API through ctypes, for the processes that the tests of the stub driver start.

A process of a test is a text of Python (conftest.Gpu.start) that begins with `from cuda import *`.
"""

import ctypes
import json
import os
import sys
import time
from ctypes import byref, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p, create_string_buffer
from pathlib import Path
from typing import Any

__all__ = [
    "KERNELS",
    "MIB",
    "CudaError",
    "Driver",
    "byref",
    "c_float",
    "c_int",
    "c_size_t",
    "c_uint",
    "c_uint64",
    "c_void_p",
    "create_string_buffer",
    "ctypes",
    "json",
    "os",
    "say",
    "sys",
    "time",
    "wait_for_line",
]

MIB = 1 << 20
KERNELS = Path(__file__).parents[3] / "libvgpu" / "stub" / "kernels.ptx"
NEVER_THROWS = {"cuGetErrorName"}


class CudaError(Exception):
    """A driver call failed; `code` is its CUresult."""

    def __init__(self, function: str, code: int) -> None:
        super().__init__(f"{function} returned {code}")
        self.code = code


class Driver:
    """libcuda with a current primary context. Any driver function is a method that raises CudaError."""

    def __init__(self, device: int | None = 0) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.cuInit(0)
        if device is not None:
            context = c_void_p()
            self.cuDevicePrimaryCtxRetain(byref(context), device)
            self.cuCtxSetCurrent(context)
            self.context = context

    def __getattr__(self, function: str) -> Any:
        entry = getattr(self.library, function)

        def call(*arguments: Any) -> None:
            # Python's ints are pointers and sizes here: 64 bits, unless the caller says otherwise.
            code = entry(*(c_uint64(one) if type(one) is int else one for one in arguments))
            if code:
                raise CudaError(function, code)

        return call

    def alloc(self, size: int) -> int:
        """cuMemAlloc."""
        pointer = c_uint64()
        self.cuMemAlloc_v2(byref(pointer), size)
        return pointer.value

    def info(self) -> tuple[int, int]:
        """cuMemGetInfo: free and total bytes."""
        free, total = c_size_t(), c_size_t()
        self.cuMemGetInfo_v2(byref(free), byref(total))
        return free.value, total.value

    def write(self, pointer: int, data: bytes) -> None:
        """Copy bytes to the device."""
        self.cuMemcpyHtoD_v2(pointer, data, len(data))

    def read(self, pointer: int, size: int) -> bytes:
        """Copy bytes from the device."""
        buffer = create_string_buffer(size)
        self.cuMemcpyDtoH_v2(buffer, pointer, size)
        return buffer.raw

    def kernel(self, name: str) -> c_void_p:
        """A kernel of kernels.ptx."""
        module, function = c_void_p(), c_void_p()
        self.cuModuleLoadData(byref(module), KERNELS.read_bytes() + b"\0")
        self.cuModuleGetFunction(byref(function), module, name.encode())
        return function

    def launch(self, function: c_void_p, nanoseconds: int = 0, stream: Any = None, blocks: int = 1) -> None:
        """Launch a kernel; nanoseconds is its first parameter."""
        value = c_uint64(nanoseconds)
        parameters = (c_void_p * 1)(ctypes.addressof(value))
        self.cuLaunchKernel(function, blocks, 1, 1, 1, 1, 1, 0, stream, parameters, None)

    def create(self, function: str, *arguments: Any) -> c_void_p:
        """Make an object: calls function(&handle, arguments...)."""
        handle = c_void_p()
        getattr(self, function)(byref(handle), *arguments)
        return handle


def say(**facts: Any) -> None:
    """Tell the test something: one line of JSON."""
    print(json.dumps(facts), flush=True)


def wait_for_line() -> None:
    """Wait until the test says go on."""
    if not sys.stdin.readline():
        os._exit(3)
