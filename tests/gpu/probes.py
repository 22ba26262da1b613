"""What the programs of these tests measure of a driver, from inside. Runs in the child, never in pytest."""

import ctypes
import os
import sys
from collections.abc import Callable
from ctypes import byref, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from typing import Self

from tests.unit.libvgpu.gpu import Pointer, check, cuda, info, launch

MIB = 1 << 20
nvml = ctypes.CDLL("libnvidia-ml.so.1")


class ProcessInfo(ctypes.Structure):
    """nvmlProcessInfo_v2_t, which the calls _v2 and _v3 take."""

    _fields_ = (("pid", c_uint), ("bytes", c_ulonglong), ("instance", c_uint), ("compute_instance", c_uint))


class Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


def card() -> c_void_p:
    """Return NVML's handle of the card that CUDA calls 0, by its UUID."""
    raw, handle = (ctypes.c_ubyte * 16)(), c_void_p()
    check(cuda.cuInit(0))
    check(cuda.cuDeviceGetUuid_v2(raw, 0))
    text = bytes(raw).hex()
    parts = (text[:8], text[8:12], text[12:16], text[16:20], text[20:])
    check(nvml.nvmlInit_v2())
    for kind in ("GPU-", "MIG-"):
        if nvml.nvmlDeviceGetHandleByUUID((kind + "-".join(parts)).encode(), byref(handle)) == 0:
            return handle
    raise AssertionError(f"NVML: found no device {'-'.join(parts)}, expected CUDA's device 0")


def listed(name: str = "nvmlDeviceGetComputeRunningProcesses_v3", handle: "c_void_p | None" = None) -> dict[int, int]:
    """Return the bytes that NVML lists by process id; bytes that it does not tell are -1."""
    count, infos = c_uint(1024), (ProcessInfo * 1024)()
    check(getattr(nvml, name)(handle or card(), byref(count), infos))
    return {i.pid: -1 if i.bytes == 2**64 - 1 else i.bytes for i in infos[: count.value]}


def own_bytes() -> int:
    """Return what NVML lists for this process; -1: it does not say."""
    return listed().get(os.getpid(), -1)


def used_bytes() -> int:
    """Return what NVML says is in use on the card, by all."""
    memory = Memory()
    check(nvml.nvmlDeviceGetMemoryInfo(card(), byref(memory)))
    return int(memory.used)


class Growth:
    """Bytes that something takes, as CUDA, NVML's figure for the card and NVML's for this process have it.

    with Growth() as growth: ...; growth.free, growth.used, growth.own (None: NVML does not name this process).
    """

    def __enter__(self) -> Self:
        """Look before."""
        self._before = self._look()
        return self

    def __exit__(self, *_: object) -> None:
        """Look after."""
        free, used, own = self._look()
        self.free = self._before[0] - free
        self.used = used - self._before[1]
        self.own = own - self._before[2] if own >= 0 and self._before[2] >= 0 else None

    @staticmethod
    def _look() -> tuple[int, int, int]:
        return info()[0], used_bytes(), own_bytes()


def took(action: Callable[[], object]) -> int:
    """Return the bytes that something takes of the card: negative if it gives back."""
    with Growth() as growth:
        action()
    return growth.free


def kernels() -> c_void_p:
    """Load the kernels as PTX; return the module."""
    module = c_void_p()
    text = (Path(__file__).parents[2] / "libvgpu" / "stub" / "kernels.ptx").read_bytes()
    check(cuda.cuModuleLoadData(byref(module), text))
    return module


def function(name: str, module: "c_void_p | None" = None) -> c_void_p:
    """Return a kernel of a module, or of the kernels."""
    found = c_void_p()
    check(cuda.cuModuleGetFunction(byref(found), module or kernels(), name.encode()))
    return found


def event() -> c_void_p:
    """Return an event."""
    made = c_void_p()
    check(cuda.cuEventCreate(byref(made), 0))
    return made


def stream() -> c_void_p:
    """Return a stream that waits for no other."""
    made = c_void_p()
    check(cuda.cuStreamCreate(byref(made), 1))
    return made


def timed_ns(work: c_void_p, rounds: int) -> int:
    """Return the nanoseconds that the GPU says a launch took, by events around it."""
    begin, end, milliseconds = event(), event(), ctypes.c_float()
    check(cuda.cuEventRecord(begin, None))
    launch(work, rounds)
    check(cuda.cuEventRecord(end, None))
    check(cuda.cuEventSynchronize(end))
    check(cuda.cuEventElapsedTime(byref(milliseconds), begin, end))
    return int(milliseconds.value * 1e6)


def rounds_for(work: c_void_p, wanted_ns: int) -> int:
    """Return the rounds of `spin_rounds` that take so long on this GPU alone."""
    rounds = 100_000
    timed_ns(work, rounds)
    return rounds * wanted_ns // max(1, min(timed_ns(work, rounds) for _ in range(5)))


def new_pool() -> c_void_p:
    """Return a pool of the device's memory."""
    pool = c_void_p()
    check(cuda.cuMemPoolCreate(byref(pool), (c_int * 22)(1, 0, 1, 0)))
    return pool


def from_pool(pool: c_void_p, size: int) -> Pointer:
    """Allocate from a pool."""
    pointer = Pointer()
    check(cuda.cuMemAllocFromPoolAsync(byref(pointer), c_size_t(size), pool, None))
    return pointer


def pool_bytes(pool: c_void_p, attribute: int) -> int:
    """Return an attribute of a pool: 5 what it has reserved, 7 what is in use of it."""
    value = c_ulonglong()
    check(cuda.cuMemPoolGetAttribute(pool, attribute, byref(value)))
    return value.value


__all__ = [name for name in dir() if not name.startswith("_")] + ["sys"]
