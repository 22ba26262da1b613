"""What libvgpu takes a driver to do with memory, looked at without libvgpu; the figures are printed at the end."""

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.gpu.conftest import Card, Figures

pytestmark = pytest.mark.gpu

MIB = 1 << 20
UNIT = 2 * MIB
"""libvgpu/cuda/footprint.c: LARGEST_UNIT."""
STEP = 32 * MIB
"""libvgpu/cuda/poolrecords.c: what a pool grows by."""
LEAST_CONTEXT, MOST_CONTEXT = 8 * MIB, 1 << 30
"""kubeletplugin/monitoring/contextsizes.py: what it believes of a context."""


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _ask(card: "Card", code: str) -> Any:
    return json.loads(card.bare("import json\n" + code))


def test_an_allocation_above_a_mebibyte_takes_whole_blocks_of_two(card: "Card", figures: "Figures") -> None:
    sizes = [MIB + 1, UNIT + 1, 3 * MIB, 5 * MIB + 1]
    taken = _ask(card, f"start(); say(json.dumps([took(lambda: alloc(size)) for size in {sizes}]))")
    figures.add(
        "allocations of 1+, 2+, 3 and 5+ MiB take", "4, 4, 4 and 6 MiB at most", [f"{t / MIB:g}" for t in taken]
    )
    for size, bytes_taken in zip(sizes, taken, strict=True):
        assert bytes_taken <= _up(size, UNIT)


def test_small_allocations_share_blocks(card: "Card", figures: "Figures") -> None:
    taken = _ask(card, "start(); say(json.dumps([took(lambda: alloc(4096)) for _ in range(600)]))")
    figures.add("600 allocations of 4 KiB take", "2 to 4 MiB, in blocks of 2", f"{sum(taken) / MIB:g} MiB")
    assert {size % UNIT for size in taken} == {0}
    assert sum(taken) <= 2 * UNIT


def test_the_figures_of_cuda_and_nvml_grow_by_what_is_allocated(card: "Card", figures: "Figures") -> None:
    free, used, own = _ask(
        card,
        """
start()
with Growth() as growth:
    alloc(256 << 20)
say(json.dumps([growth.free, growth.used, growth.own]))
""",
    )
    figures.add("256 MiB in cuMemGetInfo, NVML's card, NVML's process", "256 MiB each", [free, used, own])
    figures.add("NVML names a process outside of containers", "yes", "no" if own is None else "yes")
    assert free == used == 256 * MIB
    assert own in (None, 256 * MIB)


def test_a_process_is_listed_from_its_first_context_on_and_that_is_what_it_costs(
    card: "Card", figures: "Figures"
) -> None:
    before, first, listed, second = _ask(
        card,
        """
before, used = own_bytes(), used_bytes()
start()
first, listed, used = used_bytes() - used, own_bytes(), used_bytes()
check(cuda.cuCtxCreate_v2(byref(c_void_p()), 0, 0))
say(json.dumps([before, first, listed, used_bytes() - used]))
""",
    )
    figures.add("a first context takes", "8 MiB to 1 GiB", f"{first / MIB:g} MiB; NVML lists {listed / MIB:g} MiB")
    figures.add("a second context of a process takes", "no more than the first", f"{second / MIB:g} MiB")
    assert before == -1
    assert LEAST_CONTEXT <= first <= MOST_CONTEXT
    assert second <= first


def test_a_module_takes_its_variables_and_code_and_gives_them_back(card: "Card", figures: "Figures") -> None:
    loaded, functions, mode, left = _ask(
        card,
        f"""
start()
text = (".version 7.0\\n.target sm_70\\n.address_size 64\\n"
        ".global .align 8 .b8 table[{16 * MIB}];\\n.visible .entry nothing() {{ ret; }}\\n")
module, mode = c_void_p(), c_int()
with Growth() as whole:
    loaded = took(lambda: check(cuda.cuModuleLoadData(byref(module), text.encode())))
    check(cuda.cuModuleUnload(module))
def first_launch():
    launch(function("spin"), 1000)
    synchronize()
functions = took(first_launch)
check(cuda.cuModuleGetLoadingMode(byref(mode)))
say(json.dumps([loaded, functions, mode.value, whole.free]))
""",
    )
    figures.add("a module with a variable of 16 MiB takes", "16 MiB and a little", f"{loaded / MIB:g} MiB")
    figures.add("a small module and its first launch take", "a few MiB", f"{functions / MIB:g} MiB, mode {mode}")
    assert 16 * MIB <= loaded <= 32 * MIB
    assert left <= UNIT


def test_a_pool_grows_by_steps_and_by_what_it_says(card: "Card", figures: "Figures") -> None:
    small, large, said, lives, gone = _ask(
        card,
        """
start()
pools = [new_pool(), new_pool()]
small = took(lambda: from_pool(pools[0], 1024))
large = took(lambda: pointers.append(from_pool(pools[1], 33 << 20)))
said = [pool_bytes(pool, 5) for pool in pools]
def free_all():
    check(cuda.cuMemFreeAsync(pointers[0], None))
    synchronize()
lives = took(lambda: check(cuda.cuMemPoolDestroy(pools[1])))
say(json.dumps([small, large, said, lives, -took(free_all)]))
""".replace("pools = [", "pointers, pools = [], [", 1),
    )
    figures.add("a pool with 1 KiB and with 33 MiB takes", "32 and 64 MiB at most", [small / MIB, large / MIB])
    figures.add("a destroyed pool keeps while memory of it is in use", "all", f"{(large + lives) / MIB:g} MiB")
    assert (small, large) == tuple(said)
    assert small <= STEP
    assert large <= 2 * STEP
    assert lives <= 0
    assert gone == large + lives


def test_virtual_memory_comes_in_blocks_and_mapping_takes_nothing(card: "Card", figures: "Figures") -> None:
    granularities, created, mapped = _ask(
        card,
        f"""
start()
properties, granularities, handle, address = (c_int * 16)(1, 0, 1, 0), [], Pointer(), Pointer()
for option in (0, 1):
    size = c_size_t()
    check(cuda.cuMemGetAllocationGranularity(byref(size), properties, option))
    granularities.append(size.value)
size, zero = c_size_t({16 * UNIT}), c_ulonglong(0)
created = took(lambda: check(cuda.cuMemCreate(byref(handle), size, properties, zero)))
check(cuda.cuMemAddressReserve(byref(address), size, c_size_t(0), zero, zero))
mapped = took(lambda: check(cuda.cuMemMap(address, size, c_size_t(0), handle, zero)))
say(json.dumps([granularities, created, mapped]))
""",
    )
    figures.add("granularity of virtual memory, least and best", "2 MiB", [g / MIB for g in granularities])
    assert granularities == [UNIT, UNIT]
    assert created == 16 * UNIT
    assert mapped <= UNIT


def test_managed_memory_takes_no_more_than_its_size(card: "Card", figures: "Figures") -> None:
    made, fetched = _ask(
        card,
        f"""
start()
pointer, size = Pointer(), c_size_t({64 * MIB})
made = took(lambda: check(cuda.cuMemAllocManaged(byref(pointer), size, 1)))
def fetch():
    check(cuda.cuMemPrefetchAsync(pointer, size, 0, None))
    synchronize()
say(json.dumps([made, took(fetch)]))
""",
    )
    figures.add("64 MiB managed take, and when prefetched", "64 MiB at most", [made / MIB, fetched / MIB])
    assert made + fetched <= 64 * MIB + UNIT


def test_an_array_takes_tiles(card: "Card", figures: "Figures") -> None:
    taken = _ask(
        card,
        """
start()
shape = (c_ulonglong * 3)(1000, 1000, 0x0100000020)  # one channel of float
say(json.dumps(took(lambda: check(cuda.cuArrayCreate_v2(byref(c_void_p()), shape)))))
""",
    )
    figures.add("an array of 1000 x 1000 floats (3.8 MiB) takes", "tiles: 4 to 8 MiB", f"{taken / MIB:g} MiB")
    assert taken <= 4 * UNIT


def test_a_graphs_memory_is_taken_at_launch_and_kept_until_a_trim(card: "Card", figures: "Figures") -> None:
    built, launched, kept, trimmed = _ask(
        card,
        f"""
start()

graph = new_graph()
def build():
    global executable
    memory_node(graph, {40 * MIB})
    executable = instantiate(graph)
def run():
    check(cuda.cuGraphLaunch(executable, None))
    synchronize()
built, launched, again = took(build), took(run), took(run)
reserved = c_ulonglong()
check(cuda.cuDeviceGetGraphMemAttribute(0, 2, byref(reserved)))
check(cuda.cuGraphExecDestroy(executable))
say(json.dumps([built, launched + again, reserved.value, -took(lambda: check(cuda.cuDeviceGraphMemTrim(0)))]))
""",
    )
    figures.add("a graph with 40 MiB takes when built, when launched", "0, 40 to 64 MiB", [built / MIB, launched / MIB])
    assert built <= UNIT
    assert 40 * MIB <= launched <= 2 * STEP
    assert kept == launched
    assert trimmed >= launched - UNIT


def test_a_full_card_says_out_of_memory(card: "Card") -> None:
    assert _ask(card, "start(); say(json.dumps(try_alloc(info()[1] + 1)[0]))") == 2
