"""Managed memory that moves: charged where it was allocated, and on every other card that it is moved to by name."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from libvgpu.shares import read_books
from libvgpu.stub import change_settings, create_driver_root, inject_fault, read_card
from tests.unit.libvgpu.conftest import GPU, SECOND_GPU

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
HELPERS = f"""
location, here, host = (c_int * 2)(1, 1), (c_int * 2)(1, 0), (c_int * 2)(2, 0)
start(1)
start(0)

def managed(size=40 * {MIB}):
    pointer = Pointer()
    check(cuda.cuMemAllocManaged(byref(pointer), c_size_t(size), 1))
    return pointer

def by_value(location):
    return c_ulonglong.from_buffer_copy(location)

def batch(function):
    def move(pointer, to):
        zero, one, size = (c_size_t * 1)(0), c_size_t(1), (c_size_t * 1)(MIB)
        return function((Pointer * 1)(pointer), size, one, to, zero, one, c_ulonglong(0), None)
    return move

MIB, SIZE = {MIB}, c_size_t({MIB})
WAYS = {{
    "cuMemPrefetchAsync": lambda p, to: cuda.cuMemPrefetchAsync(p, SIZE, to[1] if to[0] == 1 else -1, None),
    "cuMemPrefetchAsync_ptsz": lambda p, to: cuda.cuMemPrefetchAsync_ptsz(p, SIZE, to[1] if to[0] == 1 else -1, None),
    "cuMemPrefetchAsync_v2": lambda p, to: cuda.cuMemPrefetchAsync_v2(p, SIZE, by_value(to), 0, None),
    "cuMemPrefetchAsync_v2_ptsz": lambda p, to: cuda.cuMemPrefetchAsync_v2_ptsz(p, SIZE, by_value(to), 0, None),
    "cuMemAdvise": lambda p, to: cuda.cuMemAdvise(p, SIZE, 3, to[1] if to[0] == 1 else -1),
    "cuMemAdvise_v2": lambda p, to: cuda.cuMemAdvise_v2(p, SIZE, 3, by_value(to)),
    "cuMemPrefetchBatchAsync": batch(cuda.cuMemPrefetchBatchAsync),
    "cuMemPrefetchBatchAsync_ptsz": batch(cuda.cuMemPrefetchBatchAsync_ptsz),
    "cuMemDiscardAndPrefetchBatchAsync": batch(cuda.cuMemDiscardAndPrefetchBatchAsync),
    "cuMemDiscardAndPrefetchBatchAsync_ptsz": batch(cuda.cuMemDiscardAndPrefetchBatchAsync_ptsz),
}}
"""


@pytest.fixture
def shares(machine: "Machine") -> tuple[Path, Path]:
    """Shares of 256 MiB and of 64 MiB, of two cards."""
    create_driver_root(machine.root, [GPU, SECOND_GPU])
    return (
        machine.share(256 * MIB, name="first"),
        machine.share(64 * MIB, name="second", device_uuid=SECOND_GPU.uuid),
    )


def _second(machine: "Machine") -> Path:
    return machine.root / "dev" / "nvidia1"


def test_managed_memory_is_charged_on_another_card_that_it_is_moved_to_or_does_not_go(
    machine: "Machine", shares: tuple[Path, Path]
) -> None:
    machine.run(
        HELPERS
        + f"""
def used_of_second():
    start(1)
    used = {64 * MIB} - info()[0]
    start(0)
    return used

for name, move in WAYS.items():
    first, other = managed(), managed()
    for _ in range(2):  # moved once more, it is there already
        check(move(Pointer(first.value + 5 * MIB), location))
    assert used_of_second() == {40 * MIB}, name
    assert move(other, location) == OUT_OF_MEMORY, name
    check(move(first, here))
    check(move(first, host))
    assert used_of_second() == {40 * MIB}, name  # whatever touches it there may bring it back
    free(first)
    assert used_of_second() == 0, name
    check(move(other, location))
    free(other)
    assert info()[0] == {256 * MIB}, name
"""
    )
    assert read_card(_second(machine)).peak_bytes == 40 * MIB
    assert [read_books(share).used_bytes for share in shares] == [0, 0]


@pytest.mark.usefixtures("shares")
def test_a_move_that_the_driver_refuses_charges_nothing(machine: "Machine") -> None:
    for name in ("cuMemPrefetchAsync_v2", "cuMemPrefetchBatchAsync", "cuMemAdvise"):
        inject_fault(machine.card, name, 1, 999)
    machine.run(
        HELPERS
        + f"""
pointer = managed()
for name in ("cuMemPrefetchAsync_v2", "cuMemPrefetchBatchAsync", "cuMemAdvise"):
    assert WAYS[name](pointer, location) == 999
start(1)
assert info()[0] == {64 * MIB}, info()
"""
    )


@pytest.mark.usefixtures("shares")
def test_the_end_of_its_context_ends_what_managed_memory_is_charged_elsewhere(machine: "Machine") -> None:
    machine.run(
        HELPERS
        + f"""
check(WAYS["cuMemPrefetchAsync"](managed(), location))
start(1)
assert info()[0] == {24 * MIB}, info()
check(cuda.cuDevicePrimaryCtxReset_v2(0))
assert info()[0] == {64 * MIB}, info()
"""
    )


def test_managed_memory_does_not_go_to_a_card_without_a_share(machine: "Machine") -> None:
    create_driver_root(machine.root, [GPU, SECOND_GPU])
    machine.share(256 * MIB)
    output, _ = machine.refused("""
        start()
        pointer = Pointer()
        check(cuda.cuMemAllocManaged(byref(pointer), c_size_t(4096), 1))
        print([cuda.cuMemPrefetchAsync(pointer, c_size_t(4096), device, None) for device in (0, 1)])
    """)
    assert output in ("[0, 800]\n", "[0, 101]\n")  # it is refused, or not seen at all
    assert read_card(_second(machine)).peak_bytes == 0


def test_memory_of_the_application_stays_on_the_host_where_a_card_could_take_it(machine: "Machine") -> None:
    change_settings(machine.card, pageable_access=1)
    machine.share(64 * MIB)
    machine.run(f"""
        start()
        block = ctypes.create_string_buffer({100 * MIB})
        check(cuda.cuMemPrefetchAsync(Pointer(ctypes.addressof(block)), c_size_t({100 * MIB}), 0, None))
    """)
    assert read_card(machine.card).peak_bytes == 0


def test_memory_of_a_managed_pool_is_charged_on_another_card_that_it_is_moved_to(
    machine: "Machine", shares: tuple[Path, Path]
) -> None:
    machine.run(
        HELPERS
        + f"""
MANAGED = 2
pool = c_void_p()
check(cuda.cuMemPoolCreate(byref(pool), (c_int * 22)(MANAGED, 0, 1, 0)))
def pooled():
    pointer = Pointer()
    check(cuda.cuMemAllocFromPoolAsync(byref(pointer), c_size_t({40 * MIB}), pool, None))
    return pointer
for give_back in (free, lambda pointer: check(cuda.cuMemFreeAsync(pointer, None))):
    first, other = pooled(), pooled()
    for name in ("cuMemPrefetchAsync", "cuMemPrefetchAsync_v2", "cuMemAdvise"):
        check(WAYS[name](first, location))
        start(1)
        assert info()[0] == {24 * MIB}, info()
        start(0)
        assert WAYS[name](other, location) == OUT_OF_MEMORY
    give_back(first)
    synchronize()
    start(1)
    assert info()[0] == {64 * MIB}, info()
    start(0)
    check(WAYS["cuMemPrefetchAsync"](other, location))
    give_back(other)
    synchronize()
check(cuda.cuMemPoolDestroy(pool))
"""
    )
    assert read_card(_second(machine)).peak_bytes == 40 * MIB
    assert [read_books(share).used_bytes for share in shares] == [0, 0]


def test_a_managed_pool_whose_memory_lies_on_the_host_does_not_hide_modules(machine: "Machine") -> None:
    change_settings(machine.card, module_bytes=50 * MIB, context_bytes=10 * MIB)
    machine.share(200 * MIB)
    machine.run(f"""
        start()
        pool, pointer = c_void_p(), Pointer()
        check(cuda.cuMemPoolCreate(byref(pool), (c_int * 22)(2, 0, 1, 0)))
        check(cuda.cuMemAllocFromPoolAsync(byref(pointer), c_size_t({100 * MIB}), pool, None))
        kernel()
        assert info()[0] == {40 * MIB}, info()
    """)
