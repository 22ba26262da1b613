"""The C core: its own cases (c/arithmetic.c), and kill -9 at every instruction of what changes the books."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from libvgpu.shares import Limits, Policy, create_share, read_books

SOURCE = Path(__file__).parent / "c" / "arithmetic.c"
CASES = re.findall(r"^    CASE\((\w+)\),$", SOURCE.read_text(encoding="utf-8"), flags=re.MULTILINE)
LIMITS = Limits("s", "GPU-1", 100000, 25, 25, Policy.FIXED)


@pytest.mark.parametrize("case", CASES)
def test_arithmetic(case: str, core_program: Callable[[str], Path]) -> None:
    run = subprocess.run([core_program("arithmetic"), case], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.no_emulator  # steps through instructions
@pytest.mark.no_sanitizer  # ten times the instructions, each of them a round
@pytest.mark.parametrize("work", ["reserve-and-credit", "reap-a-dead-process", "recount"])
def test_kill_at_any_instruction_leaves_the_books_right(
    work: str, core_program: Callable[[str], Path], tmp_path: Path
) -> None:
    create_share(tmp_path, LIMITS)
    command: list[str | Path] = [core_program("crash"), str(tmp_path / "books"), work]
    run = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert re.fullmatch(r"\d+ instructions\n", run.stdout)
    assert read_books(tmp_path).used_bytes == 0
