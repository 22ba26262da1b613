"""A tenant who writes his own books: never above the limit alone, never at a neighbour's cost, and never unreadable."""

import random
import struct
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from api.errors import StateError
from libvgpu.layout import layout
from libvgpu.shares import Books, read_books
from libvgpu.stub import read_card

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
LIMIT = 64 * MIB
WRITE = "import os; file = os.open({books!r}, os.O_RDWR); "
# What a process does to the books of its share between two bites of 40 MiB.
DAMAGES = {
    "garbage": "import random; os.pwrite(file, random.Random(9).randbytes(266240), 0)",
    "zeros": "os.pwrite(file, bytes(266240), 0)",
    "nothing in use": "os.pwrite(file, bytes(16), 64)",
    "empty slots": "os.pwrite(file, bytes(262144), 4096)",
    "nothing in use and empty slots": "os.pwrite(file, bytes(16), 64); os.pwrite(file, bytes(262144), 4096)",
    "a slot with more than there is": "os.pwrite(file, (1 << 62).to_bytes(8, 'little'), 4096)",
    "less in use than nothing": "os.pwrite(file, (-(1 << 40)).to_bytes(8, 'little', signed=True), 64)",
    "a recount that nobody ends": "os.pwrite(file, (1 << 63).to_bytes(8, 'little'), 64)",
    "bytes in flight that never land": "os.pwrite(file, (1 << 62).to_bytes(8, 'little'), 4104)",
    "processes of others": "os.pwrite(file, (os.getppid()).to_bytes(4, 'little'), 4096 + 72)",
    "no process": "os.pwrite(file, bytes(4), 4096 + 72)",
    "more slots than there are": "os.pwrite(file, b'\\xff' * 12, 16)",
    "more bytes": "os.ftruncate(file, 1 << 20)",
    "no bytes": "os.ftruncate(file, 0)",
    "no bytes for a moment": "os.ftruncate(file, 0); os.ftruncate(file, 266240)",
    "no name": "os.unlink({books!r})",
    "another file": (
        "os.rename({books!r}, {books!r} + '.old'); open({books!r}, 'wb').write(os.pread(file, 64, 0)); "
        "os.truncate({books!r}, 266240)"
    ),
    "a mapping that scribbles": """
import mmap, threading
books = mmap.mmap(file, 266240)
def scribble():
    while True:
        books[64:80] = bytes(16)
threading.Thread(target=scribble, daemon=True).start()
""",
}


@pytest.mark.parametrize(
    "damage", [pytest.param(name, marks=[pytest.mark.no_sanitizer] * (name == "no bytes")) for name in DAMAGES]
)
def test_damaged_books_never_raise_the_limit_of_a_process(damage: str, machine: "Machine") -> None:
    share = machine.share(LIMIT)
    books = str(share / "books")
    neighbour = machine.share(LIMIT, container="neighbour")
    code = (WRITE + DAMAGES[damage]).replace("{books!r}", repr(books))
    with machine.start(f"start(); alloc({40 * MIB}); say('going')\n{code}\nsay(grab()); os._exit(0)") as program:
        output, _ = program.communicate(timeout=60)
    assert output.startswith("going\n")
    # A process that has cut off the file below its own mapping ends with a bus error: its own doing.
    assert program.returncode in ((0, -7) if damage == "no bytes" else (0,))
    assert read_card(machine.card).peak_bytes <= LIMIT
    with suppress(StateError):
        assert isinstance(read_books(share), Books)
    machine.run(f"start(); alloc({LIMIT}); assert try_alloc(1)[0] == OUT_OF_MEMORY", container="neighbour")
    assert read_books(neighbour).used_bytes == 0


@pytest.mark.parametrize(
    "lie",
    [
        "os.pwrite(file, bytes(16), 64)",
        "os.pwrite(file, (1 << 40).to_bytes(8, 'little'), 4096 + 256)",
        "os.pwrite(file, (1 << 40).to_bytes(8, 'little'), 4096 + 256); os.kill(os.getpid(), 9)",
    ],
    ids=["nothing in use", "one's own slot", "one's own slot, left behind by death"],
)
def test_whoever_comes_next_counts_anew(lie: str, machine: "Machine") -> None:
    share = machine.share(LIMIT)
    with machine.start(f"start(); alloc({40 * MIB}); say('holding'); wait_for_line()") as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        with machine.start(
            f"start(); free(alloc({MIB}))\n{WRITE.format(books=str(share / 'books'))}{lie}\nos._exit(0)"
        ) as liar:
            liar.communicate(timeout=60)
        machine.run(f"start(); assert grab() == 24, info(); assert info() == (0, {LIMIT}), info()")
        holder.communicate("\n", timeout=60)
    assert read_card(machine.card).peak_bytes <= LIMIT


def test_lies_that_processes_agree_on_show_in_the_drivers_figures(machine: "Machine") -> None:
    # Each process is bound by the limit for itself; together they can say anything. The card knows.
    share = machine.share(LIMIT)
    lie = WRITE.format(books=str(share / "books")) + DAMAGES["nothing in use and empty slots"]
    with machine.start(f"start(); grab()\n{lie}\nsay('one'); wait_for_line()") as one:
        assert one.stdout is not None
        assert one.stdout.readline() == "one\n"
        with machine.start("start(); say(grab()); wait_for_line()") as two:
            assert two.stdout is not None
            assert two.stdout.readline() == "64\n"
            driver = sum(process.memory_bytes for process in read_card(machine.card).processes)
            assert driver == 2 * LIMIT
            assert read_books(share).used_bytes < driver
            two.communicate("\n", timeout=60)
        one.communicate("\n", timeout=60)


def test_any_bytes_are_read_as_books_or_refused_by_name(tmp_path: Path) -> None:
    constants = layout().constants
    path = tmp_path / "books"
    chosen = random.Random(3)
    for size in (0, 1, 4096, constants.VGPU_BOOKS_FILE_BYTES - 1, constants.VGPU_BOOKS_FILE_BYTES + 1):
        path.write_bytes(chosen.randbytes(size))
        with pytest.raises(StateError) as error:
            read_books(tmp_path)
        assert str(error.value) == (
            f"{path}: found {size} bytes, expected a file of {constants.VGPU_BOOKS_FILE_BYTES} bytes"
        )
    header = struct.pack(
        "<QIIII", constants.VGPU_BOOKS_MAGIC, 1, constants.VGPU_BOOKS_FILE_BYTES, constants.VGPU_SLOTS, 256
    )
    for _ in range(20):
        path.write_bytes(header + chosen.randbytes(constants.VGPU_BOOKS_FILE_BYTES - len(header)))
        books = read_books(tmp_path)
        assert (books.used_bytes, books.processes) == (0, ())  # nobody holds a lock: nobody lives


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing", "link to a device"])
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "books"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        subprocess.run(["mkfifo", path], check=True)
    else:
        path.symlink_to("/nothing" if kind == "link to nothing" else "/dev/zero")
    with pytest.raises(StateError, match=r"^.*/books: found .*, expected .*$"):
        read_books(tmp_path)


def test_a_bucket_that_is_filled_by_hand_gives_a_process_no_more_than_the_share(machine: "Machine") -> None:
    share = machine.share(LIMIT, cores_percent=20)
    with machine.start(f"""
        import mmap, os, threading, time
        books = mmap.mmap(os.open({str(share / "books")!r}, os.O_RDWR), 266240)
        start()
        function = kernel()
        def fill():
            while True:
                books[128:136] = (1 << 40).to_bytes(8, "little")
                time.sleep(0.0005)
        threading.Thread(target=fill, daemon=True).start()
        end = time.monotonic() + 2
        while time.monotonic() < end:
            launch(function, 500_000)
        synchronize()
        os._exit(0)
    """) as program:
        program.communicate(timeout=60)
    (process,) = read_card(machine.card).processes
    # 2 s of it, and a second that was never used before.
    assert process.gpu_time_ns <= 0.2 * 3.3e9
