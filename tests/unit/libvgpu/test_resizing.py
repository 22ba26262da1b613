"""A share whose memory is changed while processes take and give back memory."""

from dataclasses import replace
from typing import TYPE_CHECKING

from libvgpu.shares import change_limits, read_books
from libvgpu.stub import read_card

if TYPE_CHECKING:
    import subprocess

    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
WORKER = f"""
import threading
start()
alloc({10 * MIB})
wanted, ended = [None], threading.Event()

def listen():
    for line in sys.stdin:
        wanted[0] = int(line)
    ended.set()

threading.Thread(target=listen, daemon=True).start()
say("holding")
while not ended.is_set():
    result, pointer = try_alloc({2 * MIB})
    if result == SUCCESS:
        free(pointer)
    assert result in (SUCCESS, OUT_OF_MEMORY), result
    if result == wanted[0]:
        wanted[0] = None
        say(result)
"""


def _all_get(programs: "list[subprocess.Popen[str]]", result: int) -> None:
    for program in programs:
        assert program.stdin is not None
        print(result, file=program.stdin, flush=True)
    for program in programs:
        assert program.stdout is not None
        assert program.stdout.readline() == f"{result}\n"


def test_a_limit_below_what_many_processes_hold_denies_and_takes_nothing_until_it_is_raised(machine: "Machine") -> None:
    share = machine.share(64 * MIB)
    programs = [machine.start(WORKER) for _ in range(4)]
    try:
        for program in programs:
            assert program.stdout is not None
            assert program.stdout.readline() == "holding\n"
        for _ in range(3):
            change_limits(share, lambda limits: replace(limits, memory_bytes=20 * MIB))
            _all_get(programs, 2)
            _all_get(programs, 2)  # what was being had when the limit fell is given back by now
            assert read_card(machine.card).used_bytes == read_books(share).used_bytes == 40 * MIB
            change_limits(share, lambda limits: replace(limits, memory_bytes=64 * MIB))
            _all_get(programs, 0)
    finally:
        for program in programs:
            program.communicate(timeout=60)
    assert [program.returncode for program in programs] == [0] * 4
    assert read_card(machine.card).peak_bytes <= 64 * MIB
