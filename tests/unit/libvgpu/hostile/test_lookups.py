"""Ways to the driver past the hooks: by path, by copy, in a namespace, by hand, in processes that nobody announced."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from libvgpu.shares import read_books
from libvgpu.stub import library_directory, read_card
from tests.unit.libvgpu.parts import check_part

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
REFUSED = "libvgpu: LD_PRELOAD: found {} in front of this library, expected no driver there; the GPU is refused\n"
DRIVER = library_directory() / "libcuda.so.1"


def _grab(machine: "Machine", program: Path, *arguments: str | Path, **changes: str) -> str:
    run = subprocess.run(
        [program, *arguments],
        env=machine.environment() | changes,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


_LAUNCHES = """
from gpu import *
import time
start()
function, begin = kernel(), time.monotonic()
while time.monotonic() < begin + 1:
    launch(function, 1_000_000)
synchronize()
say(time.monotonic() - begin)
"""
WAYS = ["path", "wrong-version", "scope", "raw-fork", "clone-with-memory", "signal-handler"]


# A thread sanitizer cannot follow a process on the memory of another, and puts signals off.
@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, marks=[pytest.mark.no_sanitizer] * (way in ("clone-with-memory", "signal-handler")))
        for way in WAYS
    ],
)
def test_no_way_past_the_hooks(way: str, machine: "Machine", hostile_program: Callable[..., Path]) -> None:
    machine.share(64 * MIB)
    assert _grab(machine, hostile_program("grab"), way, DRIVER) == "64\n"
    assert read_card(machine.card).peak_bytes == 64 * MIB


def test_a_copy_of_the_driver_under_another_name_is_the_driver(
    machine: "Machine", hostile_program: Callable[..., Path], tmp_path: Path
) -> None:
    machine.share(64 * MIB)
    shutil.copy(DRIVER, tmp_path / "libharmless.so")
    assert _grab(machine, hostile_program("grab"), "path", tmp_path / "libharmless.so") == "64\n"
    assert read_card(machine.card).peak_bytes == 64 * MIB


@pytest.mark.no_sanitizer
@pytest.mark.parametrize("order", ["before:ours", "ours:before"])
def test_a_preloaded_library_of_the_tenants_own_comes_back_to_ours(
    order: str, machine: "Machine", hostile_program: Callable[..., Path]
) -> None:
    machine.share(64 * MIB)
    before = hostile_program("before", "-shared", "-fPIC")
    preload = order.replace("before", str(before)).replace("ours", str(machine.library))
    assert _grab(machine, hostile_program("grab"), "scope", LD_PRELOAD=preload) == "64\n"
    assert read_card(machine.card).peak_bytes == 64 * MIB


# Images do so for an older kernel module (CUDA forward compatibility): what is linked would be bound to the driver.
@pytest.mark.no_sanitizer  # its runtime comes first
@pytest.mark.parametrize("way", ["linked", "dlsym"])
def test_a_driver_that_is_preloaded_in_front_of_the_library_cannot_be_started(
    way: str, machine: "Machine", reaching_program: tuple[Path, Path]
) -> None:
    machine.share(64 * MIB)
    environment = machine.environment() | {"LD_PRELOAD": f"{DRIVER}:{machine.library}"}
    run = subprocess.run(
        [reaching_program[0], way, str(1 << 20)], env=environment, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (2, "", REFUSED.format("libcuda.so.1"))
    assert read_card(machine.card).peak_bytes == 0


@pytest.mark.no_sanitizer  # the same
def test_a_driver_that_is_preloaded_in_front_of_the_library_hands_out_no_functions(
    machine: "Machine", hostile_program: Callable[..., Path]
) -> None:
    machine.share(64 * MIB)
    program = hostile_program("asks", f"-L{library_directory()}", "-l:libcuda.so.1")
    environment = machine.environment() | {"LD_PRELOAD": f"{DRIVER}:{machine.library}"}
    run = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "800 800\n", 2 * REFUSED.format("libcuda.so.1"))


@pytest.mark.no_sanitizer  # the same
def test_a_program_ends_where_a_library_has_started_a_driver_in_front_before_the_library_could_refuse(
    machine: "Machine", hostile_program: Callable[..., Path]
) -> None:
    machine.share(64 * MIB)
    early = hostile_program("early", "-shared", "-fPIC", f"-L{library_directory()}", "-l:libcuda.so.1")
    program = hostile_program("grab", "-Wl,--no-as-needed,--allow-shlib-undefined", str(early))
    environment = machine.environment() | {"LD_PRELOAD": f"{DRIVER}:{machine.library}"}
    run = subprocess.run([program, "scope"], env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (127, "", REFUSED.format("libcuda.so.1"))
    assert read_card(machine.card).peak_bytes == 0


@pytest.mark.no_sanitizer  # the same
def test_an_nvml_that_is_preloaded_in_front_of_the_library_shows_nothing(machine: "Machine") -> None:
    machine.share(64 * MIB)
    environment = machine.environment() | {"LD_PRELOAD": f"{DRIVER.with_name('libnvidia-ml.so.1')}:{machine.library}"}
    program = "import ctypes; print(ctypes.CDLL(None).nvmlInit_v2())"
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "4\n", REFUSED.format("libnvidia-ml.so.1"))


@pytest.mark.no_sanitizer  # the same: its runtime keeps what was loaded
def test_a_driver_that_the_program_opens_by_path_stays_alone(machine: "Machine", tmp_path: Path) -> None:
    machine.share(64 * MIB)
    usual, own = tmp_path / "usual" / "libcuda.so.1", tmp_path / "own" / "libcuda.so.1"
    own.parent.mkdir()
    usual.parent.mkdir()
    shutil.copy(DRIVER, own)
    source = "int cuInit(unsigned flags) { return (int)flags; }"
    command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{usual.name}", "-o", str(usual), "-x", "c", "-"]
    subprocess.run(command, input=source, text=True, check=True)
    program = f"import ctypes; print(ctypes.CDLL({str(own)!r}).cuInit(0)); print(open('/proc/self/maps').read())"
    environment = machine.environment() | {"LD_LIBRARY_PATH": str(usual.parent)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert (run.stdout[:2], str(own) in run.stdout, str(usual) in run.stdout) == ("0\n", True, False)


# A library like libfaketime, for the application's sake: with ten times as much time the share had all of the GPU.
@pytest.mark.no_sanitizer  # the same
def test_a_preloaded_clock_makes_no_gpu_time(machine: "Machine", hostile_program: Callable[..., Path]) -> None:
    share = machine.share(256 * MIB, cores_percent=10)
    clock = hostile_program("otherclock", "-shared", "-fPIC")
    environment = machine.environment() | {"LD_PRELOAD": f"{clock}:{machine.library}"}
    run = subprocess.run([sys.executable, "-c", _LAUNCHES], env=environment, capture_output=True, text=True, check=True)
    check_part(machine, 10, float(run.stdout), share)


@pytest.mark.no_sanitizer
def test_a_library_in_a_namespace_of_its_own_meets_the_hooks_there(
    machine: "Machine", hostile_program: Callable[..., Path]
) -> None:
    machine.share(64 * MIB)
    stub = [f"-L{library_directory()}", "-l:libcuda.so.1"]
    helper = hostile_program("inside", "-shared", "-fPIC", *stub)
    assert _grab(machine, hostile_program("grab"), "namespace-helper", helper) == "64\n"
    assert read_card(machine.card).peak_bytes == 64 * MIB


def test_what_is_out_of_reach_shows_in_the_drivers_figures_and_not_in_the_books(
    machine: "Machine", hostile_program: Callable[..., Path]
) -> None:
    share = machine.share(64 * MIB)
    assert _grab(machine, hostile_program("grab"), "by-hand") == "256\n"
    assert read_card(machine.card).peak_bytes == 256 * MIB
    assert read_books(share).peak_bytes == 0
