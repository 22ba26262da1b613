"""Fail closed: a share that cannot be read, or a device without one, is refused with a line that says why."""

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from libvgpu.stub import read_card

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

TRY = """
print(cuda.cuInit(0))
print(cuda.cuDevicePrimaryCtxRetain(byref(c_void_p()), 0))
print(try_alloc(1)[0])
"""
REFUSED = "800\n800\n800\n"


def _refusal(machine: "Machine") -> str:
    """Return what the library said when the driver was started, which must have failed and reached no card."""
    output, errors = machine.refused(TRY)
    assert output == REFUSED
    assert read_card(machine.card).processes == ()
    return errors


@pytest.mark.parametrize(
    ("offset", "raw", "message"),
    [
        (0, b"\0" * 8, "magic: found 0, expected 0x314d494c55504756"),
        (8, b"\2\0\0\0", "version: found 0x2, expected 0x1"),
        (12, b"\7\0\0\0", "size: found 7, expected 240 to 4096"),
        (16, b"\1\0\0\0", "sequence: found 1, expected an even number (a writer died)"),
        (24, b"\0" * 8, "memory_bytes: found 0, expected 1 to 4611686018427387904"),
        (40, b"\x65\0\0\0", "cores_percent: found 101, expected 0 to 100"),
        (44, b"\0\0\0\0", "ceiling_percent: found 0, expected 1 to 100"),
        (52, b"\3\0\0\0", "policy: found 3, expected 1 to 2"),
        (64, b"\0" * 48, "device_uuid: found no text, expected text of 1 to 47 bytes"),
        (112, b"x" * 128, "share: found no text, expected text of 1 to 127 bytes"),
    ],
)
def test_damaged_limits_refuse_the_gpu(offset: int, raw: bytes, message: str, machine: "Machine") -> None:
    limits = machine.share(1 << 20) / "limits"
    with limits.open("r+b") as file:
        file.seek(offset)
        file.write(raw)
    assert _refusal(machine) == f"libvgpu: {limits}: {message}; the GPU is refused\n"


def test_truncated_limits_refuse_the_gpu(machine: "Machine") -> None:
    limits = machine.share(1 << 20) / "limits"
    os.truncate(limits, 100)
    assert _refusal(machine) == (
        f"libvgpu: {limits}: found 100 bytes, expected a file of 4096 bytes; the GPU is refused\n"
    )


def test_missing_limits_refuse_the_gpu(machine: "Machine") -> None:
    limits = machine.share(1 << 20) / "limits"
    limits.unlink()
    assert _refusal(machine) == (
        f"libvgpu: {limits}: found No such file or directory, expected a readable limits file; the GPU is refused\n"
    )


def test_missing_books_refuse_the_gpu(machine: "Machine") -> None:
    books = machine.share(1 << 20) / "books"
    books.unlink()
    assert _refusal(machine) == (
        f"libvgpu: {books}: found No such file or directory, expected writable books; the GPU is refused\n"
    )


def test_truncated_books_refuse_the_gpu(machine: "Machine") -> None:
    books = machine.share(1 << 20) / "books"
    os.truncate(books, 4096)
    assert _refusal(machine) == (
        f"libvgpu: {books}: found 4096 bytes, expected a file of 266240 bytes; the GPU is refused\n"
    )


def test_foreign_books_refuse_the_gpu(machine: "Machine") -> None:
    books = machine.share(1 << 20) / "books"
    with books.open("r+b") as file:
        file.seek(8)
        file.write(struct.pack("<I", 9))
    assert _refusal(machine) == (
        f"libvgpu: {books}: version: found another value, expected books of version 1; the GPU is refused\n"
    )


def test_a_folder_without_shares_refuses_the_gpu(machine: "Machine") -> None:
    (machine.shares / "main").mkdir()
    assert _refusal(machine) == (
        f"libvgpu: {machine.shares}/main: found no share, expected at least one; the GPU is refused\n"
    )


def test_no_folder_at_all_refuses_the_gpu(machine: "Machine") -> None:
    assert _refusal(machine) == (
        f"libvgpu: {machine.shares}/main: found No such file or directory, expected a folder of shares; "
        "the GPU is refused\n"
    )


@pytest.mark.skipif(Path("/run/vgpu/shares").exists(), reason="this machine has a folder of shares of its own")
def test_nothing_said_about_shares_refuses_the_gpu(machine: "Machine", monkeypatch: pytest.MonkeyPatch) -> None:
    environment = machine.environment
    monkeypatch.setattr(
        type(machine), "environment", lambda _self, container: environment(container) | {"VGPU_SHARES_DIR": ""}
    )
    assert _refusal(machine) == (
        "libvgpu: found neither /run/vgpu/shares nor VGPU_SHARES_DIR, expected a folder of shares; the GPU is refused\n"
    )


def test_one_bad_share_among_good_ones_refuses_the_gpu(machine: "Machine") -> None:
    machine.share(1 << 20, name="good")
    (machine.share(1 << 20, name="bad") / "limits").write_bytes(b"nonsense")
    assert _refusal(machine) == (
        f"libvgpu: {machine.shares}/main/bad/limits: found 8 bytes, expected a file of 4096 bytes; the GPU is refused\n"
    )


def test_a_device_without_a_share_is_refused(machine: "Machine") -> None:
    machine.share(1 << 20, device_uuid="GPU-99999999-0000-4000-8000-000000000009")
    output, errors = machine.refused("""
        check(cuda.cuInit(0))
        context = c_void_p()
        print(cuda.cuDevicePrimaryCtxRetain(byref(context), 0))
        print(cuda.cuCtxCreate_v2(byref(context), 0, 0))
        print(cuda.cuMemCreate(byref(Pointer()), c_size_t(2 << 20), (c_int * 16)(1, 0, 1, 0), c_ulonglong(0)))
    """)
    assert output == "800\n800\n800\n"
    assert errors == (
        "libvgpu: device 0 (GPU-00000000-0000-4000-8000-000000000001): found no share of it, expected one; "
        "the device is refused\n"
    )
    assert read_card(machine.card).used_bytes == 0


def test_a_process_that_never_uses_the_gpu_reads_none_of_our_files(machine: "Machine") -> None:
    output, errors = machine.refused(f"""
        import os, pathlib
        maps = pathlib.Path("/proc/self/maps").read_text()
        print({str(machine.shares)!r} in maps, len(os.listdir("/proc/self/task")))
    """)
    assert (output, errors) == ("False 1\n", "")
