"""The memory limit, checked against what the simulated card itself counted."""

import random
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from libvgpu.shares import Limits, read_books, read_limits, update_limits
from libvgpu.stub import StubGPU, change_settings, create_card, inject_fault, read_card

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine
from dataclasses import replace

MIB = 1 << 20
GPU = StubGPU(name="Stub", memory_bytes=MIB, uuid="GPU-00000000-0000-4000-8000-000000000001")


def test_one_byte_over_the_share_is_refused_and_the_driver_never_asked(machine: "Machine") -> None:
    share = machine.share(100 * MIB)
    machine.run(f"""
        start()
        assert try_alloc({100 * MIB} + 1)[0] == OUT_OF_MEMORY
        whole = alloc({100 * MIB})
        assert try_alloc(1)[0] == OUT_OF_MEMORY
        free(whole)
        alloc({100 * MIB})
    """)
    card = read_card(machine.card)
    assert card.peak_bytes == 100 * MIB
    assert [process.out_of_memory for process in card.processes] == [0]
    assert read_books(share).out_of_memory == 2
    assert read_books(share).peak_bytes == 100 * MIB


ALLOCATORS = {
    "cuMemAlloc_v2": "p = Pointer(); r = cuda.cuMemAlloc_v2(byref(p), c_size_t(SIZE))",
    "cuMemAllocManaged": "p = Pointer(); r = cuda.cuMemAllocManaged(byref(p), c_size_t(SIZE), 1)",
    "cuMemAllocPitch_v2": (
        "p = Pointer(); pitch = c_size_t(); "
        "r = cuda.cuMemAllocPitch_v2(byref(p), byref(pitch), c_size_t(SIZE // 16), c_size_t(16), 4)"
    ),
    "cuMemAllocAsync": "p = Pointer(); r = cuda.cuMemAllocAsync(byref(p), c_size_t(SIZE), None)",
    "cuMemAllocAsync_ptsz": "p = Pointer(); r = cuda.cuMemAllocAsync_ptsz(byref(p), c_size_t(SIZE), None)",
    "cuMemAllocFromPoolAsync": (
        "pool = c_void_p(); check(cuda.cuDeviceGetDefaultMemPool(byref(pool), 0)); p = Pointer(); "
        "r = cuda.cuMemAllocFromPoolAsync(byref(p), c_size_t(SIZE), pool, None)"
    ),
    "cuMemCreate": (
        "prop = (c_int * 16)(1, 0, 1, 0); p = Pointer(); "
        "r = cuda.cuMemCreate(byref(p), c_size_t(SIZE), prop, c_ulonglong(0))"
    ),
    "cuArrayCreate_v2": (
        "d = (c_ulonglong * 3)(SIZE // 16, 16, 0x0100000001); p = c_void_p(); r = cuda.cuArrayCreate_v2(byref(p), d)"
    ),
    "cuArray3DCreate_v2": (
        "d = (c_ulonglong * 5)(SIZE // 16, 4, 4, 0x0100000001, 0); p = c_void_p(); "
        "r = cuda.cuArray3DCreate_v2(byref(p), d)"
    ),
    "cuMipmappedArrayCreate": (
        "d = (c_ulonglong * 5)(SIZE // 16, 4, 4, 0x0100000001, 0); p = c_void_p(); "
        "r = cuda.cuMipmappedArrayCreate(byref(p), d, 1)"
    ),
}


@pytest.mark.parametrize("function", ALLOCATORS)
def test_every_allocator_is_held_to_the_share(function: str, machine: "Machine") -> None:
    share = machine.share(64 * MIB)
    machine.run(f"""
        start()
        SIZE = {80 * MIB}
        {ALLOCATORS[function]}
        assert r == OUT_OF_MEMORY, r
        SIZE = {48 * MIB}
        {ALLOCATORS[function]}
        assert r == SUCCESS, r
        assert info()[0] == {16 * MIB}, info()
        {ALLOCATORS[function]}
        assert r == OUT_OF_MEMORY, r
    """)
    card = read_card(machine.card)
    assert card.peak_bytes <= 64 * MIB
    assert [process.out_of_memory for process in card.processes] == [0]
    assert read_books(share).out_of_memory >= 2
    assert read_books(share).used_bytes == 0


RELEASES = {
    "cuMemFree_v2": (ALLOCATORS["cuMemAlloc_v2"], "r = cuda.cuMemFree_v2(p)"),
    "cuMemFree_v2 of managed memory": (ALLOCATORS["cuMemAllocManaged"], "r = cuda.cuMemFree_v2(p)"),
    "cuMemFree_v2 of pitched memory": (ALLOCATORS["cuMemAllocPitch_v2"], "r = cuda.cuMemFree_v2(p)"),
    "cuMemFree_v2 of stream-ordered memory": (
        ALLOCATORS["cuMemAllocAsync"],
        "r = cuda.cuMemFree_v2(p); synchronize()",
    ),
    "cuMemFreeAsync": (ALLOCATORS["cuMemAllocAsync"], "r = cuda.cuMemFreeAsync(p, None); synchronize()"),
    "cuMemFreeAsync_ptsz": (ALLOCATORS["cuMemAllocAsync"], "r = cuda.cuMemFreeAsync_ptsz(p, None); synchronize()"),
    "cuMemRelease": (ALLOCATORS["cuMemCreate"], "r = cuda.cuMemRelease(p)"),
    "cuArrayDestroy": (ALLOCATORS["cuArrayCreate_v2"], "r = cuda.cuArrayDestroy(p)"),
    "cuMipmappedArrayDestroy": (ALLOCATORS["cuMipmappedArrayCreate"], "r = cuda.cuMipmappedArrayDestroy(p)"),
    "cuDevicePrimaryCtxReset_v2": (ALLOCATORS["cuMemAlloc_v2"], "r = cuda.cuDevicePrimaryCtxReset_v2(0); start()"),
    "cuDevicePrimaryCtxRelease_v2": (
        ALLOCATORS["cuMemAlloc_v2"],
        "r = cuda.cuDevicePrimaryCtxRelease_v2(0); start()",
    ),
    "cuCtxDestroy_v2": (
        "ctx = c_void_p(); check(cuda.cuCtxCreate_v2(byref(ctx), 0, 0)); " + ALLOCATORS["cuMemAlloc_v2"],
        "r = cuda.cuCtxDestroy_v2(ctx); start()",
    ),
}


@pytest.mark.parametrize("function", RELEASES)
def test_what_is_freed_can_be_had_again(function: str, machine: "Machine") -> None:
    machine.share(64 * MIB)
    allocate, release = RELEASES[function]
    machine.run(f"""
        start()
        SIZE = {48 * MIB}
        for _ in range(3):
            {allocate}
            assert r == SUCCESS, r
            assert info()[0] == {16 * MIB}, info()
            {release}
            assert r == SUCCESS, r
            assert info()[0] == {64 * MIB}, info()
    """)
    assert read_card(machine.card).peak_bytes <= 64 * MIB


def test_a_call_that_the_driver_refuses_gives_its_reservation_back(machine: "Machine") -> None:
    machine.share(64 * MIB)
    machine.run(f"""
        start()
        p = c_uint()
        assert cuda.cuMemAlloc(byref(p), c_uint({65 * MIB})) == OUT_OF_MEMORY
        assert cuda.cuMemAlloc(byref(p), c_uint({60 * MIB})) == NOT_SUPPORTED  # the 32-bit call of CUDA 2
        alloc({64 * MIB})
    """)


def test_mapped_memory_stays_charged_after_its_handle_is_released(machine: "Machine") -> None:
    machine.share(64 * MIB)
    machine.run(f"""
        start()
        SIZE = {48 * MIB}
        where = Pointer()
        check(cuda.cuMemAddressReserve(byref(where), c_size_t(SIZE), c_size_t(0), Pointer(0), c_ulonglong(0)))
        {ALLOCATORS["cuMemCreate"]}
        check(r)
        check(cuda.cuMemMap(where, c_size_t(SIZE), c_size_t(0), p, c_ulonglong(0)))
        check(cuda.cuMemRelease(p))
        assert info()[0] == {16 * MIB}, info()
        check(cuda.cuMemUnmap(where, c_size_t(SIZE)))
        assert info()[0] == {64 * MIB}, info()
    """)


def test_what_a_pool_keeps_counts_until_somebody_needs_it(machine: "Machine") -> None:
    machine.share(64 * MIB)
    machine.run(f"""
        start()
        pool, forever = c_void_p(), c_ulonglong(2**64 - 1)
        check(cuda.cuDeviceGetDefaultMemPool(byref(pool), 0))
        check(cuda.cuMemPoolSetAttribute(pool, 4, byref(forever)))
        SIZE = {48 * MIB}
        {ALLOCATORS["cuMemAllocAsync"]}
        check(r)
        check(cuda.cuMemFreeAsync(p, None))
        synchronize()
        assert info()[0] == {16 * MIB}, info()
        {ALLOCATORS["cuMemAllocAsync"]}
        check(r)
        check(cuda.cuMemFreeAsync(p, None))
        synchronize()
        alloc({60 * MIB})
        assert info()[0] == {4 * MIB}, info()
    """)
    assert read_card(machine.card).peak_bytes <= 64 * MIB


def test_pools_that_grow_in_chunks_stay_within_the_share(machine: "Machine") -> None:
    change_settings(machine.card, pool_chunk_bytes=32 * MIB)
    machine.share(100 * MIB)
    machine.run(f"""
        start()
        SIZE = {20 * MIB}
        got = 0
        while True:
            {ALLOCATORS["cuMemAllocAsync"]}
            if r != SUCCESS:
                break
            got += 1
        assert r == OUT_OF_MEMORY, r
        assert got == 4, got
        assert info()[0] == {4 * MIB}, info()
    """)
    assert read_card(machine.card).used_bytes == 0


def test_a_limit_lowered_below_the_use_denies_and_takes_nothing_away(machine: "Machine") -> None:
    share = machine.share(100 * MIB)
    program = machine.start(f"""
        start()
        big = alloc({80 * MIB})
        say("ready")
        wait_for_line()
        assert info() == (0, {50 * MIB}), info()
        assert try_alloc(1)[0] == OUT_OF_MEMORY
        say("denied")
        wait_for_line()
        alloc({40 * MIB})
        say("granted")
        wait_for_line()
    """)
    with program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        _change(share, memory_bytes=50 * MIB)
        print(file=program.stdin, flush=True)
        assert program.stdout.readline() == "denied\n"
        assert read_books(share).used_bytes == 80 * MIB
        _change(share, memory_bytes=120 * MIB)
        print(file=program.stdin, flush=True)
        assert program.stdout.readline() == "granted\n"
        assert read_card(machine.card).used_bytes == read_books(share).used_bytes == 120 * MIB
        program.communicate("\n", timeout=60)
    assert program.returncode == 0


def _change(share: Path, **changes: int) -> Limits:
    limits = replace(read_limits(share), **changes)  # type: ignore[arg-type]
    update_limits(share, limits)
    return limits


def test_two_shares_of_one_gpu_in_a_container_add_up(machine: "Machine") -> None:
    first = machine.share(60 * MIB, name="first")
    second = machine.share(40 * MIB, name="second")
    program = machine.start(f"""
        start()
        assert info() == ({100 * MIB}, {100 * MIB}), info()
        assert try_alloc({100 * MIB} + 1)[0] == OUT_OF_MEMORY
        whole = alloc({90 * MIB})
        assert info()[0] == {10 * MIB}, info()
        say("split")
        wait_for_line()
        free(whole)
        assert info()[0] == {100 * MIB}, info()
    """)
    with program:
        assert program.stdout is not None
        assert program.stdout.readline() == "split\n"
        assert sorted(read_books(share).used_bytes for share in (first, second)) in (
            [30 * MIB, 60 * MIB],
            [40 * MIB, 50 * MIB],
        )
        program.communicate("\n", timeout=60)
    assert program.returncode == 0
    assert [read_books(share).used_bytes for share in (first, second)] == [0, 0]


def test_the_bytes_of_a_killed_process_return_to_who_needs_them(machine: "Machine") -> None:
    share = machine.share(64 * MIB)
    holder = machine.start(f"start(); alloc({60 * MIB}); say('holding'); wait_for_line()")
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        machine.run(f"start(); assert try_alloc({10 * MIB})[0] == OUT_OF_MEMORY; alloc({4 * MIB})")
        other = machine.start(f"""
            start()
            assert try_alloc({64 * MIB})[0] == OUT_OF_MEMORY
            say("refused")
            wait_for_line()
            alloc({64 * MIB})
        """)
        with other:
            assert other.stdout is not None
            assert other.stdout.readline() == "refused\n"
            holder.kill()
            holder.wait()
            other.communicate("\n", timeout=60)
        assert other.returncode == 0
    assert read_books(share).used_bytes == 0


def test_a_fork_has_a_slot_of_its_own_and_leaves_the_parents_memory_to_the_parent(machine: "Machine") -> None:
    share = machine.share(64 * MIB)
    program = machine.start(f"""
        import os
        start()
        inherited = alloc({20 * MIB})
        child = os.fork()
        if child == 0:
            assert cuda.cuMemFree_v2(inherited) != SUCCESS  # which needs its shares
            say(os.getpid())
            wait_for_line()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert info()[0] == {44 * MIB}, info()
        free(inherited)
        assert info()[0] == {64 * MIB}, info()
    """)
    with program:
        assert program.stdout is not None
        child = int(program.stdout.readline())
        processes = {process.pid: process.memory_bytes for process in read_books(share).processes}
        assert processes == {program.pid: 20 * MIB, child: 0}
        program.communicate("\n", timeout=60)
    assert program.returncode == 0
    assert read_books(share).used_bytes == 0


def test_threads_that_allocate_launch_and_die_leave_the_books_exact(machine: "Machine", threads_program: Path) -> None:
    share = machine.share(40 * MIB)
    run = subprocess.run(
        [threads_program], env=machine.environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, f"{40 * MIB} of {40 * MIB}\n", "")
    assert read_card(machine.card).peak_bytes <= 40 * MIB
    assert read_books(share).out_of_memory > 0


@pytest.mark.parametrize("function", ALLOCATORS)
def test_an_allocation_that_fails_in_the_driver_leaves_the_books_exact(function: str, machine: "Machine") -> None:
    share = machine.share(64 * MIB)
    program = machine.start(f"""
        start()
        say("ready")
        wait_for_line()
        SIZE = {48 * MIB}
        {ALLOCATORS[function]}
        assert r == 999, r
        assert info()[0] == {64 * MIB}, info()
        {ALLOCATORS[function]}
        assert r == SUCCESS, r
        assert info()[0] == {16 * MIB}, info()
    """)
    with program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        asked = function.removesuffix("_ptsz").replace("cuMemAllocAsync", "cuMemAllocFromPoolAsync")
        inject_fault(machine.card, asked, 1, 999)
        program.communicate("\n", timeout=60)
    assert program.returncode == 0
    assert read_books(share).used_bytes == 0


CHURN = """
import random, sys
start()
random.seed({seed})
live = []
say("going")
while True:
    if live and random.random() < 0.5:
        free(live.pop(random.randrange(len(live))))
    else:
        result, pointer = try_alloc(random.randrange(1, {most}))
        if result == SUCCESS:
            live.append(pointer)
        else:
            assert result == OUT_OF_MEMORY, result
            if live:
                free(live.pop())
"""


def test_eight_processes_that_are_killed_at_random_never_exceed_the_share(machine: "Machine") -> None:
    limit = 200 * MIB
    # A card that is exactly as large as the share: one byte over the share and the driver itself has no room.
    create_card(machine.card, 0, replace(GPU, memory_bytes=limit))
    share = machine.share(limit)
    chosen = random.Random(7)
    programs: list[subprocess.Popen[str]] = []
    refused_by_driver = 0
    try:
        for _ in range(24):
            while len(programs) < 8:
                program = machine.start(CHURN.format(seed=chosen.random(), most=30 * MIB))
                programs.append(program)
                assert program.stdout is not None
                assert program.stdout.readline() == "going\n"
            victim = programs.pop(chosen.randrange(len(programs)))
            victim.send_signal(signal.SIGKILL)
            victim.communicate()
            card = read_card(machine.card)
            assert card.used_bytes <= limit
            refused_by_driver += sum(process.out_of_memory for process in card.processes)
    finally:
        for program in programs:
            program.kill()
            program.communicate()
    assert refused_by_driver == 0
    assert read_books(share).out_of_memory > 0
    assert read_books(share).used_bytes == 0
    machine.run(f"start(); alloc({limit})")


def test_a_graph_that_waits_for_room_in_the_queue_holds_up_nobody_else(machine: "Machine") -> None:
    machine.share(64 * MIB)
    output = machine.run(f"""
        import ctypes, threading, time
        context = start()
        pointer, stream, graph, graph_exec = Pointer(), c_void_p(), c_void_p(), c_void_p()
        check(cuda.cuStreamCreate(byref(stream), 1))
        check(cuda.cuStreamBeginCapture_v2(stream, 2))
        check(cuda.cuMemAllocAsync(byref(pointer), c_size_t({MIB}), stream))
        check(cuda.cuMemFreeAsync(pointer, stream))
        check(cuda.cuStreamEndCapture(stream, byref(graph)))
        check(cuda.cuGraphInstantiateWithFlags(byref(graph_exec), graph, c_ulonglong(0)))
        check(cuda.cuGraphLaunch(graph_exec, stream))
        synchronize()
        blocking, go, launched = threading.Event(), threading.Event(), []
        callback = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: (blocking.set(), go.wait()) and None)
        check(cuda.cuLaunchHostFunc(stream, callback, None))

        def launch_many():
            check(cuda.cuCtxSetCurrent(context))
            for _ in range(3000):
                check(cuda.cuGraphLaunch(graph_exec, stream))
                launched.append(1)

        def ask():
            check(cuda.cuCtxSetCurrent(context))
            say(info()[0])

        blocking.wait()
        launcher, asker = threading.Thread(target=launch_many), threading.Thread(target=ask)
        launcher.start()
        seen = 0
        while not seen or seen != len(launched):  # until it is stuck
            seen = len(launched)
            time.sleep(0.2)
        assert seen < 3000
        asker.start()
        asker.join(60)
        say("held up" if asker.is_alive() else "free")
        go.set()
        launcher.join()
        asker.join()
        say(info()[0])
    """)
    assert output.split() == [str(63 * MIB), "free", str(63 * MIB)]


def test_graphs_that_keep_their_memory_stay_within_the_share_together(machine: "Machine") -> None:
    share = machine.share(64 * MIB)
    machine.run(f"""
        start()
        stream = c_void_p()
        check(cuda.cuStreamCreate(byref(stream), 1))

        def graph_of(frees):
            pointer, graph, graph_exec = Pointer(), c_void_p(), c_void_p()
            check(cuda.cuStreamBeginCapture_v2(stream, 2))
            check(cuda.cuMemAllocAsync(byref(pointer), c_size_t({40 * MIB}), stream))
            if frees:
                check(cuda.cuMemFreeAsync(pointer, stream))
            check(cuda.cuStreamEndCapture(stream, byref(graph)))
            check(cuda.cuGraphInstantiateWithFlags(byref(graph_exec), graph, c_ulonglong(0)))
            return graph_exec

        for graph in [graph_of(True), graph_of(True), graph_of(False)]:  # in turn they fit
            check(cuda.cuGraphLaunch(graph, stream))
            synchronize()
        assert cuda.cuGraphLaunch(graph_of(False), stream) == OUT_OF_MEMORY
        assert info()[0] == {24 * MIB}, info()
    """)
    assert read_card(machine.card).peak_bytes <= 64 * MIB
    assert read_books(share).used_bytes == 0
