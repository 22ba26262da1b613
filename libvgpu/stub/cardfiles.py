"""Simulated cards as files: making one, reading its own count, disturbing it. The layout is card.h, read by cffi.

Called by `libvgpu.stub` and its command line. Reading changes nothing and asks nobody: a process counts as alive while
it holds its lock on the card's file, whatever pid namespace it lives in.
"""

import contextlib
import dataclasses
import fcntl
import functools
import mmap
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cffi

from api.errors import StateError
from libvgpu.stub.cards import StubCard, StubGPU, StubProcess, StubSettings

HEADER = Path(__file__).parent / "card.h"
_BEGIN = "/* cffi: begin */"
_END = "/* cffi: end */"

XID_EVENT = 0x8
"""nvmlEventTypeXidCriticalError."""

_FLOCK = "hhqqi4x"  # struct flock: type, whence, start, length, pid


@functools.cache
def _layout() -> tuple[Any, Any]:
    text = HEADER.read_text(encoding="utf-8")
    ffi: Any = cffi.FFI()  # its structures have the fields of card.h, which no type knows
    ffi.cdef(text.split(_BEGIN, 1)[1].split(_END, 1)[0])
    return ffi, ffi.dlopen(None)


def _text(array: Any) -> str:
    ffi, _ = _layout()
    return bytes(ffi.buffer(array)).split(b"\0", 1)[0].decode(errors="replace")


def _put(array: Any, text: str, what: str) -> None:
    raw = text.encode()
    if len(raw) >= len(array):
        raise ValueError(f"{what} {text!r} has {len(raw)} bytes, at most {len(array) - 1} fit")
    for position, byte in enumerate(raw):
        array[position] = bytes([byte])


# ---- Making ----


def create_card(path: Path, index: int, gpu: StubGPU) -> None:
    """Make the file of card number `index` at `path`, in the place of what was there: a new card, unused."""
    ffi, lib = _layout()
    card = ffi.new("struct stub_card *")
    card.magic, card.version, card.size, card.index = (
        lib.STUB_CARD_MAGIC,
        lib.STUB_CARD_VERSION,
        ffi.sizeof("struct stub_card"),
        index,
    )
    _put(card.name, gpu.name, "GPU name")
    _put(card.uuid, gpu.uuid, "GPU UUID")
    _put(card.parent_uuid, gpu.parent_uuid, "UUID of the parent")
    _put(card.serial, f"16{zlib.crc32(gpu.uuid.encode()) % 10**11:011d}", "serial")
    _put(card.driver_version, gpu.driver_version, "driver version")
    card.cuda_version = gpu.cuda_version
    card.compute_major, card.compute_minor = gpu.compute_capability
    card.multiprocessors = gpu.multiprocessors
    card.pci_bus = gpu.pci_bus if gpu.pci_bus is not None else 0x17 + 0x10 * (index % 14)
    card.pci_device = index // 14
    card.pci_device_id = gpu.pci_device_id
    card.numa_node = gpu.numa_node
    card.mig_mode = int(gpu.mig)
    card.memory_bytes = gpu.memory_bytes
    _set(card, dataclasses.asdict(gpu.settings))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(bytes(ffi.buffer(card)))
    temporary.chmod(0o666)
    temporary.replace(path)


def _set(card: Any, settings: dict[str, int]) -> None:
    known = {setting.name for setting in dataclasses.fields(StubSettings)}
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"no setting {name!r}; there are {', '.join(sorted(known))}")
        setattr(card, name, value)


# ---- Reading ----


def read_card(path: Path) -> StubCard:
    """Return what the card at `path` counted.

    Raises StateError if the file is no simulated card of this version.
    """
    with _open(path, os.O_RDONLY) as (file, raw):
        card = _check(path, raw)
        processes = _processes(file, card)
        return StubCard(
            path=path,
            index=card.index,
            name=_text(card.name),
            uuid=_text(card.uuid),
            memory_bytes=card.memory_bytes,
            used_bytes=sum(process.memory_bytes for process in processes),
            peak_bytes=card.peak_bytes,
            gpu_time_ns=card.ended_gpu_time_ns + sum(process.gpu_time_ns for process in processes),
            engine_changes=card.engine_changes,
            engine_waiters=card.engine_waiters,
            processes=processes,
        )


@contextlib.contextmanager
def _open(path: Path, flags: int) -> Iterator[tuple[int, bytes]]:
    try:
        file = os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise StateError(f"{path}: cannot read the simulated card: {error.strerror}") from error
    try:
        yield file, os.pread(file, 1 << 24, 0)
    finally:
        os.close(file)


def _check(path: Path, raw: bytes) -> Any:
    ffi, lib = _layout()
    size = ffi.sizeof("struct stub_card")
    if len(raw) < size:
        raise StateError(f"{path}: {len(raw)} bytes are no simulated card, which has {size}")
    card = ffi.from_buffer("struct stub_card *", raw)
    if card.magic != lib.STUB_CARD_MAGIC or card.version != lib.STUB_CARD_VERSION or card.size != size:
        raise StateError(
            f"{path}: magic {card.magic:#x} version {card.version} size {card.size} is no simulated card of this "
            f"version, expected {lib.STUB_CARD_MAGIC:#x}, {lib.STUB_CARD_VERSION} and {size}"
        )
    return card


def _processes(file: int, card: Any) -> tuple[StubProcess, ...]:
    numbers = [number for number in range(len(card.slots)) if card.slots[number].state]
    lives = {number: _lives(file, card, number) for number in numbers}
    inherited = dict.fromkeys(numbers, 0)  # from dead processes whose slots nobody has taken back yet
    for entry in card.shared:
        if entry.owner and not lives[entry.owner - 1]:
            heirs = (number for number in numbers if lives[number] and entry.holders[number // 64] >> number % 64 & 1)
            heir = next(heirs, None)
            if heir is not None:
                inherited[heir] += entry.bytes
    return tuple(_process(card.slots[number], lives[number], inherited[number]) for number in numbers)


def _lives(file: int, card: Any, number: int) -> bool:
    _, lib = _layout()
    return card.slots[number].state == lib.STUB_SLOT_LIVE and _locked(file, number)


def _process(slot: Any, alive: bool, inherited_bytes: int) -> StubProcess:
    return StubProcess(
        pid=slot.pid,
        pid_namespace=slot.pid_namespace,
        start_time=slot.start_time,
        hostname=_text(slot.hostname),
        comm=_text(slot.comm),
        alive=alive,
        memory_bytes=slot.memory_bytes + inherited_bytes if alive else 0,
        peak_bytes=slot.peak_bytes,
        pool_idle_bytes=slot.pool_idle_bytes if alive else 0,
        host_bytes=slot.host_bytes if alive else 0,
        gpu_time_ns=slot.gpu_time_ns,
        launches=slot.launches,
        out_of_memory=slot.out_of_memory,
        contexts=slot.contexts if alive else 0,
        began_ns=slot.began_ns,
        ended_ns=slot.ended_ns,
    )


def _locked(file: int, number: int) -> bool:
    ffi, _ = _layout()
    size = ffi.sizeof("struct stub_slot")
    start = ffi.offsetof("struct stub_card", "slots") + number * size
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, size, 0)
    answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, question)
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


# ---- Disturbing ----


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[Any]:
    """The card as a structure that writes through to the file; one writer of this kind at a time."""
    ffi, _ = _layout()
    with _open(path, os.O_RDWR) as (file, raw):
        _check(path, raw)
        fcntl.flock(file, fcntl.LOCK_EX)
        with mmap.mmap(file, ffi.sizeof("struct stub_card")) as memory:
            view = ffi.from_buffer("struct stub_card *", memory, require_writable=True)
            try:
                yield view
            finally:
                ffi.release(view)


def inject_xid(path: Path, xid: int, event_type: int = XID_EVENT) -> None:
    """Let the card report an Xid: whoever waits for NVML events of this type gets it."""
    with _mapped(path) as card:
        event = card.events[card.event_count % len(card.events)]
        event.type, event.data, event.time_ns = event_type, xid, time.monotonic_ns()
        card.event_count += 1


def inject_fault(path: Path, function: str, nth: int, result: int) -> None:
    """Let the nth call from now of a driver function ("*": of any) on this card fail with a CUresult."""
    with _mapped(path) as card:
        for fault in card.faults:
            if not fault.armed:
                _put(fault.function, function + "\0" * (len(fault.function) - len(function) - 1), "function")
                fault.nth, fault.seen, fault.result, fault.armed = nth, 0, result, 1
                card.fault_count += 1
                return
        raise ValueError(f"{path}: all {len(card.faults)} faults are armed")


def clear_faults(path: Path) -> int:
    """Disarm all faults of a card; return how many of them no call has met."""
    with _mapped(path) as card:
        unmet = sum(fault.armed and fault.seen < fault.nth for fault in card.faults)
        card.fault_count = 0
        for fault in card.faults:
            fault.armed = 0
    return int(unmet)


def change_settings(path: Path, **settings: int) -> None:
    """Change settings (the fields of StubSettings) of a card in use; what is charged already stays as it is."""
    with _mapped(path) as card:
        _set(card, settings)
