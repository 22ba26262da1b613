"""A process that never uses a GPU has nothing of the library but its code."""

import ctypes
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
IN_OPEN, IN_NONBLOCK = 0x20, 0o4000


def _opened(program: str, machine: "Machine", folder: Path) -> set[str]:
    """Run a program; return the names of what was opened in a folder and those in it, by the kernel's own word."""
    libc = ctypes.CDLL(None, use_errno=True)
    notifier = libc.inotify_init1(IN_NONBLOCK)
    assert notifier >= 0
    try:
        for place in (folder, *(entry for entry in folder.rglob("*") if entry.is_dir())):
            assert libc.inotify_add_watch(notifier, os.fsencode(place), IN_OPEN) >= 0
        machine.run(program)
        try:
            events = os.read(notifier, 1 << 16)
        except BlockingIOError:
            return set()
    finally:
        os.close(notifier)
    names, at = set(), 0
    while at < len(events):
        _, _, _, length = struct.unpack_from("iIII", events, at)
        names.add(events[at + 16 : at + 16 + length].rstrip(b"\0").decode())
        at += 16 + length
    return names


def test_a_process_that_never_uses_cuda_opens_no_file_of_the_share_and_maps_none(machine: "Machine") -> None:
    share = machine.share(MIB)
    lookups = f"""
        import os, threading
        for name in ("cuMemAlloc_v2", "cuInit", "malloc"):
            ctypes.CDLL(None)[name]
        assert not hasattr(ctypes.CDLL(None), "nvmlInit_v2")  # nobody has opened NVML
        maps = open("/proc/self/maps").read()
        assert {str(share)!r} not in maps and {str(machine.card.parent)!r} not in maps
        assert len(os.listdir("/proc/self/task")) == 1
    """
    assert _opened(lookups, machine, share.parent) == set()
    assert _opened("check(cuda.cuInit(0))", machine, share.parent) >= {"limits", "books"}
