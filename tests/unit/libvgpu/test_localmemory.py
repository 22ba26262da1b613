"""Memory of threads (arrays, spilled registers, stacks) and code: reserved before a launch brings it to the device."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from libvgpu.stub import StubGPU, StubSettings, create_card, read_card
from tests.unit.libvgpu.exactly import run_exactly

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
# 16 multiprocessors of 2048 threads: each KiB of a thread's is 32 MiB, and the first one is the context's own.
GPU = StubGPU(name="Stub", memory_bytes=1 << 30, uuid="GPU-00000000-0000-4000-8000-000000000001", multiprocessors=16)

PRELUDE = """
def image(local, name="wide"):
    return (f".version 8.0\\n.target sm_80\\n.address_size 64\\n.visible .entry {name}() {{ "
            f".local .align 8 .b8 own[{local}]; ret; }}\\n").encode()

def wide(local):
    module, function = c_void_p(), c_void_p()
    check(cuda.cuModuleLoadData(byref(module), image(local)))
    check(cuda.cuModuleGetFunction(byref(function), module, b"wide"))
    return function

def wide_of_library(local, enumerated=False):
    library, found = c_void_p(), c_void_p()
    check(cuda.cuLibraryLoadData(byref(library), image(local), None, None, 0, None, None, 0))
    if enumerated:
        check(cuda.cuLibraryEnumerateKernels(byref(found), 1, library))
    else:
        check(cuda.cuLibraryGetKernel(byref(found), library, b"wide"))
    return found

start()
"""


@pytest.fixture(params=["nvml", "no nvml"])
def threads(request: pytest.FixtureRequest, machine: "Machine") -> "Machine":
    """A card of 16 multiprocessors; what is charged does not depend on NVML."""
    create_card(machine.card, 0, GPU)
    if request.param != "nvml":
        machine.remove_nvml()
    return machine


def _run(machine: "Machine", share: Path, code: str) -> None:
    run_exactly(machine, share, PRELUDE + code)


def test_the_memory_of_threads_is_reserved_before_a_function_that_wants_it_is_launched(threads: "Machine") -> None:
    _run(
        threads,
        threads.share(256 * MIB),
        f"""
small, large, huge = wide(1024), wide(5000), wide(20_000)
assert try_launch(small, 0) == SUCCESS
assert exact() == 0
assert try_launch(large, 0) == SUCCESS  # 20 times 256 bytes for each thread, less the 1024 that it has
assert exact() == {128 * MIB}
assert try_launch(huge, 0) == OUT_OF_MEMORY
assert try_launch(large, 0) == try_launch(wide(4000), 0) == SUCCESS
assert exact() == {128 * MIB}
assert info()[0] == {128 * MIB}, info()
check(cuda.cuDevicePrimaryCtxReset_v2(0))
assert exact() == 0
""",
    )
    assert read_card(threads.card).peak_bytes == 128 * MIB


@pytest.mark.parametrize("enumerated", [False, True])
def test_a_function_of_a_library_is_asked_for_what_its_threads_need_too(enumerated: bool, threads: "Machine") -> None:
    _run(
        threads,
        threads.share(256 * MIB),
        f"""
assert try_launch(wide_of_library(5000, {enumerated}), 0) == SUCCESS
assert exact() == {128 * MIB}
assert try_launch(wide_of_library(20_000, {enumerated}), 0) == OUT_OF_MEMORY
""",
    )
    assert read_card(threads.card).peak_bytes == 128 * MIB


def test_a_launch_that_the_driver_refuses_leaves_no_memory_of_threads_charged(threads: "Machine") -> None:
    _run(
        threads,
        threads.share(256 * MIB),
        """
from libvgpu.stub import inject_fault
function = wide(5000)
inject_fault(CARD, "cuLaunchKernel", 1, 999)
assert try_launch(function, 0) == 999
assert exact() == 0
""",
    )


def test_a_graph_whose_kernels_want_more_than_there_is_is_not_launched(threads: "Machine") -> None:
    _run(
        threads,
        threads.share(256 * MIB),
        f"""
def graph_of(function):
    stream, graph, executable = c_void_p(), c_void_p(), c_void_p()
    check(cuda.cuStreamCreate(byref(stream), 1))
    check(cuda.cuStreamBeginCapture_v2(stream, 2))
    assert try_launch(function, 0, stream) == SUCCESS
    check(cuda.cuStreamEndCapture(stream, byref(graph)))
    check(cuda.cuGraphInstantiateWithFlags(byref(executable), graph, c_ulonglong(0)))
    return executable
fits, too_large = graph_of(wide_of_library(5000)), graph_of(wide(20_000))
assert exact() == 0
assert cuda.cuGraphLaunch(too_large, None) == OUT_OF_MEMORY
check(cuda.cuGraphLaunch(fits, None))
assert exact() == {128 * MIB}
""",
    )
    assert read_card(threads.card).peak_bytes == 128 * MIB


@pytest.mark.parametrize(
    "way", ["cuGraphExecKernelNodeSetParams", "cuGraphExecKernelNodeSetParams_v2", "cuGraphExecNodeSetParams"]
)
def test_a_kernel_that_takes_the_place_of_another_in_a_graph_has_to_fit_too(way: str, machine: "Machine") -> None:
    create_card(machine.card, 0, GPU)
    _run(
        machine,
        machine.share(256 * MIB),
        f"""
graph, node, executable = c_void_p(), c_void_p(), c_void_p()
def params(function):
    return (c_ulonglong * 9)(function.value, 1 << 32 | 1, 1 << 32 | 1, 1 << 32 | 1, 0, 0, 0, 0, 0)
def replace(function):
    given = (c_ulonglong * 32)(0, 0, *params(function))  # CUgraphNodeParams: its type, then those of a kernel
    check(cuda.{way}(executable, node, given if "{way}" == "cuGraphExecNodeSetParams" else params(function)))
check(cuda.cuGraphCreate(byref(graph), 0))
check(cuda.cuGraphAddKernelNode_v2(byref(node), graph, None, c_size_t(0), params(wide(16))))
check(cuda.cuGraphInstantiateWithFlags(byref(executable), graph, c_ulonglong(0)))
check(cuda.cuGraphLaunch(executable, None))
assert exact() == 0
replace(wide(5000))
check(cuda.cuGraphLaunch(executable, None))
assert exact() == {128 * MIB}
replace(wide(20_000))
assert cuda.cuGraphLaunch(executable, None) == OUT_OF_MEMORY
""",
    )
    assert read_card(machine.card).peak_bytes == 128 * MIB


def test_functions_that_are_too_many_to_have_an_estimate_each_are_asked_for_what_they_need(machine: "Machine") -> None:
    create_card(machine.card, 0, GPU)
    _run(
        machine,
        machine.share(256 * MIB),
        """
head = ".version 8.0\\n.target sm_80\\n.address_size 64\\n"
entries = "".join(f".visible .entry instant{number}() {{ ret; }}\\n" for number in range(300))
module = c_void_p()
check(cuda.cuModuleLoadData(byref(module), (head + entries).encode()))
for number in range(300):
    function = c_void_p()
    check(cuda.cuModuleGetFunction(byref(function), module, b"instant%d" % number))
    for size in range(31):  # there is an estimate for each doubling
        ones = (c_uint(1),) * 5
        check(cuda.cuLaunchKernel(function, c_uint(1 << size), *ones, c_uint(0), None, None, None))
assert [try_launch(wide(20_000 + number), 0) for number in range(9)] == [OUT_OF_MEMORY] * 9
""",
    )
    assert read_card(machine.card).peak_bytes == 0


def test_a_larger_limit_of_stacks_is_reserved_before_it_is_set(threads: "Machine") -> None:
    _run(
        threads,
        threads.share(256 * MIB),
        f"""
STACK = 0
assert cuda.cuCtxSetLimit(STACK, c_size_t(20_000)) == OUT_OF_MEMORY
check(cuda.cuCtxSetLimit(STACK, c_size_t(5 << 10)))
assert exact() == {128 * MIB}
check(cuda.cuCtxSetLimit(STACK, c_size_t(1024)))  # the driver does not give it back
assert exact() == {128 * MIB}
""",
    )
    assert read_card(threads.card).peak_bytes == 128 * MIB


def _settle(machine: "Machine", **settings: int) -> None:
    create_card(machine.card, 0, replace(GPU, settings=StubSettings(context_bytes=MIB, **settings)))


def test_code_that_is_loaded_by_name_is_charged_at_once(machine: "Machine") -> None:
    _settle(machine, lazy_bytes=20 * MIB)
    _run(
        machine,
        machine.share(64 * MIB),
        f"""
functions = [kernel(name) for name in ("one", "two", "three", "four", "five")]
for count in (1, 2, 3):
    check(cuda.cuFuncLoad(functions[count - 1]))
    assert exact() == {MIB} + count * {20 * MIB}
assert cuda.cuFuncLoad(functions[3]) == OUT_OF_MEMORY
assert try_launch(functions[4], 0) == OUT_OF_MEMORY
""",
    )


def test_code_does_not_hide_behind_managed_memory_that_lies_on_the_host(machine: "Machine") -> None:
    _settle(machine, lazy_bytes=20 * MIB)
    _run(
        machine,
        machine.share(256 * MIB),
        f"""
check(cuda.cuMemAllocManaged(byref(Pointer()), c_size_t({100 * MIB}), 2))  # starts on the host
for count, name in enumerate(("one", "two", "three"), 1):
    launch(kernel(name), 1000)
    assert info()[0] == {155 * MIB} - count * {20 * MIB}, info()
""",
    )
