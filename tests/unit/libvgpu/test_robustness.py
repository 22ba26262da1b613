"""Forks at a bad moment, cancelled threads, pools that come and go: nothing hangs, and the books stay exact."""

from typing import TYPE_CHECKING

from libvgpu.shares import read_books
from libvgpu.stub import read_card

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20

# Threads that are in all parts of the library all the time.
BUSY = f"""
import os, threading
context = start()
stop = threading.Event()

def create(size):
    handle = Pointer()
    result = cuda.cuMemCreate(byref(handle), c_size_t(size), (c_int * 16)(1, 0, 1, 0), c_ulonglong(0))
    return result, handle

def use():
    check(cuda.cuCtxSetCurrent(context))
    pool, async_pointer = c_void_p(), Pointer()
    while not stop.is_set():
        free(alloc({MIB}))
        result, handle = create({2 * MIB})
        check(result)
        check(cuda.cuMemRelease(handle))
        check(cuda.cuMemAllocAsync(byref(async_pointer), c_size_t({MIB}), None))
        check(cuda.cuMemFreeAsync(async_pointer, None))
        check(cuda.cuMemPoolCreate(byref(pool), (c_int * 22)(1, 0, 1, 0)))
        check(cuda.cuMemPoolDestroy(pool))

threads = [threading.Thread(target=use) for _ in range(3)]
"""


def test_a_child_that_is_forked_while_threads_are_in_the_library_does_not_hang(machine: "Machine") -> None:
    share = machine.share(256 * MIB)
    machine.run(
        BUSY
        + f"""
inherited, (_, handle) = alloc({MIB}), create({2 * MIB})
for thread in threads: thread.start()
children = []
for _ in range(30):
    child = os.fork()
    if child == 0:
        for _ in range(2):  # of the parent: not ours to give back, before and after a start of our own
            cuda.cuMemFree_v2(inherited)
            cuda.cuMemFreeAsync(inherited, None)
            cuda.cuMemRelease(handle)
            cuda.cuMemUnmap(inherited, c_size_t({MIB}))
            cuda.cuDeviceGraphMemTrim(0)
            cuda.cuCtxDestroy_v2(None)
            start()
        free(alloc({MIB}))
        check(cuda.cuMemAllocAsync(byref(Pointer()), c_size_t({MIB}), None))
        os._exit(0)
    children.append(child)
statuses = [os.waitpid(child, 0)[1] for child in children]
stop.set()
for thread in threads: thread.join()
synchronize()
assert statuses == [0] * 30, statuses
assert info()[0] == {253 * MIB}, info()
"""
    )
    assert read_books(share).used_bytes == 0


CANCEL = f"""
context = start()
libc = ctypes.CDLL(None)
libc.pthread_self.restype = ctypes.c_ulong
libc.pthread_cancel.argtypes = [ctypes.c_ulong]
pool, state = c_void_p(), c_int()
check(cuda.cuDeviceGetDefaultMemPool(byref(pool), 0))
handle = Pointer()
check(cuda.cuMemCreate(byref(handle), c_size_t({2 * MIB}), (c_int * 16)(1, 0, 1, 0), c_ulonglong(0)))

def unchanged():
    libc.pthread_setcancelstate(1, byref(state))
    before = state.value
    libc.pthread_setcancelstate(before, byref(state))
    return before == expected
"""


def test_a_child_that_is_forked_while_a_lock_is_held_does_not_wait_for_it(machine: "Machine") -> None:
    machine.share(64 * MIB)
    output = machine.run(f"""
        import os, pathlib, platform, signal, threading, time
        from libvgpu.stub.cardfiles import _mapped
        context = start()
        free(alloc({MIB}))

        def allocate():
            check(cuda.cuCtxSetCurrent(context))
            cuda.cuMemAllocAsync(byref(Pointer()), c_size_t({MIB}), None)

        with _mapped(pathlib.Path({str(machine.card)!r})) as card:
            card.lock = 1  # as if this process were at it: the driver waits, under the lock of our pools
        thread = threading.Thread(target=allocate, daemon=True)
        thread.start()
        futex = "98" if platform.machine() == "aarch64" else "202"
        while open(f"/proc/self/task/{{thread.native_id}}/syscall").read().split()[0] != futex:
            time.sleep(0.01)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            cuda.cuMemPoolDestroy(None)
            os._exit(0)
        say(os.waitpid(child, 0)[1])
        os._exit(0)
    """)
    assert output == "0\n"


def test_the_library_leaves_it_to_the_thread_whether_it_can_be_cancelled(machine: "Machine") -> None:
    # Under its locks it cannot: a thread that ended there would leave them locked for all others.
    share = machine.share(64 * MIB)
    machine.run(
        CANCEL
        + f"""
for expected in (0, 1, 0):  # enabled, disabled, enabled
    libc.pthread_setcancelstate(expected, byref(state))
    check(cuda.cuMemPoolTrimTo(pool, c_size_t(0)))
    assert unchanged()
    check(cuda.cuMemAllocAsync(byref(Pointer()), c_size_t({MIB}), None))
    assert unchanged()
check(cuda.cuMemRelease(handle))
assert info()[0] == {61 * MIB}, info()
"""
    )
    assert read_books(share).used_bytes == 0


def test_pools_that_come_and_go_leave_nothing_behind(machine: "Machine") -> None:
    machine.share(64 * MIB)
    machine.run(f"""
        start()
        def round():
            pool, pointer = c_void_p(), Pointer()
            check(cuda.cuMemPoolCreate(byref(pool), (c_int * 22)(1, 0, 1, 0)))
            check(cuda.cuMemAllocFromPoolAsync(byref(pointer), c_size_t({MIB}), pool, None))
            check(cuda.cuMemPoolDestroy(pool))
            assert info()[0] == {63 * MIB}, info()  # lives on
            check(cuda.cuMemFreeAsync(pointer, None))
            synchronize()
            assert info()[0] == {64 * MIB}, info()
        for _ in range(200):
            round()
    """)
    assert read_card(machine.card).peak_bytes == MIB


def test_a_pool_of_managed_memory_is_charged_to_the_current_device(machine: "Machine") -> None:
    machine.share(64 * MIB, device_uuid="GPU-99999999-0000-4000-8000-000000000009")
    output, _ = machine.refused("""
        check(cuda.cuInit(0))
        print(cuda.cuMemPoolCreate(byref(c_void_p()), (c_int * 22)(2, 0, 0, 0)))
    """)
    assert output == "201\n"  # no context


def test_namespaces_of_the_loader_can_be_opened_again_and_again(machine: "Machine") -> None:
    machine.share(64 * MIB)
    machine.run("""
        import ctypes
        libc = ctypes.CDLL(None)
        libc.dlmopen.restype = c_void_p
        libc.dlmopen.argtypes = (ctypes.c_long, ctypes.c_char_p, c_int)
        libc.dlclose.argtypes = (c_void_p,)
        for _ in range(40):
            handle = libc.dlmopen(-1, b"libm.so.6", 2)
            assert handle and libc.dlclose(handle) == 0
            assert not libc.dlmopen(-1, b"libnot-there.so", 2)
    """)


def test_a_chain_of_forks_keeps_the_slots_of_no_ancestors_that_held_nothing(machine: "Machine") -> None:
    share = machine.share(64 * MIB)
    output = machine.run(f"""
        import os, pathlib, select
        from libvgpu.shares import read_books
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        reading, writing = os.pipe()
        if os.fork():
            os.close(writing)
            say(os.read(reading, 100).decode())
            os._exit(0)
        for generation in range(8):
            check(nvml.nvmlInit_v2())
            parent = os.pidfd_open(os.getpid())
            if os.fork():
                os._exit(0)
            select.select([parent], [], [])  # until it has ended
        check(nvml.nvmlInit_v2())
        os.write(writing, b"%d" % len(read_books(pathlib.Path({str(share)!r})).processes))
        os._exit(0)
    """)
    assert output == "1\n"
