"""What the driver takes that no call asks for: charged, and checked against what the simulated card itself counted."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from libvgpu.shares import change_limits, read_books
from libvgpu.stub import StubGPU, StubSettings, change_settings, create_card, read_card

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
GPU = StubGPU(name="Stub", memory_bytes=1 << 30, uuid="GPU-00000000-0000-4000-8000-000000000001")


def _settle(machine: "Machine", **settings: int) -> None:
    create_card(machine.card, 0, replace(GPU, settings=StubSettings(**settings)))


def _compare(machine: "Machine", share: Path, code: str) -> int:
    """Run a program that holds something at its end; return the bytes that both books and card have of it."""
    program = machine.start(code + "\nsay('holding'); wait_for_line()")
    with program:
        assert program.stdout is not None
        assert program.stdout.readline() == "holding\n"
        counted, booked = read_card(machine.card).used_bytes, read_books(share).used_bytes
        program.communicate("\n", timeout=60)
    assert program.returncode == 0
    assert booked == counted
    return booked


def test_a_context_is_charged_for_what_it_takes_itself(machine: "Machine") -> None:
    _settle(machine, context_bytes=100 * MIB)
    share = machine.share(256 * MIB)
    held = f"start(); assert info()[0] == {156 * MIB}, info(); alloc({10 * MIB})"
    assert _compare(machine, share, held) == 110 * MIB
    _settle(machine, context_bytes=100 * MIB)
    machine.run(f"""
        start()
        context = c_void_p()
        check(cuda.cuCtxCreate_v2(byref(context), 0, 0))
        assert info()[0] == {56 * MIB}, info()
        assert cuda.cuCtxCreate_v2(byref(c_void_p()), 0, 0) == OUT_OF_MEMORY
        assert try_alloc({60 * MIB})[0] == OUT_OF_MEMORY
        check(cuda.cuCtxDestroy_v2(context))
        start()
        assert info()[0] == {156 * MIB}, info()
        check(cuda.cuDevicePrimaryCtxReset_v2(0))
    """)
    assert read_card(machine.card).peak_bytes == 200 * MIB
    assert read_books(share).used_bytes == 0


def test_the_first_context_that_does_not_fit_leaves_nothing_behind(machine: "Machine") -> None:
    _settle(machine, context_bytes=100 * MIB)
    share = machine.share(64 * MIB)
    assert (
        _compare(
            machine,
            share,
            """
check(cuda.cuInit(0))
assert cuda.cuDevicePrimaryCtxRetain(byref(c_void_p()), 0) == OUT_OF_MEMORY
assert cuda.cuCtxCreate_v2(byref(c_void_p()), 0, 0) == OUT_OF_MEMORY
active = c_int()
check(cuda.cuDevicePrimaryCtxGetState(0, byref(c_uint()), byref(active)))
assert active.value == 0
""",
        )
        == 0
    )


def test_a_context_reserves_what_the_last_one_took_before_the_driver_is_asked(machine: "Machine") -> None:
    _settle(machine, context_bytes=100 * MIB)
    machine.share(150 * MIB)
    first = machine.start("start(); say('holding'); wait_for_line()")
    with first:
        assert first.stdout is not None
        assert first.stdout.readline() == "holding\n"
        machine.run(
            "check(cuda.cuInit(0)); assert cuda.cuDevicePrimaryCtxRetain(byref(c_void_p()), 0) == OUT_OF_MEMORY"
        )
        first.communicate("\n", timeout=60)
    assert read_card(machine.card).peak_bytes == 100 * MIB


def test_a_module_is_charged_for_what_it_takes_or_is_not_loaded(machine: "Machine") -> None:
    _settle(machine, context_bytes=100 * MIB, module_bytes=40 * MIB)
    share = machine.share(200 * MIB)
    load = """
image = b".version 8.0\\n.target sm_80\\n.address_size 64\\n.visible .entry none() { ret; }\\n"
def load():
    module = c_void_p()
    return cuda.cuModuleLoadData(byref(module), image), module
"""
    held = f"{load}start(); check(load()[0]); check(load()[0]); assert load()[0] == OUT_OF_MEMORY"
    assert _compare(machine, share, held) == 180 * MIB
    machine.run(f"{load}start(); _, module = load(); check(cuda.cuModuleUnload(module)); alloc({100 * MIB})")


def test_a_context_costs_what_the_limits_say_where_the_driver_does_not_name_the_process(machine: "Machine") -> None:
    _settle(machine, context_bytes=100 * MIB)
    share = machine.share(150 * MIB, context_bytes=100 * MIB)
    machine.remove_nvml()
    held = (
        f"start(); assert info()[0] == {50 * MIB}, info(); check(cuda.cuDevicePrimaryCtxRetain(byref(c_void_p()), 0))"
    )
    assert _compare(machine, share, held) == 100 * MIB
    machine.run("start(); assert cuda.cuCtxCreate_v2(byref(c_void_p()), 0, 0) == OUT_OF_MEMORY")


@pytest.mark.parametrize(("limit", "free"), [(1, 1), (2, 8)], ids=["printf", "heap"])
def test_a_bigger_heap_is_charged_when_it_is_asked_for(limit: int, free: int, machine: "Machine") -> None:
    share = machine.share(64 * MIB)
    held = f"""
start()
def limit(size): return cuda.cuCtxSetLimit({limit}, c_size_t(size))
assert limit({(65 + free) * MIB}) == OUT_OF_MEMORY
check(limit({(30 + free) * MIB}))
assert info()[0] == {34 * MIB}, info()
check(limit({free * MIB}))
assert info()[0] == {64 * MIB}, info()
check(limit({(40 + free) * MIB}))
"""
    assert _compare(machine, share, held) == 40 * MIB
    machine.run(held + f"check(cuda.cuDevicePrimaryCtxReset_v2(0)); start(); assert info()[0] == {64 * MIB}, info()")


def test_managed_memory_that_lies_on_the_host_does_not_hide_what_a_context_takes(machine: "Machine") -> None:
    _settle(machine, context_bytes=50 * MIB, module_bytes=10 * MIB)
    machine.share(200 * MIB)
    machine.run(f"""
        start()
        pointer = Pointer()
        check(cuda.cuMemAllocManaged(byref(pointer), c_size_t({100 * MIB}), 2))  # starts on the host
        kernel()
        free(pointer)
        kernel()
        assert info()[0] == {130 * MIB}, info()
    """)


def test_a_module_has_no_room_where_managed_memory_on_the_host_will_come(machine: "Machine") -> None:
    _settle(machine, context_bytes=10 * MIB, module_bytes=50 * MIB)
    machine.share(100 * MIB)
    machine.run(f"""
        start()
        pointer = Pointer()
        check(cuda.cuMemAllocManaged(byref(pointer), c_size_t({64 * MIB}), 2))  # starts on the host
        image = b".version 8.0\\n.target sm_80\\n.address_size 64\\n"
        assert cuda.cuModuleLoadData(byref(c_void_p()), image) == OUT_OF_MEMORY
        assert info()[0] == {26 * MIB}, info()
        check(cuda.cuMemPrefetchAsync(pointer, c_size_t({64 * MIB}), 0, None))
        synchronize()
    """)
    assert read_card(machine.card).peak_bytes == 74 * MIB


@pytest.mark.parametrize("kind", ["array", "mipmap"])
def test_the_tiles_of_an_array_are_charged_or_there_is_no_array(kind: str, machine: "Machine") -> None:
    _settle(machine, array_tile_bytes=16 * MIB)
    share = machine.share(40 * MIB)
    create = {
        "array": f"cuda.cuArrayCreate_v2(byref(p), (c_ulonglong * 3)({MIB}, 17, 0x0100000001))",
        "mipmap": f"cuda.cuMipmappedArrayCreate(byref(p), (c_ulonglong * 5)({MIB}, 17, 0, 0x0100000001, 0), 1)",
    }[kind]
    destroy = {"array": "cuda.cuArrayDestroy(p)", "mipmap": "cuda.cuMipmappedArrayDestroy(p)"}[kind]
    held = f"""
start()
p = c_void_p()
check({create})
assert info()[0] == {8 * MIB}, info()
check({destroy})
assert info()[0] == {40 * MIB}, info()
other = alloc({10 * MIB})  # room for the elements, but not for the tiles
assert {create} == OUT_OF_MEMORY
free(other)
check({create})
"""
    assert _compare(machine, share, held) == 32 * MIB


def test_code_that_is_loaded_by_a_first_launch_is_charged_at_the_next_allocation(machine: "Machine") -> None:
    _settle(machine, context_bytes=MIB, lazy_bytes=20 * MIB)
    share = machine.share(256 * MIB)
    held = f"""
start()
one, two = kernel(), kernel("other")
alloc({MIB})
launch(one, 1000)
alloc({MIB})
assert info()[0] == {233 * MIB}, info()
launch(one, 1000)
check(try_launch(two, 1000))
launch(two, 1000)
alloc({MIB})
assert info()[0] == {212 * MIB}, info()
"""
    assert _compare(machine, share, held) == 44 * MIB


def test_functions_whose_code_has_no_room_are_not_launched(machine: "Machine") -> None:
    _settle(machine, context_bytes=MIB, lazy_bytes=8 * MIB)
    share = machine.share(100 * MIB)
    held = f"""
start()
functions = [kernel(name) for name in ("one", "two", "three")]
memory = alloc({90 * MIB})
launch(functions[0], 1000)
assert info()[0] == {MIB}, info()
launch(functions[1], 1000)  # nobody knows before how much its code is
assert try_launch(functions[2], 1000) == OUT_OF_MEMORY
launch(functions[1], 1000)
assert info()[0] == 0, info()
check(cuda.cuMemsetD8_v2(memory, 0, c_size_t(16)))
free(memory)
launch(functions[2], 1000)
synchronize()
check(cuda.cuMemCreate(byref(Pointer()), c_size_t({2 * MIB}), (c_int * 16)(1, 0, 1, 0), c_ulonglong(0)))
"""
    assert _compare(machine, share, held) == 27 * MIB
    assert read_card(machine.card).peak_bytes == 107 * MIB


def test_code_is_charged_also_where_nothing_is_allocated_after_it(machine: "Machine") -> None:
    _settle(machine, context_bytes=MIB, lazy_bytes=8 * MIB)
    share = machine.share(1 << 30)
    assert _compare(machine, share, "start(); launch(kernel(), 1000); synchronize()") == 9 * MIB


def test_while_nvml_cannot_say_what_is_taken_stays_charged_and_nothing_is_loaded(machine: "Machine") -> None:
    _settle(machine, context_bytes=100 * MIB, module_bytes=10 * MIB)
    machine.share(256 * MIB)
    program = machine.start(f"""
        start()
        say("started")
        wait_for_line()
        image = b".version 8.0\\n.target sm_80\\n.address_size 64\\n"
        assert cuda.cuModuleLoadData(byref(c_void_p()), image) == OUT_OF_MEMORY
        assert info()[0] == {156 * MIB}, info()
        assert cuda.cuCtxCreate_v2(byref(c_void_p()), 0, 0) == OUT_OF_MEMORY
        say("refused")
        wait_for_line()
        kernel()
        assert info()[0] == {146 * MIB}, info()
    """)
    with program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "started\n"
        change_settings(machine.card, lost=1)
        print(file=program.stdin, flush=True)
        assert program.stdout.readline() == "refused\n"
        change_settings(machine.card, lost=0)
        program.communicate("\n", timeout=60)
    assert program.returncode == 0


def test_threads_that_make_a_primary_context_at_once_make_one(machine: "Machine") -> None:
    _settle(machine, context_bytes=50 * MIB)
    machine.share(1 << 30, context_bytes=50 * MIB)
    machine.remove_nvml()
    for _ in range(6):  # the first time takes long enough for others to come between
        machine.run(f"""
            import threading
            check(cuda.cuInit(0))
            barrier, results = threading.Barrier(12), []
            def retain():
                barrier.wait()
                results.append(cuda.cuDevicePrimaryCtxRetain(byref(c_void_p()), 0))
            threads = [threading.Thread(target=retain) for _ in range(12)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            assert results == [SUCCESS] * 12, results
            start()
            assert info()[0] == {(1024 - 50) * MIB}, info()
            check(cuda.cuCtxSetCurrent(None))
            for _ in range(13): check(cuda.cuDevicePrimaryCtxRelease_v2(0))
        """)


@pytest.mark.parametrize("nvml", [True, False], ids=["nvml", "no nvml"])
def test_what_the_driver_rounds_an_allocation_up_to_is_reserved_before(nvml: bool, machine: "Machine") -> None:
    _settle(machine, granularity_bytes=2 * MIB)
    machine.share(64 * MIB)
    if not nvml:
        machine.remove_nvml()
    machine.run(f"""
        start()
        pitch = c_size_t()
        check(cuda.cuMemAllocPitch_v2(byref(Pointer()), byref(pitch), c_size_t(1000), c_size_t(1025), 4))
        pointers = []
        while (made := try_alloc({MIB} + 1))[0] == SUCCESS: pointers.append(made[1])
        assert len(pointers) == 31, len(pointers)
        for pointer in pointers: free(pointer)
        assert info()[0] == {62 * MIB}, info()
    """)
    assert read_card(machine.card).peak_bytes == 64 * MIB


def test_an_application_that_ends_nvml_ends_it_for_itself_alone(machine: "Machine") -> None:
    _settle(machine, module_bytes=40 * MIB)
    share = machine.share(64 * MIB)
    machine.run("""
        NVML_ERROR_UNINITIALIZED = 1
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        def end_twice():
            check(nvml.nvmlInit_v2())
            check(nvml.nvmlInitWithFlags(0))
            check(nvml.nvmlShutdown())
            check(nvml.nvmlShutdown())
            assert nvml.nvmlShutdown() == NVML_ERROR_UNINITIALIZED
        end_twice()
        assert nvml.nvmlDeviceGetCount_v2(byref(c_uint())) == NVML_ERROR_UNINITIALIZED
        start()
        assert nvml.nvmlShutdown() == NVML_ERROR_UNINITIALIZED
        end_twice()
        kernel()
        image = b".version 8.0\\n.target sm_80\\n.address_size 64\\n"
        assert cuda.cuModuleLoadData(byref(c_void_p()), image) == OUT_OF_MEMORY
    """)
    assert read_books(share).peak_bytes == 40 * MIB


def test_what_only_the_driver_sees_is_taken_off_the_share(machine: "Machine") -> None:
    share = machine.share(64 * MIB)
    program = machine.start(f"""
        start()
        kept = alloc({10 * MIB})
        say("holding")
        wait_for_line()
        assert info() == ({14 * MIB}, {64 * MIB}), info()
        assert try_alloc({15 * MIB})[0] == OUT_OF_MEMORY
        free(alloc({14 * MIB}))
        say("full")
        wait_for_line()
        assert info()[0] == 0, info()
        assert try_alloc({MIB})[0] == OUT_OF_MEMORY
        free(kept)
    """)
    with program:
        assert program.stdout is not None
        assert program.stdin is not None
        assert program.stdout.readline() == "holding\n"
        change_limits(share, lambda limits: replace(limits, unseen_bytes=40 * MIB))
        print(file=program.stdin, flush=True)
        assert program.stdout.readline() == "full\n"
        change_limits(share, lambda limits: replace(limits, unseen_bytes=1 << 40))  # more than there is
        program.communicate("\n", timeout=60)
    assert program.returncode == 0
