"""Shares, books, limits and identity by the core's functions alone, in one process and in several."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from libvgpu.layout import layout
from libvgpu.shares import Limits, Policy, create_share, read_books, update_limits

UUID = "GPU-00000000-0000-4000-8000-000000000001"
LIMITS = Limits("one", UUID, 1000, 50, 50, Policy.FIXED)
GRANTED, OVER = "0", "1"

Program = Callable[[str], Path]


class Attached:
    """A process that does what it is told with its shares."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        assert process.stdout is not None
        self.found = process.stdout.readline().strip()

    def ask(self, command: str, amount: int = 0) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(command, amount, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def attach(core_program: Program, environment: dict[str, str]) -> Iterator[Callable[..., Attached]]:
    """Return what starts a process; all of them end with the test."""
    program = core_program("attached")
    with ExitStack() as stack:

        def start(uuid: str = UUID) -> Attached:
            pipe = subprocess.PIPE
            process = subprocess.Popen([program, uuid], env=environment, stdin=pipe, stdout=pipe, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            return Attached(process)

        yield start


@pytest.fixture
def shares(tmp_path: Path) -> Path:
    """Return the folder of one share of 1000 bytes."""
    create_share(tmp_path / "shares" / "one", LIMITS)
    return tmp_path / "shares"


def test_processes_of_a_share_have_its_bytes_together_and_not_one_more(
    shares: Path, attach: Callable[..., Attached]
) -> None:
    first, second = attach(), attach()
    assert first.ask("reserve", 600) == GRANTED
    assert second.ask("reserve", 401) == OVER
    assert second.ask("reserve", 400) == GRANTED
    assert first.ask("reserve", 1) == OVER
    assert first.ask("usage") == "1000 1000"
    assert second.ask("credit", 400) == "0"
    assert first.ask("reserve", 400) == GRANTED
    books = read_books(shares / "one")
    assert sorted(process.memory_bytes for process in books.processes) == [0, 1000]
    assert (books.used_bytes, books.peak_bytes, books.out_of_memory) == (1000, 1000, 2)


def test_what_a_killed_process_had_comes_back_when_somebody_needs_it(
    shares: Path, attach: Callable[..., Attached]
) -> None:
    first, second = attach(), attach()
    assert first.ask("reserve", 900) == GRANTED
    first.kill()
    assert second.ask("reserve", 1000) == GRANTED
    assert read_books(shares / "one").used_bytes == 1000


def test_a_limit_that_is_changed_counts_from_the_next_call_on(shares: Path, attach: Callable[..., Attached]) -> None:
    process = attach()
    assert process.ask("reserve", 900) == GRANTED
    update_limits(shares / "one", replace(LIMITS, memory_bytes=500))
    assert process.ask("reserve", 1) == OVER
    assert process.ask("usage") == "500 900"  # nothing is taken away
    update_limits(shares / "one", replace(LIMITS, memory_bytes=2000))
    assert process.ask("reserve", 1100) == GRANTED


def test_what_the_driver_has_taken_already_is_booked_beyond_the_limit_and_bars_the_rest(
    shares: Path, attach: Callable[..., Attached]
) -> None:
    process = attach()
    assert process.ask("charge", 1500) == "0"
    assert process.ask("reserve", 1) == OVER
    assert process.ask("credit", 501) == "0"
    assert process.ask("reserve", 1) == GRANTED
    assert read_books(shares / "one").used_bytes == 1000


def test_two_shares_of_a_device_add_up_also_for_one_piece(
    shares: Path, tmp_path: Path, attach: Callable[..., Attached]
) -> None:
    create_share(shares / "two", replace(LIMITS, share="two", memory_bytes=500))
    process = attach()
    assert process.ask("usage") == "1500 0"
    assert process.ask("reserve", 1501) == OVER
    assert process.ask("reserve", 1400) == GRANTED
    assert process.ask("rate") == "100"  # 50 and 50
    used = [read_books(shares / name).used_bytes for name in ("one", "two")]
    assert (sum(used), used[0] <= 1000, used[1] <= 500) == (1400, True, True)
    assert process.ask("credit", 1400) == "0"
    assert process.ask("usage") == "1500 0"


def test_a_device_without_a_share_has_none(shares: Path, attach: Callable[..., Attached]) -> None:
    assert attach(UUID.replace("1", "2")).found == "no share"
    assert attach(UUID.upper().replace("GPU", "MIG")).found == "attached"  # kind and case do not count


def test_rate_and_suspension_follow_the_limits(shares: Path, attach: Callable[..., Attached]) -> None:
    process = attach()
    assert (process.ask("rate"), process.ask("suspended")) == ("50", "0")
    burst = replace(LIMITS, policy=Policy.BURST, ceiling_percent=100)
    update_limits(shares / "one", burst)
    assert process.ask("rate") == "100"
    update_limits(shares / "one", replace(burst, granted_percent=70, suspended=True))
    assert (process.ask("rate"), process.ask("suspended")) == ("70", "1")


def test_memory_on_the_host_is_bounded_over_all_processes_and_dies_with_them(
    shares: Path, attach: Callable[..., Attached]
) -> None:
    first, second = attach(), attach()
    assert first.ask("reserve-host", 1) == OVER  # not allowed
    update_limits(shares / "one", replace(LIMITS, oversubscribe=True, host_memory_bytes=300))
    assert first.ask("reserve-host", 200) == GRANTED
    assert second.ask("reserve-host", 101) == OVER
    assert second.ask("reserve-host", 100) == GRANTED
    assert second.ask("credit-host", 50) == "0"
    assert read_books(shares / "one").host_bytes == 250
    first.kill()
    assert second.ask("reserve-host", 250) == GRANTED


@pytest.mark.no_emulator  # QEMU does not wipe pages on fork (MADV_WIPEONFORK), by which a child knows itself
def test_a_child_of_fork_has_a_slot_of_its_own_that_ends_with_it(shares: Path, attach: Callable[..., Attached]) -> None:
    parent = attach()
    assert parent.ask("reserve", 600) == GRANTED
    assert parent.ask("in-child", 401) == OVER
    assert parent.ask("in-child", 400) == GRANTED
    assert read_books(shares / "one").used_bytes == 600
    assert parent.ask("in-child", 400) == GRANTED  # the first child's went back
    assert parent.ask("credit", 600) == "0"
    assert parent.ask("reserve", 1000) == GRANTED


@pytest.mark.no_emulator  # QEMU makes up /proc/self/stat
def test_the_books_say_who_a_process_is(shares: Path, attach: Callable[..., Attached]) -> None:
    attached = attach()
    pid = attached.process.pid
    (process,) = read_books(shares / "one").processes
    started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    assert (process.pid, process.start_time, process.command) == (pid, started, "attached")
    assert process.pid_namespace == Path(f"/proc/{pid}/ns/pid").stat().st_ino == int(attached.ask("namespace"))


def test_many_processes_that_come_go_and_are_killed_never_have_a_byte_too_many(
    shares: Path, attach: Callable[..., Attached]
) -> None:
    held: list[tuple[Attached, int]] = []
    for number in range(60):
        process, wanted = attach(), 40 + number * 7 % 60
        sum_ = sum(bytes_ for _, bytes_ in held)
        granted = process.ask("reserve", wanted) == GRANTED
        assert granted == (sum_ + wanted <= 1000)
        if granted:
            held.append((process, wanted))
        else:
            victim, _ = held.pop(number % len(held))
            victim.kill()
    assert read_books(shares / "one").peak_bytes <= 1000


REFUSED = {
    "no folder": ("found No such file or directory, expected a folder of shares; the GPU is refused", None),
    "no share": ("found no share, expected at least one; the GPU is refused", None),
    "limits of another kind": ("magic", ("limits", 0)),
    "limits of another version": ("version", ("limits", 8)),
    "books of another kind": ("magic: found another value, expected books of version", ("books", 0)),
    "books of another version": ("version: found another value, expected books of version", ("books", 8)),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_without_sound_limits_and_books_nobody_gets_anything(
    damage: str, tmp_path: Path, core_program: Program, environment: dict[str, str]
) -> None:
    message, place = REFUSED[damage]
    shares = tmp_path / "shares"
    if damage != "no folder":
        shares.mkdir()
    if place is not None:
        create_share(shares / "one", LIMITS)
        with (shares / "one" / place[0]).open("r+b") as file:
            file.seek(place[1])
            file.write(b"\xff")
    run = subprocess.run(
        [core_program("attached"), UUID], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert (run.returncode, run.stdout) == (1, "")
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"libvgpu: {shares}")
    assert message in line
    assert line.endswith("the GPU is refused")


def test_the_layout_that_python_reads_is_the_one_that_the_compiler_makes(tmp_path: Path) -> None:
    ffi = layout().ffi
    lines = ['#include "vgpu/layout.h"', "#include <stddef.h>"]
    for name in ("struct vgpu_limits", "struct vgpu_books", "struct vgpu_slot"):
        lines.append(f'_Static_assert(sizeof({name}) == {ffi.sizeof(name)}, "size");')
        for field, _ in ffi.typeof(name).fields or ():
            offset, size = ffi.offsetof(name, field), f"sizeof((({name} *)0)->{field})"
            lines.append(f'_Static_assert(offsetof({name}, {field}) == {offset}, "{field}");')
            found = ffi.sizeof(dict(ffi.typeof(name).fields or ())[field].type)
            lines.append(f'_Static_assert({size} == {found}, "{field}");')
    source = tmp_path / "layout.c"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    include = Path(__file__).parents[4] / "libvgpu" / "include"
    subprocess.run(["cc", "-std=c11", "-fsyntax-only", f"-I{include}", str(source)], check=True, timeout=60)


def test_a_second_driver_api_on_the_core_is_exact_though_its_driver_fails(
    tmp_path: Path, core_program: Program, environment: dict[str, str]
) -> None:
    share = tmp_path / "shares" / "one"
    create_share(share, replace(LIMITS, memory_bytes=50_000_000))
    program, pipe = core_program("toy"), subprocess.PIPE
    with ExitStack() as stack:
        counted: dict[int, int] = {}
        toys = []
        for fail_every in (0, 7, 3):
            toy = subprocess.Popen(
                [program, UUID, str(fail_every)], env=environment, stdin=pipe, stdout=pipe, text=True
            )
            stack.enter_context(toy)
            stack.callback(toy.kill)
            toys.append(toy)
        for toy in toys:
            assert toy.stdout is not None
            result, bytes_ = toy.stdout.readline().split()
            assert result == "1"  # until there was no more
            counted[toy.pid] = int(bytes_)
        books = read_books(share)
        assert {process.pid: process.memory_bytes for process in books.processes} == counted
        assert books.used_bytes == sum(counted.values()) > 0
        assert books.peak_bytes <= 50_000_000
        toys[0].kill()
        toys[0].wait()
    assert read_books(share).used_bytes == 0


def test_a_second_driver_api_is_refused_on_a_device_without_a_share(
    tmp_path: Path, core_program: Program, environment: dict[str, str]
) -> None:
    create_share(tmp_path / "shares" / "one", LIMITS)
    run = subprocess.run(
        [core_program("toy"), UUID.replace("1", "2"), "0"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert run.stdout == "3 0\n"
