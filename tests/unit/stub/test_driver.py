"""The stub's libcuda as a library: what it exports, how functions are found, modules, injected failures."""

import re
import subprocess
from pathlib import Path

import pytest

from api.errors import StateError
from libvgpu.stub import clear_faults, inject_fault, library_directory, read_card
from tests.unit.stub.conftest import MIB, ROOT, Machine

ABI = ROOT / "libvgpu" / "include" / "abi"


def exported(library: str) -> set[str]:
    output = subprocess.run(
        ["nm", "-D", "--defined-only", str(library_directory() / library)], capture_output=True, text=True, check=True
    ).stdout
    return {line.split()[2] for line in output.splitlines()}


def test_libcuda_exports_the_functions_of_its_list_and_nothing_else() -> None:
    expected = set()
    text = (ABI / "cuda_api.def").read_text(encoding="utf-8")
    for kind, symbol in re.findall(r"^CUDA_API(\w*)\((\w+),", text, re.MULTILINE):
        twin = {"": "", "_STREAM": "_ptsz", "_PTSZ": "_ptsz", "_PTDS": "_ptds"}[kind]
        expected |= {symbol, symbol + twin}
    of_its_own = {"cuMemAlloc_v99", "cuMemAllocTomorrow", "vgpu_stub_between"}
    assert exported("libcuda.so.1") == expected | of_its_own


def test_libnvidia_ml_exports_the_functions_of_its_list_and_nothing_else() -> None:
    listed = set(re.findall(r"^NVML_API\((\w+),", (ABI / "nvml_api.def").read_text(encoding="utf-8"), re.MULTILINE))
    assert exported("libnvidia-ml.so.1") == listed | {"nvmlErrorString"}


def test_functions_are_found_by_name_version_and_kind_of_default_stream(machine: Machine) -> None:
    said = machine.run("""
        gpu = Driver()
        def find(name, version, flags=0):
            pointer, status = c_void_p(), c_int()
            gpu.cuGetProcAddress_v2(name.encode(), byref(pointer), c_int(version), flags, byref(status))
            names = [one for one in ("cuMemAlloc", "cuMemAlloc_v2", "cuLaunchKernel", "cuLaunchKernel_ptsz")
                     if pointer.value == ctypes.cast(getattr(gpu.library, one), c_void_p).value]
            return [*names, status.value]
        say(old=find("cuMemAlloc", 2000), new=find("cuMemAlloc", 12000), own=find("cuLaunchKernel", 12000, 2),
            legacy=find("cuLaunchKernel", 12000, 1), early=find("cuMemAllocAsync", 10000), none=find("cuNo", 12000))
    """)
    assert said == {
        "old": ["cuMemAlloc", 0],
        "new": ["cuMemAlloc_v2", 0],
        "own": ["cuLaunchKernel_ptsz", 0],
        "legacy": ["cuLaunchKernel", 0],
        "early": [2],
        "none": [1],
    }


def test_calls_before_cuinit_and_without_a_context_say_so(machine: Machine) -> None:
    said = machine.run("""
        library = ctypes.CDLL("libcuda.so.1")
        pointer = c_uint64()
        before = library.cuMemAlloc_v2(byref(pointer), c_size_t(1))
        gpu = Driver(None)
        without = library.cuMemAlloc_v2(byref(pointer), c_size_t(1))
        name = ctypes.c_char_p()
        gpu.cuGetErrorName(c_int(without), byref(name))
        say(before=before, without=without, name=name.value.decode())
    """)
    assert said == {"before": 3, "without": 201, "name": "CUDA_ERROR_INVALID_CONTEXT"}


def test_a_machine_without_cards_has_no_device(machine: Machine) -> None:
    machine.card_file().unlink()
    assert machine.run("say(code=ctypes.CDLL('libcuda.so.1').cuInit(0))") == {"code": 100}


def test_a_process_is_on_the_card_only_from_its_first_context_on(machine: Machine) -> None:
    process = machine.start("gpu = Driver(None); say(started=True); wait_for_line()")
    process.heard()
    assert machine.card().processes == ()
    process.go_on()


def test_a_card_knows_a_process_by_its_host_or_by_the_name_that_it_is_given(machine: Machine) -> None:
    script = "gpu = Driver(); say(host=os.uname().nodename); wait_for_line()"
    own = machine.start(script).heard()["host"]
    machine.start(script, VGPU_STUB_HOSTNAME="worker-a-1").heard()
    assert [process.hostname for process in machine.card().processes] == [own, "worker-a-1"]


def test_ptx_tells_the_kernels_and_variables_of_a_module(machine: Machine) -> None:
    said = machine.run("""
        gpu = Driver()
        def load(image):
            module = c_void_p()
            gpu.cuModuleLoadData(byref(module), image)
            return module
        ptx = b'''.version 7.0
            .target sm_70
            .visible .global .align 4 .b8 table[4096];
            .global .u64 counter;
            .visible .entry first(.param .u64 p) { ld.global.u64 %rd1, [p]; ret; }
            .entry second() { ret; }'''
        module = load(ptx)
        count, size, pointer = c_uint(), c_size_t(), c_uint64()
        gpu.cuModuleGetFunctionCount(byref(count), module)
        gpu.cuModuleGetGlobal_v2(byref(pointer), byref(size), module, b"table")
        used = gpu.info()[1] - gpu.info()[0]
        codes = []
        for call in (lambda: gpu.create("cuModuleGetFunction", module, b"third"), lambda: load(b"no image"),
                     lambda: load(b".version 7.0")):
            try:
                call()
            except CudaError as error:
                codes.append(error.code)
        gpu.cuModuleUnload(module)
        say(count=count.value, size=size.value, used=used, codes=codes, left=gpu.info()[1] - gpu.info()[0])
    """)
    assert said == {"count": 2, "size": 4096, "used": 4104, "codes": [500, 200, 218], "left": 0}


# ---- Injected failures ----


def test_the_nth_call_of_a_function_fails_with_the_chosen_code(machine: Machine) -> None:
    said = machine.run(
        """
        gpu = Driver()
        codes = []
        for _ in range(4):
            try:
                gpu.alloc(MIB)
                codes.append(0)
            except CudaError as error:
                codes.append(error.code)
        say(codes=codes, used=gpu.info()[1] - gpu.info()[0])
        """,
        VGPU_STUB_FAULTS="cuMemAlloc_v2:3:719,cuCtxCreate_v2:1:2",
    )
    assert said == {"codes": [0, 0, 719, 0], "used": 3 * MIB}


def test_failures_can_be_armed_on_a_card_in_use_and_disarmed(machine: Machine) -> None:
    process = machine.start("""
        gpu = Driver()
        def attempt():
            try:
                gpu.info()
                return 0
            except CudaError as error:
                return error.code
        while True:
            say(code=attempt())
            wait_for_line()
    """)
    assert process.heard() == {"code": 0}
    inject_fault(machine.card_file(), "cuMemGetInfo_v2", 1, 999)
    process.go_on()
    assert process.heard() == {"code": 999}
    process.go_on()
    assert process.heard() == {"code": 0}
    inject_fault(machine.card_file(), "*", 1, 700)
    clear_faults(machine.card_file())
    process.go_on()
    assert process.heard() == {"code": 0}


def test_a_file_that_is_no_card_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "nvidia0"
    path.write_bytes(b"short")
    with pytest.raises(StateError, match=r"nvidia0: 5 bytes are no simulated card, which has \d+$"):
        read_card(path)
