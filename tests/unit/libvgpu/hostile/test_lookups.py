"""Ways to the driver past the hooks: by path, by copy, in a namespace, by hand, in processes that nobody announced."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from libvgpu.shares import read_books
from libvgpu.stub import library_directory, read_card

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
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
