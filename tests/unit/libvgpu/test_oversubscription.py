"""Past the share, where it allows that: memory on the host, bounded, and in the books of both sides."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from libvgpu.layout import layout
from libvgpu.shares import read_books
from libvgpu.stub import inject_fault, read_card

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20


@pytest.fixture
def share(machine: "Machine") -> Path:
    """Return a share of 64 MiB that may have 100 MiB on the host."""
    return machine.share(64 * MIB, oversubscribe=True, host_memory_bytes=100 * MIB)


def test_what_the_share_has_no_room_for_lies_on_the_host(machine: "Machine", share: Path) -> None:
    program = machine.start(f"""
        start()
        first = alloc({60 * MIB})
        past = alloc({80 * MIB})
        check(cuda.cuMemsetD8_v2(past, 7, c_size_t({80 * MIB})))
        pitch, pitched = c_size_t(), Pointer()
        check(cuda.cuMemAllocPitch_v2(byref(pitched), byref(pitch), c_size_t(1000), c_size_t({10 * MIB // 1024}), 4))
        assert pitch.value == 1024
        assert try_alloc({11 * MIB})[0] == OUT_OF_MEMORY  # neither here nor there
        alloc({4 * MIB})
        say("holding")
        wait_for_line()
        free(past)
        check(cuda.cuMemFreeAsync(pitched, None))
        free(first)
        say("freed")
        wait_for_line()
    """)
    with program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "holding\n"
        card, books = read_card(machine.card), read_books(share)
        assert (card.used_bytes, books.used_bytes) == (64 * MIB, 64 * MIB)
        assert (sum(process.host_bytes for process in card.processes), books.host_bytes) == (90 * MIB, 90 * MIB)
        assert books.out_of_memory == 1
        print(file=program.stdin, flush=True)
        assert program.stdout.readline() == "freed\n"
        assert (read_books(share).used_bytes, read_books(share).host_bytes) == (4 * MIB, 0)
        program.communicate("\n", timeout=60)
    assert program.returncode == 0
    assert read_card(machine.card).peak_bytes == 64 * MIB


def test_a_setting_that_has_all_managed_memory_on_the_device_leaves_nothing_past_the_share(
    machine: "Machine", share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_MANAGED_FORCE_DEVICE_ALLOC", "1")
    machine.run(f"start(); alloc({60 * MIB}); assert try_alloc({80 * MIB})[0] == OUT_OF_MEMORY")
    assert read_books(share).host_bytes == 0


def test_the_end_of_a_context_ends_what_it_had_on_the_host(machine: "Machine", share: Path) -> None:
    machine.run(f"""
        start()
        alloc({64 * MIB})
        alloc({100 * MIB})
        check(cuda.cuDevicePrimaryCtxReset_v2(0))
        start()
        alloc({64 * MIB})
        alloc({100 * MIB})
    """)
    assert read_books(share).host_bytes == 0


def test_processes_share_the_room_on_the_host_and_a_killed_one_gives_it_back(machine: "Machine", share: Path) -> None:
    holder = machine.start(f"start(); alloc({64 * MIB}); alloc({70 * MIB}); say('holding'); wait_for_line()")
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        machine.run(f"start(); assert try_alloc({31 * MIB})[0] == OUT_OF_MEMORY; alloc({30 * MIB})")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    machine.run(f"start(); alloc({64 * MIB}); alloc({100 * MIB})")
    assert read_books(share).host_bytes == 0


def test_what_lies_on_the_host_cannot_be_moved_to_the_device(machine: "Machine", share: Path) -> None:
    machine.run(f"""
        start()
        first = alloc({64 * MIB})
        past, size, inside = alloc({100 * MIB}), c_size_t({100 * MIB}), Pointer()
        inside.value = past.value + {MIB}
        location = (c_int * 2)(1, 0)
        for pointer in (past, inside):
            size = c_size_t({MIB})
            check(cuda.cuMemPrefetchAsync(pointer, size, 0, None))
            check(cuda.cuMemPrefetchAsync_ptsz(pointer, size, 0, None))
            check(cuda.cuMemPrefetchAsync_v2(pointer, size, c_ulonglong(1), 0, None))
            check(cuda.cuMemAdvise(pointer, size, 3, 0))
            check(cuda.cuMemAdvise_v2(pointer, size, 3, c_ulonglong(1)))
            one, zero = (c_size_t * 1)({MIB}), (c_size_t * 1)(0)
            for move in (cuda.cuMemPrefetchBatchAsync, cuda.cuMemDiscardAndPrefetchBatchAsync_ptsz):
                what = (Pointer * 1)(pointer)
                result = move(what, one, c_size_t(1), location, zero, c_size_t(1), c_ulonglong(0), None)
                assert result == NOT_SUPPORTED, result
    """)
    assert read_card(machine.card).peak_bytes == 64 * MIB


def test_a_share_that_does_not_allow_it_gets_nothing_on_the_host(machine: "Machine") -> None:
    machine.share(64 * MIB, host_memory_bytes=100 * MIB)
    machine.run(f"start(); alloc({64 * MIB}); assert try_alloc(1)[0] == OUT_OF_MEMORY")


@pytest.mark.parametrize("function", ["cuMemAllocManaged", "cuMemAdvise", "cuStreamAttachMemAsync"])
def test_a_driver_that_cannot_do_it_leaves_nothing_behind(function: str, machine: "Machine", share: Path) -> None:
    inject_fault(machine.card, function, 1, 999)
    machine.run(f"""
        start()
        alloc({64 * MIB})
        assert try_alloc({100 * MIB})[0] == OUT_OF_MEMORY
        alloc({100 * MIB})
    """)
    assert read_books(share).out_of_memory == 1


ASYNC = {
    "default pool": "cuda.cuMemAllocAsync(byref(p), c_size_t(size), None)",
    "per thread": "cuda.cuMemAllocAsync_ptsz(byref(p), c_size_t(size), None)",
    "own pool": "cuda.cuMemAllocFromPoolAsync(byref(p), c_size_t(size), pool, None)",
    "own pool, per thread": "cuda.cuMemAllocFromPoolAsync_ptsz(byref(p), c_size_t(size), pool, None)",
}


@pytest.mark.parametrize("way", ASYNC)
def test_stream_ordered_memory_past_the_share_lies_on_the_host_too(way: str, machine: "Machine", share: Path) -> None:
    # What a framework does with its allocator set to cudaMallocAsync.
    program = machine.start(f"""
        start()
        pool = c_void_p()
        check(cuda.cuMemPoolCreate(byref(pool), (c_int * 22)(1, 0, 1, 0)))
        def take(size):
            p = Pointer()
            return {ASYNC[way]}, p
        def takes(size):
            result, p = take(size)
            check(result)
            check(cuda.cuMemsetD8Async(p, 7, c_size_t(size), None))
            return p
        blocks = [takes({16 * MIB}) for _ in range(10)]  # four here, six there
        assert take({5 * MIB})[0] == OUT_OF_MEMORY
        say("holding")
        wait_for_line()
        for block in blocks: check(cuda.cuMemFreeAsync(block, None))
        synchronize()
        info()
        say("freed")
        wait_for_line()
        for free_again in [lambda p: cuda.cuMemFreeAsync(p, None), cuda.cuMemFree_v2] * 10:
            two = takes({60 * MIB}), takes({60 * MIB})
            for p in two: check(free_again(p))
        synchronize()
        info()
        say("done")
        wait_for_line()
    """)
    with program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "holding\n"
        card, books = read_card(machine.card), read_books(share)
        assert (card.used_bytes, books.used_bytes) == (64 * MIB, 64 * MIB)
        assert (sum(process.host_bytes for process in card.processes), books.host_bytes) == (96 * MIB, 96 * MIB)
        assert books.out_of_memory == 1
        for word in ("freed\n", "done\n"):
            print(file=program.stdin, flush=True)
            assert program.stdout.readline() == word
            card, books = read_card(machine.card), read_books(share)
            assert (books.used_bytes, books.host_bytes) == (card.used_bytes, 0) == (0, 0)
        program.communicate("\n", timeout=60)
    assert program.returncode == 0
    assert read_card(machine.card).peak_bytes == 64 * MIB


def test_memory_on_the_host_is_freed_though_the_driver_cannot_do_it_in_stream_order(
    machine: "Machine", share: Path
) -> None:
    inject_fault(machine.card, "cuMemFreeAsync", 1, 1)  # CUDA_ERROR_INVALID_VALUE
    machine.run(f"""
        start()
        alloc({64 * MIB})
        p = Pointer()
        check(cuda.cuMemAllocAsync(byref(p), c_size_t({100 * MIB}), None))
        check(cuda.cuMemFreeAsync(p, None))
        alloc({100 * MIB})
    """)
    assert read_books(share).out_of_memory == 0


def test_what_a_graph_allocates_stays_on_the_device_or_is_refused(machine: "Machine", share: Path) -> None:
    machine.run(f"""
        start()
        alloc({60 * MIB})
        stream, graph, executable, p = c_void_p(), c_void_p(), c_void_p(), Pointer()
        check(cuda.cuStreamCreate(byref(stream), 1))
        check(cuda.cuStreamBeginCapture_v2(stream, 0))
        check(cuda.cuMemAllocAsync(byref(p), c_size_t({10 * MIB}), stream))
        check(cuda.cuMemFreeAsync(p, stream))
        check(cuda.cuStreamEndCapture(stream, byref(graph)))
        check(cuda.cuGraphInstantiateWithFlags(byref(executable), graph, c_ulonglong(0)))
        assert cuda.cuGraphLaunch(executable, stream) == OUT_OF_MEMORY
    """)
    assert read_books(share).host_bytes == 0


def test_a_process_that_lies_about_what_it_has_on_the_host_gets_no_more(machine: "Machine", share: Path) -> None:
    machine.run(f"""
        import os
        books = os.open({str(share / "books")!r}, os.O_RDWR)
        start()
        alloc({64 * MIB})
        past = alloc({90 * MIB})
        for slot in range(4):
            os.pwrite(books, bytes(8), 4096 + 256 * slot + {layout().ffi.offsetof("struct vgpu_slot", "host_bytes")})
        assert try_alloc({90 * MIB})[0] == OUT_OF_MEMORY
        free(past)
        alloc({90 * MIB})
    """)
    assert read_card(machine.card).processes[0].host_bytes <= 100 * MIB
