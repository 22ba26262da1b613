"""However an application reaches the driver, it ends in the hook; and nothing else of its look-ups changes."""

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from api import names
from libvgpu.stub import read_card

if TYPE_CHECKING:
    from conftest import Machine

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


@pytest.mark.parametrize("way", WAYS)
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


def test_exactly_the_hooks_are_exported(built: Path) -> None:
    hooks = {"dlsym", "dlvsym"}
    for table in ("cuda/hooks.def", "nvml/hooks.def"):
        lines = (LIBVGPU / table).read_text(encoding="utf-8")
        for kind, symbol in re.findall(r"^(HOOK2?)\((\w+)\)$", lines, flags=re.MULTILINE):
            hooks |= {symbol, f"{symbol}_ptsz"} if kind == "HOOK2" else {symbol}
    command = ["nm", "-D", "--defined-only", str(built / "libvgpu.so")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {line.split()[-1] for line in lines} == hooks


def test_the_library_runs_on_every_c_library_since_2_17(built: Path) -> None:
    command = ["nm", "-D", "--undefined-only", str(built / "libvgpu.so")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    versions = {tuple(map(int, version.split("."))) for version in re.findall(r"GLIBC_([\d.]+)", text)}
    assert max(versions) <= (2, 17)


def test_header_and_python_name_the_same_paths() -> None:
    header = (LIBVGPU / "core" / "share.h").read_text(encoding="utf-8")
    defined = dict(re.findall(r'^#define (VGPU_\w+)\s+"([^"]+)"$', header, flags=re.MULTILINE))
    assert defined == {
        "VGPU_CONTAINER_SHARES_DIR": names.CONTAINER_SHARES_DIR,
        "VGPU_ENV_SHARES_DIR": names.ENV_SHARES_DIR,
        "VGPU_LIMITS_FILE": names.LIMITS_FILE,
        "VGPU_BOOKS_FILE": names.BOOKS_FILE,
    }


def test_a_program_whose_sanitizer_intercepts_the_c_library_starts(machine: "Machine", tmp_path: Path) -> None:
    # Its runtime asks dlsym for everything that it will intercept before any of that works.
    source, program = tmp_path / "main.c", tmp_path / "main"
    source.write_text('#include <stdio.h>\nint main(void) { puts("started"); return 0; }\n', encoding="utf-8")
    if subprocess.run(["cc", "-fsanitize=thread", "-o", program, source], capture_output=True, check=False).returncode:
        pytest.skip("this compiler has no thread sanitizer")
    run = subprocess.run([program], env=machine.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "started\n", "")
