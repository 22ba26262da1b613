"""Small allocations: the driver puts them into blocks of 2 MiB, each charged when it is taken and until it is empty."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from libvgpu.shares import read_books
from libvgpu.stub import StubGPU, StubSettings, create_card, read_card
from tests.unit.libvgpu.exactly import run_exactly

if TYPE_CHECKING:
    import subprocess

    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
GPU = StubGPU(name="Stub", memory_bytes=1 << 30, uuid="GPU-00000000-0000-4000-8000-000000000001")

PRELUDE = """
import random
from libvgpu.stub import inject_fault

start()
"""


@pytest.fixture(params=["nvml", "no nvml"])
def blocks(request: pytest.FixtureRequest, machine: "Machine") -> "Machine":
    """A card that gives out memory as real ones do; what is charged does not depend on NVML."""
    create_card(machine.card, 0, replace(GPU, settings=StubSettings(granularity_bytes=2 * MIB)))
    if request.param != "nvml":
        machine.remove_nvml()
    return machine


def _run(machine: "Machine", share: Path, code: str) -> None:
    run_exactly(machine, share, PRELUDE + code)


def test_a_block_is_charged_with_its_first_allocation_and_until_its_last_one_is_freed(blocks: "Machine") -> None:
    _run(
        blocks,
        blocks.share(64 * MIB),
        f"""
first = alloc(1)
assert exact() == {2 * MIB} == {64 * MIB} - info()[0]
second = alloc({MIB})
assert exact() == {2 * MIB}
third = alloc({MIB})  # no place left
assert exact() == {4 * MIB} == {64 * MIB} - info()[0]
free(first)
assert exact() == {4 * MIB}
free(second)
assert exact() == {2 * MIB}
free(third)
assert exact() == 0
""",
    )


def test_the_books_are_exact_after_each_of_many_allocations_of_all_sizes(blocks: "Machine") -> None:
    _run(
        blocks,
        blocks.share(48 * MIB),
        f"""
chance, live, refused = random.Random(4), [], 0
for _ in range(200):
    if live and chance.random() < 0.45:
        free(live.pop(chance.randrange(len(live))))
    else:
        result, pointer = try_alloc(int(2 ** chance.uniform(0, 22)))
        assert result in (SUCCESS, OUT_OF_MEMORY)
        refused += result != SUCCESS
        live += [pointer] * (result == SUCCESS)
    assert exact() <= {48 * MIB}
while live:
    free(live.pop())
assert exact() == 0
""",
    )


def test_small_allocations_fill_a_share_to_its_last_byte(blocks: "Machine") -> None:
    _run(
        blocks,
        blocks.share(16 * MIB),
        f"""
live = []
while (made := try_alloc({64 << 10}))[0] == SUCCESS: live.append(made[1])
assert len(live) == 256, len(live)
assert exact() == {16 * MIB}
free(live[5])
assert try_alloc({65 << 10})[0] == OUT_OF_MEMORY
alloc({64 << 10})
assert exact() == {16 * MIB}
""",
    )


def test_what_finds_no_place_in_a_full_share_takes_one_block_too_many_for_a_moment_at_most(blocks: "Machine") -> None:
    share = blocks.share(8 * MIB)
    _run(
        blocks,
        share,
        f"""
live = [alloc({512 << 10}) for _ in range(16)]
for pointer in live[::2]: free(pointer)
assert exact() == {8 * MIB}  # half of each block is free, and no MiB of it in one piece
assert try_alloc({MIB})[0] == OUT_OF_MEMORY
assert exact() == {8 * MIB}
asked = read_card(CARD).peak_bytes
assert asked == {10 * MIB}, asked
inject_fault(CARD, "cuMemAlloc_v2", 1, 999)
assert try_alloc({MIB})[0] == OUT_OF_MEMORY  # the driver is not asked again before something is freed
assert try_alloc({512 << 10})[0] == 999
alloc({512 << 10})
free(live[1])
alloc({MIB})
assert exact() == {8 * MIB}
""",
    )


def test_the_end_of_a_context_gives_its_blocks_back(blocks: "Machine") -> None:
    _run(
        blocks,
        blocks.share(16 * MIB),
        f"""
kept, context = alloc(1), c_void_p()
check(cuda.cuCtxCreate_v2(byref(context), 0, 0))
alloc(1)
alloc({MIB})
assert exact() == {4 * MIB}
check(cuda.cuCtxDestroy_v2(context))
assert exact() == {2 * MIB}
check(cuda.cuDevicePrimaryCtxReset_v2(0))
assert exact() == 0
""",
    )


def test_rows_with_a_pitch_lie_in_blocks_too_where_they_are_small(blocks: "Machine") -> None:
    _run(
        blocks,
        blocks.share(16 * MIB),
        f"""
def pitched(rows):
    pointer = Pointer()
    check(cuda.cuMemAllocPitch_v2(byref(pointer), byref(c_size_t()), c_size_t(1000), c_size_t(rows), 4))
    return pointer
small = [pitched(1024), pitched(1024)]
assert exact() == {2 * MIB}
large = pitched(1025)  # above 1 MiB with its pitch, and not without it
assert exact() == {4 * MIB}
for pointer in (large, *small): free(pointer)
assert exact() == 0
""",
    )


def test_processes_that_share_a_full_share_stay_exact(blocks: "Machine") -> None:
    share = blocks.share(24 * MIB)
    code = f"""
import random
start()
chance, live = random.Random(SEED), []
for _ in range(2000):
    if live and chance.random() < 0.4:
        free(live.pop(chance.randrange(len(live))))
    else:
        result, pointer = try_alloc(chance.randrange(1, {MIB}))
        live += [pointer] * (result == SUCCESS)
say("done")
wait_for_line()
"""
    programs: list[subprocess.Popen[str]] = [blocks.start(code.replace("SEED", str(seed))) for seed in range(4)]
    for program in programs:
        assert program.stdout is not None
        assert program.stdout.readline() == "done\n"
    card = read_card(blocks.card)
    assert read_books(share).used_bytes == card.used_bytes <= 24 * MIB
    assert card.peak_bytes <= (24 + 4 * 2) * MIB
    for program in programs:
        program.communicate("\n", timeout=60)
    assert [program.returncode for program in programs] == [0] * 4
