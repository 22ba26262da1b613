"""Memory that processes hand each other: charged once, to who made it and then to who still holds it."""

from typing import TYPE_CHECKING

import pytest

from libvgpu.shares import read_books
from libvgpu.stub import change_settings, read_card

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
HELPERS = f"""
import os, socket

class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_char * 64)]

def create(size=40 * {MIB}):
    handle = Pointer()
    check(cuda.cuMemCreate(byref(handle), c_size_t(size), (c_int * 16)(1, 1, 1, 0), c_ulonglong(0)))
    return handle

def export(handle):
    descriptor = c_int()
    check(cuda.cuMemExportToShareableHandle(byref(descriptor), handle, 1, c_ulonglong(0)))
    return descriptor.value

def import_from(descriptor):
    handle = Pointer()
    check(cuda.cuMemImportFromShareableHandle(byref(handle), c_void_p(descriptor), 1))
    return handle

def share(pointer):
    handle = Handle()
    check(cuda.cuIpcGetMemHandle(byref(handle), pointer))
    return bytes(handle).hex()

def try_open(text, function="cuIpcOpenMemHandle_v2"):
    pointer = Pointer()
    return getattr(cuda, function)(byref(pointer), Handle.from_buffer_copy(bytes.fromhex(text)), 1), pointer
"""


def _said(program: "subprocess.Popen[str]") -> str:
    assert program.stdout is not None
    return program.stdout.readline().strip()


def _go_on(program: "subprocess.Popen[str]") -> None:
    assert program.stdin is not None
    print(file=program.stdin, flush=True)


def test_memory_stays_charged_while_a_descriptor_that_it_was_exported_by_is_open(machine: "Machine") -> None:
    share = machine.share(64 * MIB)
    machine.run(
        HELPERS
        + f"""
start()
memory = create()
one, other = export(memory), export(memory)
check(cuda.cuMemRelease(memory))
os.close(one)
elsewhere = socket.socketpair()
socket.send_fds(elsewhere[0], [b"x"], [other])
os.close(other)  # it is on its way through the socket
assert info()[0] == {24 * MIB}, info()
assert try_alloc({40 * MIB})[0] == OUT_OF_MEMORY
_, (arrived,), _, _ = socket.recv_fds(elsewhere[1], 1, 1)
assert try_alloc({40 * MIB})[0] == OUT_OF_MEMORY
os.close(arrived)
alloc({40 * MIB})
"""
    )
    assert read_card(machine.card).peak_bytes == 40 * MIB
    assert read_books(share).used_bytes == 0


def test_a_descriptor_of_which_nobody_can_tell_keeps_its_memory_charged(machine: "Machine") -> None:
    machine.share(64 * MIB)
    machine.run(
        HELPERS
        + f"""
start()
before = set(os.listdir("/proc/self/fd"))
memory = create()
descriptor = export(memory)
for name in set(os.listdir("/proc/self/fd")) - before:
    if name != str(descriptor) and os.path.exists(f"/proc/self/fd/{{name}}"):
        os.dup2(0, int(name))  # whatever the library had there
check(cuda.cuMemRelease(memory))
assert try_alloc({40 * MIB})[0] == OUT_OF_MEMORY
"""
    )


def test_memory_imported_where_it_was_made_stays_charged_when_the_first_handle_is_released(machine: "Machine") -> None:
    share = machine.share(64 * MIB)
    machine.run(
        HELPERS
        + f"""
start()
memory = create()
descriptor = export(memory)
imported = import_from(descriptor)
os.close(descriptor)
assert info()[0] == {24 * MIB}, info()
check(cuda.cuMemRelease(memory))
assert info()[0] == {24 * MIB}, info()
assert try_alloc({40 * MIB})[0] == OUT_OF_MEMORY
check(cuda.cuMemRelease(imported))
alloc({40 * MIB})
"""
    )
    assert read_card(machine.card).peak_bytes == 40 * MIB
    assert read_books(share).used_bytes == 0


def test_memory_of_many_handles_comes_back_with_its_last_mapping_or_handle_in_any_order(machine: "Machine") -> None:
    share = machine.share(1 << 30)
    machine.run(
        HELPERS
        + f"""
import random
start()
ONE, COUNT, used, base = 2 * {MIB}, 256, lambda: {1 << 30} - info()[0], Pointer()
check(cuda.cuMemAddressReserve(byref(base), c_size_t(COUNT * ONE), c_size_t(0), Pointer(0), c_ulonglong(0)))
order, handles, again = random.Random(1).sample(range(COUNT), COUNT), [create(ONE) for _ in range(COUNT)], Pointer()

def place(i): return Pointer(base.value + i * ONE)
def unmap(first, count): check(cuda.cuMemUnmap(place(first), c_size_t(count * ONE)))
def map_at(i, handle): check(cuda.cuMemMap(place(i), c_size_t(ONE), c_size_t(0), handle, c_ulonglong(0)))

for i in order: map_at(i, handles[i])
for i in reversed(order[8:]): check(cuda.cuMemRelease(handles[i]))
assert used() == COUNT * ONE, used()
kept = set(order[:8])
check(cuda.cuMemRetainAllocationHandle(byref(again), c_void_p(place(order[0]).value)))
check(cuda.cuMemRelease(again))
unmap(0, COUNT // 2)  # many neighbours at once
assert used() == (COUNT // 2 + len([i for i in kept if i < COUNT // 2])) * ONE, used()
for i in order:
    if i >= COUNT // 2: unmap(i, 1)
assert used() == 8 * ONE, used()
map_at(5, handles[order[1]])
for i in kept: check(cuda.cuMemRelease(handles[i]))
assert used() == ONE, used()
check(cuda.cuMemRetainAllocationHandle(byref(again), c_void_p(place(5).value)))
unmap(5, 1)
assert used() == ONE, used()
check(cuda.cuMemRelease(again))
assert used() == 0, used()
"""
    )
    assert read_books(share).used_bytes == 0


@pytest.mark.parametrize("end", ["freed", "killed"])
def test_who_opened_memory_is_charged_for_it_once_its_maker_has_let_go(end: str, machine: "Machine") -> None:
    maker_share = machine.share(64 * MIB, container="maker")
    opener_share = machine.share(64 * MIB, container="opener")
    maker = machine.start(
        HELPERS
        + f"start(); pointer = alloc({40 * MIB}); say(share(pointer)); wait_for_line(); free(pointer); say('freed'); "
        "wait_for_line()",
        container="maker",
    )
    with maker:
        opener = machine.start(
            HELPERS
            + f"""
start()
for function in ("cuIpcOpenMemHandle", "cuIpcOpenMemHandle_v2"):
    result, pointer = try_open("{_said(maker)}", function)
    check(result)
    if function == "cuIpcOpenMemHandle":
        check(cuda.cuIpcCloseMemHandle(pointer))
assert info()[0] == {64 * MIB}, info()
say("open")
wait_for_line()
assert try_alloc({40 * MIB})[0] == OUT_OF_MEMORY
assert info()[0] == {24 * MIB}, info()
say("charged")
wait_for_line()
check(cuda.cuIpcCloseMemHandle(pointer))
assert info()[0] == {64 * MIB}, info()
""",
            container="opener",
        )
        with opener:
            assert _said(opener) == "open"
            if end == "freed":
                _go_on(maker)
                assert _said(maker) == "freed"
                assert read_books(maker_share).used_bytes == 0
            else:
                maker.kill()
                maker.wait()
            _go_on(opener)
            assert _said(opener) == "charged"
            assert read_books(opener_share).used_bytes == read_card(machine.card).used_bytes == 40 * MIB
            opener.communicate("\n", timeout=60)
        assert opener.returncode == 0
        maker.communicate("\n", timeout=60)


def test_where_the_driver_counts_opened_memory_at_once_it_is_charged_at_once_or_not_opened(machine: "Machine") -> None:
    change_settings(machine.card, opened_counts=1)
    machine.share(64 * MIB, container="maker")
    machine.share(64 * MIB, container="opener")
    maker = machine.start(HELPERS + f"start(); say(share(alloc({40 * MIB}))); wait_for_line()", container="maker")
    with maker:
        machine.run(
            HELPERS
            + f"""
start()
handle = "{_said(maker)}"
result, pointer = try_open(handle)
check(result)
assert info()[0] == {24 * MIB}, info()
check(cuda.cuIpcCloseMemHandle(pointer))
alloc({30 * MIB})
for function in ("cuIpcOpenMemHandle", "cuIpcOpenMemHandle_v2"):
    assert try_open(handle, function)[0] == OUT_OF_MEMORY
assert info()[0] == {34 * MIB}, info()
""",
            container="opener",
        )
        maker.communicate("\n", timeout=60)


def test_who_has_opened_memory_is_still_charged_for_the_modules_it_loads(machine: "Machine") -> None:
    change_settings(machine.card, module_bytes=40 * MIB)
    machine.share(256 * MIB)
    maker = machine.start(HELPERS + f"start(); say(share(alloc({MIB}))); wait_for_line()")
    with maker:
        machine.run(
            HELPERS
            + f"""
start()
check(try_open("{_said(maker)}")[0])
kernel()
assert info()[0] == {(256 - 41) * MIB}, info()
"""
        )
        maker.communicate("\n", timeout=60)


def test_who_failed_to_import_is_still_charged_for_the_modules_and_contexts_it_makes(machine: "Machine") -> None:
    change_settings(machine.card, module_bytes=40 * MIB, context_bytes=10 * MIB)
    machine.share(64 * MIB)
    machine.run("""
start()
assert cuda.cuMemImportFromShareableHandle(byref(Pointer()), c_void_p(-1), 1) != SUCCESS
kernel()
assert info()[0] == 14 << 20, info()
check(cuda.cuCtxCreate_v2(byref(c_void_p()), 0, 0))
assert cuda.cuCtxCreate_v2(byref(c_void_p()), 0, 0) == OUT_OF_MEMORY
""")
    assert read_card(machine.card).peak_bytes == 60 * MIB


def test_memory_of_another_api_takes_nothing_of_the_share_and_is_followed_to_its_end(
    machine: "Machine", tmp_path: "Path"
) -> None:
    share = machine.share(64 * MIB)
    (tmp_path / "memory").write_bytes(bytes(MIB))
    machine.run(
        HELPERS
        + f"""
start()
memory, pointer = c_void_p(), Pointer()
description = (c_ulonglong * 13)(1)
c_int.from_buffer(description, 8).value = os.open("{tmp_path}/memory", os.O_RDWR)
description[3] = {MIB}
check(cuda.cuImportExternalMemory(byref(memory), description))
buffer = (c_ulonglong * 11)(0, {MIB})
check(cuda.cuExternalMemoryGetMappedBuffer(byref(pointer), memory, buffer))
assert info()[0] == {64 * MIB}, info()
check(cuda.cuMemFree_v2(pointer))
check(cuda.cuDestroyExternalMemory(memory))
assert info()[0] == {64 * MIB}, info()
"""
    )
    assert read_books(share).used_bytes == 0
