"""A tenant's signal handler in the middle of a call of the driver, and the driver's own calls, which look alike."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from libvgpu.shares import read_books
from libvgpu.stub import change_settings, read_card

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
GOT = {
    "memory": 64,
    "stream-ordered": 64,
    "pool": 64,
    "mapped": 64,
    "look-up": 64,
    "context": 48,
    "module": 48,
    "graph": 0,
    "view": 64,
}
"""MiB that a handler gets of a share of 64 MiB; what the interrupted call took itself is not among them."""


def _run(machine: "Machine", program: Path, *arguments: str) -> int:
    run = subprocess.run(
        [program, *arguments], env=machine.environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    return int(run.stdout)


@pytest.mark.no_sanitizer
@pytest.mark.parametrize("way", GOT)
def test_what_a_signal_handler_takes_inside_of_a_call_of_the_driver_is_charged(
    way: str, machine: "Machine", hostile_program: Callable[..., Path]
) -> None:
    share = machine.share(64 * MIB)
    if way in ("context", "module"):
        change_settings(machine.card, context_bytes=8 * MIB, module_bytes=8 * MIB)
    assert _run(machine, hostile_program("interrupt"), way) == GOT[way]
    # The module that does not fit is loaded before that is known, and unloaded.
    assert read_card(machine.card).peak_bytes <= (72 if way == "module" else 64) * MIB
    assert read_books(share).used_bytes == 0


@pytest.mark.no_sanitizer
@pytest.mark.parametrize(("way", "got"), [("memory", 32), ("stream-ordered", 0), ("mapped", 0), ("view", 64)])
def test_a_signal_handler_amid_a_change_of_the_librarys_records_gets_no_more_than_is_counted(
    way: str, got: int, machine: "Machine", hostile_program: Callable[..., Path]
) -> None:
    machine.share(64 * MIB)  # of which the interrupted call has reserved what a pool may grow by
    assert _run(machine, hostile_program("interrupt"), way, "amid") == got
    assert read_card(machine.card).peak_bytes <= 64 * MIB


@pytest.mark.parametrize("jumps", ["cuMemAllocAsync", "cuModuleLoadDataEx"])
def test_what_the_driver_asks_itself_for_is_charged_once(
    jumps: str, machine: "Machine", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VGPU_STUB_CALLS_ITSELF", "1")
    share = machine.share(64 * MIB)
    change_settings(machine.card, module_bytes=8 * MIB)
    image = 'b".version 8.0\\n.target sm_80\\n.address_size 64\\n.visible .entry none() { ret; }\\n"'
    calls = {
        "cuMemAllocAsync": f"cuda.cuMemAllocAsync(byref(Pointer()), c_size_t({8 * MIB}), None)",
        "cuModuleLoadDataEx": f"cuda.cuModuleLoadDataEx(byref(c_void_p()), {image}, 0, None, None)",
    }
    machine.run(f"""
        start()
        for count in range(1, 9):
            check({calls[jumps]})
            assert info()[0] == {64 * MIB} - count * {8 * MIB}, info()
        assert {calls[jumps]} == OUT_OF_MEMORY
    """)
    assert read_books(share).peak_bytes == 64 * MIB
