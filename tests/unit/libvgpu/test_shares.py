"""Limits and books as the node agent and the CLI handle them, without the C library."""

import fcntl
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from api.errors import StateError
from libvgpu.layout import layout
from libvgpu.shares import (
    Books,
    BooksReader,
    Limits,
    LimitsReader,
    Policy,
    change_limits,
    create_new_share,
    create_share,
    read_books,
    read_limits,
    update_limits,
)

LIMITS = Limits(
    share="claim-uid-0",
    device_uuid="GPU-00000000-0000-0000-0000-000000000001",
    memory_bytes=2 << 30,
    cores_percent=25,
    ceiling_percent=25,
    policy=Policy.FIXED,
)
EMPTY = Books(used_bytes=0, peak_bytes=0, processes=(), gpu_time_ns=0, throttled_ns=0, launches=0, out_of_memory=0)


def test_limits_of_another_layout_stay_as_they_are_for_containers_that_run(tmp_path: Path) -> None:
    share = tmp_path / "share"
    create_share(share, LIMITS)
    with (share / "limits").open("r+b", buffering=0) as running:  # as the mount of a container keeps it
        running.seek(8)
        running.write(struct.pack("=I", 7))
        running.seek(0)
        before = running.read()
        changed = replace(LIMITS, memory_bytes=1 << 30)

        with pytest.raises(StateError, match=r"limits: version: found 0x7, expected 0x1"):
            change_limits(share, lambda _present: changed)
        create_share(share, changed)

        running.seek(0)
        assert running.read() == before
    assert read_limits(share) == changed


def test_limits_read_back_as_they_were_written(tmp_path: Path) -> None:
    everything = Limits(
        share="s" * 127,
        device_uuid="GPU-1",
        memory_bytes=1,
        cores_percent=0,
        ceiling_percent=100,
        policy=Policy.BURST,
        priority=-7,
        suspended=True,
        oversubscribe=True,
        host_memory_bytes=3,
        granted_percent=42,
        charge_permille=900,
        context_bytes=4,
        steered_at_ns=5,
        settled_ns=-6,
        unseen_bytes=7,
    )
    create_share(tmp_path / "share", everything)
    assert read_limits(tmp_path / "share") == everything


def test_the_tenant_can_write_the_books_and_not_the_limits(tmp_path: Path) -> None:
    create_share(tmp_path, LIMITS)
    assert (tmp_path / "limits").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "books").stat().st_mode & 0o777 == 0o666
    assert sorted(path.name for path in tmp_path.iterdir()) == ["books", "limits"]


def test_an_update_keeps_the_file_and_moves_the_sequence_to_the_next_even_number(tmp_path: Path) -> None:
    create_share(tmp_path, LIMITS)
    inode = (tmp_path / "limits").stat().st_ino
    update_limits(tmp_path, replace(LIMITS, memory_bytes=1 << 30, suspended=True))
    assert (tmp_path / "limits").stat().st_ino == inode
    assert read_limits(tmp_path) == replace(LIMITS, memory_bytes=1 << 30, suspended=True)
    assert layout().limits((tmp_path / "limits").read_bytes()).sequence == 2


def test_creating_a_share_again_updates_its_limits_in_place_and_keeps_its_books(tmp_path: Path) -> None:
    create_share(tmp_path, LIMITS)
    before = [(tmp_path / name).stat().st_ino for name in ("limits", "books")]
    _write_slot(tmp_path / "books", pid=1, gpu_time_ns=7)
    create_share(tmp_path, replace(LIMITS, cores_percent=50, ceiling_percent=50))
    assert [(tmp_path / name).stat().st_ino for name in ("limits", "books")] == before
    assert read_limits(tmp_path).ceiling_percent == 50
    assert read_books(tmp_path).gpu_time_ns == 7


def test_creating_a_share_again_mends_books_that_a_tenant_cut_and_nobody_uses(tmp_path: Path) -> None:
    create_share(tmp_path, LIMITS)
    os.truncate(tmp_path / "books", 100)
    create_share(tmp_path, LIMITS)
    assert read_books(tmp_path) == EMPTY


def test_an_update_mends_a_sequence_that_a_dead_writer_left_odd(tmp_path: Path) -> None:
    create_share(tmp_path, LIMITS)
    _poke(tmp_path / "limits", 16, struct.pack("<I", 5))
    with pytest.raises(StateError) as error:
        read_limits(tmp_path)
    assert str(error.value) == (f"{tmp_path}/limits: sequence: found 5, expected an even number (a writer died)")
    update_limits(tmp_path, LIMITS)
    assert read_limits(tmp_path) == LIMITS


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("memory_bytes", 0, "memory_bytes: found 0, expected 1 to 4611686018427387904"),
        ("memory_bytes", -1, "memory_bytes: found -1, expected 1 to 4611686018427387904"),
        ("cores_percent", 101, "cores_percent: found 101, expected 0 to 100"),
        ("ceiling_percent", 0, "ceiling_percent: found 0, expected 1 to 100"),
        ("granted_percent", 101, "granted_percent: found 101, expected 0 to 100"),
        ("share", "", "share: found '', expected text of 1 to 127 bytes"),
        ("device_uuid", "G" * 48, f"device_uuid: found '{'G' * 48}', expected text of 1 to 47 bytes"),
    ],
)
def test_a_limit_out_of_range_is_refused_before_anything_is_written(
    tmp_path: Path, field: str, value: object, message: str
) -> None:
    with pytest.raises(StateError) as error:
        create_share(tmp_path / "share", replace(LIMITS, **{field: value}))  # type: ignore[arg-type]
    assert str(error.value) == f"{tmp_path}/share/limits: {message}"
    assert not (tmp_path / "share").exists()


@pytest.mark.parametrize(
    ("offset", "raw", "message"),
    [
        (0, b"\0" * 8, "magic: found 0x0, expected 0x314d494c55504756"),
        (8, b"\2\0\0\0", "version: found 0x2, expected 0x1"),
        (12, b"\1\0\0\0", "size: found 1, expected at least 240"),
        (24, b"\0" * 8, "memory_bytes: found 0, expected 1 to 4611686018427387904"),
        (52, b"\3\0\0\0", "policy: found 3, expected 1 (Fixed) or 2 (Burst)"),
        (64, b"x" * 48, "device_uuid: found '', expected text of 1 to 47 bytes"),
    ],
)
def test_a_damaged_limits_file_is_refused(tmp_path: Path, offset: int, raw: bytes, message: str) -> None:
    create_share(tmp_path, LIMITS)
    _poke(tmp_path / "limits", offset, raw)
    with pytest.raises(StateError) as error:
        read_limits(tmp_path)
    assert str(error.value) == f"{tmp_path}/limits: {message}"


def test_truncated_or_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    create_share(tmp_path, LIMITS)
    os.truncate(tmp_path / "limits", 17)
    os.truncate(tmp_path / "books", 18)
    with pytest.raises(StateError) as error:
        read_limits(tmp_path)
    assert str(error.value) == f"{tmp_path}/limits: found 17 bytes, expected a file of 4096 bytes"
    with pytest.raises(StateError) as error:
        update_limits(tmp_path, LIMITS)
    assert str(error.value) == f"{tmp_path}/limits: found 17 bytes, expected a file of 4096 bytes"
    with pytest.raises(StateError) as error:
        read_books(tmp_path)
    assert str(error.value) == f"{tmp_path}/books: found 18 bytes, expected a file of 266240 bytes"
    with pytest.raises(StateError) as error:
        read_books(tmp_path / "nothing")
    assert str(error.value) == (
        f"{tmp_path}/nothing/books: found No such file or directory, expected a readable books file"
    )


def test_new_books_are_empty(tmp_path: Path) -> None:
    create_share(tmp_path, LIMITS)
    assert read_books(tmp_path) == EMPTY


@pytest.mark.parametrize("create", [create_new_share, create_share])
def test_a_disk_that_fills_up_later_has_room_for_all_of_the_books(
    tmp_path: Path, create: Callable[[Path, Limits], object]
) -> None:
    # A mapping with holes ends its process (SIGBUS) where the disk has no room when it is written.
    create(tmp_path / "share", LIMITS)

    with (tmp_path / "share" / "books").open("rb") as file:
        assert os.fstat(file.fileno()).st_blocks * 512 >= layout().constants.VGPU_BOOKS_FILE_BYTES


def test_only_a_process_that_holds_its_lock_counts_as_living(tmp_path: Path) -> None:
    create_share(tmp_path, LIMITS)
    _write_slot(tmp_path / "books", pid=4711, reserved_bytes=1000, gpu_time_ns=5)
    dead = read_books(tmp_path)
    assert (dead.used_bytes, dead.processes, dead.gpu_time_ns) == (0, (), 5)

    with subprocess.Popen(
        [sys.executable, "-c", _HOLD_SLOT_ZERO, str(tmp_path / "books")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        living = read_books(tmp_path)
        holder.communicate(b"")
    assert living.used_bytes == 1000
    assert [process.pid for process in living.processes] == [4711]
    assert read_books(tmp_path).used_bytes == 0


def test_books_that_have_not_changed_are_not_decoded_again_and_a_change_is_seen(tmp_path: Path) -> None:
    create_share(tmp_path, LIMITS)
    reader = BooksReader(tmp_path)
    first = reader.read()
    assert reader.read() is first

    _write_slot(tmp_path / "books", pid=4711, launches=3)
    assert reader.read().launches == 3


def test_limits_that_have_not_changed_are_not_decoded_again_and_a_change_is_seen(tmp_path: Path) -> None:
    create_share(tmp_path, LIMITS)
    reader = LimitsReader(tmp_path)
    first = reader.read()
    assert reader.read() is first

    update_limits(tmp_path, replace(LIMITS, priority=7))
    assert reader.read().priority == 7


def test_a_count_of_slots_that_a_tenant_made_up_is_cut_to_those_there_are(tmp_path: Path) -> None:
    create_share(tmp_path, LIMITS)
    books = layout().books(bytearray((tmp_path / "books").read_bytes()))
    books.slots_high = 0xFFFFFFFF
    books.slots[1023].launches, books.slots[1023].pid = 5, 1
    (tmp_path / "books").write_bytes(layout().raw(books))

    assert read_books(tmp_path).launches == 5


@pytest.mark.parametrize("reads_before", [0, 1])
def test_books_that_are_cut_off_while_they_are_read_are_refused_and_show_nothing_of_their_readers_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads_before: int
) -> None:
    create_share(tmp_path / "share", LIMITS)
    path = tmp_path / "share" / "books"
    raw = bytearray(path.read_bytes())
    layout().books(raw).slots_high = 1000
    path.write_bytes(raw)
    usual, reads = os.pread, iter(range(10))
    monkeypatch.setattr(os, "pread", lambda *place: usual(*place)[: None if next(reads) < reads_before else 7])
    expected = (4096, 260096)[reads_before]

    with pytest.raises(StateError, match=rf"/books: found 7 bytes, expected at least {expected}$"):
        read_books(tmp_path / "share")


def test_several_programs_change_different_limits_of_a_share_at_once(tmp_path: Path) -> None:
    create_share(tmp_path, LIMITS)

    def count(field: str) -> None:
        for _ in range(50):
            change_limits(tmp_path, lambda limits: replace(limits, **{field: getattr(limits, field) + 1}))

    threads = [threading.Thread(target=count, args=(field,)) for field in ("priority", "granted_percent")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    after = read_limits(tmp_path)
    assert (after.priority - LIMITS.priority, after.granted_percent - LIMITS.granted_percent) == (50, 50)


_HOLD_SLOT_ZERO = """
import fcntl, os, struct, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 1 << 30, 1, 0))
print("locked", flush=True)
sys.stdin.read()
"""
assert hasattr(fcntl, "F_OFD_SETLK")


def _poke(path: Path, offset: int, raw: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(raw)


def _write_slot(path: Path, **fields: int) -> None:
    """Write slot 0 as a process would."""
    books = layout().books(bytearray(path.read_bytes()))
    books.slots_high = 1
    for name, value in fields.items():
        setattr(books.slots[0], name, value)
    path.write_bytes(layout().raw(books))


def test_a_tenant_that_locks_its_files_holds_up_nobody(tmp_path: Path) -> None:
    create_share(tmp_path, LIMITS)
    with (tmp_path / "limits").open("rb") as limits, (tmp_path / "books").open("rb") as books:
        for file in (limits, books):
            fcntl.flock(file, fcntl.LOCK_EX)

        change_limits(tmp_path, lambda present: replace(present, granted_percent=50))
        create_share(tmp_path, LIMITS)

    assert read_limits(tmp_path) == LIMITS


def test_two_writers_of_one_share_lose_no_change(tmp_path: Path) -> None:
    create_share(tmp_path, LIMITS)

    def count(_number: int) -> None:
        change_limits(tmp_path, lambda present: replace(present, priority=present.priority + 1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(100)))

    assert read_limits(tmp_path).priority == 100
