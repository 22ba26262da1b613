"""However an application reaches the driver, it ends in the hook; and nothing else of its look-ups changes."""

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from api import names
from libvgpu import nvmlpoints
from libvgpu.entrypoints import entry_points, flaws
from libvgpu.stub import read_card

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

LIBVGPU = Path(__file__).parents[3] / "libvgpu"
MIB = 1 << 20
WAYS = [
    "linked",
    "dlsym",
    "dlvsym",
    "default",
    "dlsym-of-dlsym",
    "next",
    "proc-address",
    "proc-address-per-thread",
    "proc-address-v1",
    "proc-address-of-proc-address",
]


@pytest.mark.parametrize("way", [pytest.param(w, marks=[pytest.mark.no_sanitizer] * (w == "next")) for w in WAYS])
def test_every_way_to_the_driver_ends_in_the_hook(
    way: str, machine: "Machine", reaching_program: tuple[Path, Path]
) -> None:
    machine.share(64 * MIB)
    program, behind = reaching_program
    environment = machine.environment()
    environment["LD_LIBRARY_PATH"] += f":{behind.parent}"
    if way == "next":
        environment["LD_PRELOAD"] += f":{behind}"
    for size, result in ((64 * MIB + 1, "2\n"), (64 * MIB, "0\n")):
        run = subprocess.run(
            [program, way, str(size)], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert (run.returncode, run.stdout, run.stderr) == (0, result, "")
    assert all(process.out_of_memory == 0 for process in read_card(machine.card).processes)


def test_a_name_that_the_driver_lacks_is_not_found(machine: "Machine") -> None:
    machine.share(MIB)
    machine.run("""
        for name in ("cuNoSuchFunction", "cublasCreate_v2"):
            assert not hasattr(cuda, name)
        assert not hasattr(ctypes.CDLL("libm.so.6"), "cuMemAlloc_v2")
        assert hasattr(ctypes.CDLL("libm.so.6"), "cos")
    """)


NEWER = """
def ask(version):
    pointer, status = c_void_p(), c_int(-1)
    check(cuda.cuGetProcAddress_v2(b"NAME", byref(pointer), version, c_ulonglong(0), byref(status)))
    return pointer.value, status.value
def ask_as_of_11():
    pointer = c_void_p()
    return cuda.cuGetProcAddress(b"NAME", byref(pointer), 99000, c_ulonglong(0)), pointer.value
"""


def test_a_version_newer_than_the_library_is_not_found_where_an_older_one_is_hooked(machine: "Machine") -> None:
    machine.share(MIB)
    output, errors = machine.refused(
        NEWER.replace("NAME", "cuMemAlloc")
        + f"""
start()
known, status = ask(13000)
assert status == 0
assert ctypes.CFUNCTYPE(c_int, c_void_p, c_size_t)(known)(ctypes.addressof(Pointer()), {2 * MIB}) == OUT_OF_MEMORY
print(ask(99000), ask_as_of_11())
print(cuda.cuMemAlloc_v99(byref(Pointer()), c_size_t({2 * MIB}), c_ulonglong(0)))
"""
    )
    assert output == "(None, 1) (500, None)\n801\n"
    assert errors == 2 * (
        "libvgpu: cuMemAlloc of CUDA 99.0: found a function that is newer than this library; it is not handed out\n"
    )
    assert read_card(machine.card).peak_bytes == 0


def test_an_unknown_function_that_allocates_does_not_pass_the_share_by(machine: "Machine") -> None:
    machine.share(MIB)
    output, _ = machine.refused(
        NEWER.replace("NAME", "cuMemAllocTomorrow")
        + f"""
start()
print(ask(99000), cuda.cuMemAllocTomorrow(byref(Pointer()), c_size_t({2 * MIB})))
"""
    )
    assert output == "(None, 1) 801\n"
    assert read_card(machine.card).peak_bytes == 0


def test_every_entry_point_of_the_driver_is_in_one_table(machine: "Machine") -> None:
    entries = entry_points()
    assert flaws(entries) == []
    assert nvmlpoints.flaws() == []
    machine.share(MIB)
    command = ["nm", "-D", "--defined-only", str(machine.root / "usr/lib/x86_64-linux-gnu/libcuda.so.1")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    of_the_stub = {"cuMemAlloc_v99", "cuMemAllocTomorrow", "vgpu_stub_between"}
    assert {line.split()[-1] for line in lines} - of_the_stub <= {entry.symbol for entry in entries}


def test_exactly_the_hooks_are_exported(built: Path) -> None:
    nvml = re.findall(
        r"^(?:HOOK|REFUSED)\((\w+)\)$", (LIBVGPU / "nvml/hooks.def").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    hooks = {"dlsym", "dlvsym", "dlmopen", "vgpu_open_gate", *nvml}
    hooks |= {entry.symbol for entry in entry_points() if entry.effect != "passed"}
    command = ["nm", "-D", "--defined-only", str(built / "libvgpu.so")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {line.split()[-1] for line in lines} == hooks


def test_the_library_runs_on_every_c_library_since_2_17(built: Path) -> None:
    command = ["nm", "-D", "--undefined-only", str(built / "libvgpu.so")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    versions = {tuple(map(int, version.split("."))) for version in re.findall(r"GLIBC_([\d.]+)", text)}
    assert max(versions) <= (2, 17)


def test_headers_and_python_name_the_same_paths() -> None:
    headers = [(LIBVGPU / "core" / name).read_text(encoding="utf-8") for name in ("share.h", "origin.h")]
    defined = dict(re.findall(r'^#define (VGPU_\w+)\s+"([^"]+)"$', "".join(headers), flags=re.MULTILINE))
    assert defined == {
        "VGPU_CONTAINER_SHARES_DIR": names.CONTAINER_SHARES_DIR,
        "VGPU_CONTAINER_LIBRARY_DIR": names.CONTAINER_LIBRARY_DIR,
        "VGPU_CONTAINER_DRIVER_DIR": names.CONTAINER_DRIVER_DIR,
        "VGPU_SHARES_SUBDIR": names.SHARES_SUBDIR,
        "VGPU_LIBRARY_SUBDIR": names.LIBRARY_SUBDIR,
        "VGPU_ENV_SHARES_DIR": names.ENV_SHARES_DIR,
        "VGPU_LIMITS_FILE": names.LIMITS_FILE,
        "VGPU_BOOKS_FILE": names.BOOKS_FILE,
    }


@pytest.mark.no_sanitizer
@pytest.mark.parametrize(
    ("sanitizer", "options"), [("thread", {}), ("address", {"ASAN_OPTIONS": "verify_asan_link_order=0"})]
)
def test_a_program_whose_sanitizer_intercepts_the_c_library_starts(
    sanitizer: str, options: dict[str, str], machine: "Machine", tmp_path: Path
) -> None:
    # Its runtime asks dlsym for everything that it will intercept before any of that works. gcc's for addresses wants
    # to be the first library, and has to be told that it is not (libvgpu/README.md).
    source, program = tmp_path / "main.c", tmp_path / "main"
    source.write_text('#include <stdio.h>\nint main(void) { puts("started"); return 0; }\n', encoding="utf-8")
    command: list[str | Path] = ["cc", f"-fsanitize={sanitizer}", "-o", program, source]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"this compiler has no {sanitizer} sanitizer")
    environment = machine.environment() | options
    run = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "started\n", "")
