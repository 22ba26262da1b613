"""The stub's command line and its Python side."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from libvgpu.stub import StubGPU, change_settings, create_driver_root, read_card
from libvgpu.stub.__main__ import main
from tests.unit.stub.conftest import MIB, ROOT, UUID, Machine


def test_create_and_show_make_and_read_a_driver_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "driver"
    assert main(["create", str(root), "--gpu", "NVIDIA H100:10GiB", "--gpu", f"NVIDIA L4:24Gi:{UUID}"]) == 0
    made = capsys.readouterr().out.splitlines()
    assert made[1] == f"{root}/dev/nvidia1: NVIDIA L4, 24Gi, {UUID}"
    assert main(["show", str(root), "--json"]) == 0
    cards = json.loads(capsys.readouterr().out)
    assert [(card["name"], card["memory_bytes"], card["used_bytes"]) for card in cards] == [
        ("NVIDIA H100", 10 << 30, 0),
        ("NVIDIA L4", 24 << 30, 0),
    ]
    assert cards[0]["uuid"].startswith("GPU-")


def test_show_tells_people_who_held_what(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.run("""
        gpu = Driver()
        gpu.alloc(64 * MIB)
        gpu.launch(gpu.kernel("spin"), 2_000_000)
        gpu.cuCtxSynchronize()
        say(done=True)
    """)
    assert main(["show", str(machine.root)]) == 0
    shown = capsys.readouterr().out
    assert "memory 0.0 of 1,024.0 MiB, peak 64.0 MiB" in shown
    assert "0.0 MiB, peak 64.0 MiB, GPU time 0.002 s, 1 launches, 0 times out of memory" in shown


def test_the_program_says_what_is_wrong_with_its_arguments(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "libvgpu.stub", "create", str(tmp_path), "--gpu", "NVIDIA H100"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: --gpu 'NVIDIA H100': expected NAME:MEMORY[:UUID]\n")


def test_making_a_root_again_gives_unused_cards_and_removes_those_that_are_no_more(machine: Machine) -> None:
    machine.run("gpu = Driver(); say(done=True)")
    assert len(machine.card().processes) == 1
    gpu = StubGPU("Other", 16 * MIB, UUID)
    create_driver_root(machine.root, [gpu, StubGPU("Second", 32 * MIB, "GPU-2")])
    create_driver_root(machine.root, [gpu])
    assert (machine.card().name, machine.card().processes) == ("Other", ())
    assert sorted(path.name for path in (machine.root / "dev").iterdir()) == ["nvidia0"]


def test_a_setting_changes_on_a_card_in_use(machine: Machine) -> None:
    process = machine.start(
        "gpu = Driver(); say(on=True); wait_for_line(); gpu.alloc(1); say(done=True); wait_for_line()"
    )
    process.heard()
    change_settings(machine.card_file(), granularity_bytes=2 * MIB)
    process.go_on()
    process.heard()
    assert read_card(machine.card_file()).used_bytes == 2 * MIB
    with pytest.raises(
        ValueError, match="no setting 'speed'; there are array_tile_bytes, bytes_per_us, context_bytes,"
    ):
        change_settings(machine.card_file(), speed=1)
