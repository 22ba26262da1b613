"""The limits file of a share: what it says, its checks, and its two writers (whole, and in place).

Called by libvgpu.shares.
"""

import mmap
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from api import names
from api.errors import StateError
from api.vgpuconfig import Policy
from libvgpu.files import expect, read
from libvgpu.layout import layout

_POLICIES = {Policy.FIXED: 1, Policy.BURST: 2}
# The stores of a seqlock must not pass each other on weakly ordered processors: taking and leaving a lock is Python's
# fence.
_FENCE = threading.Lock()


@dataclass(frozen=True)
class Limits:
    """What a share may use of one device."""

    share: str
    device_uuid: str
    memory_bytes: int
    cores_percent: int
    """Guaranteed GPU time in percent of the device, 0 to 100."""
    ceiling_percent: int
    """Most GPU time, on an idle device too, 1 to 100: the cores of a Fixed share, 100 of a Burst share."""
    policy: Policy
    priority: int = 0
    suspended: bool = False
    oversubscribe: bool = False
    kill_overuse: bool = False
    """End processes that hold more than the share by the driver's count; else it is only told."""
    host_memory_bytes: int = 0
    granted_percent: int = 0
    """What a Burst share may use now; 0: up to the ceiling."""
    charge_permille: int = 0
    """Real GPU time of 1000 parts that the library predicted, as measured from outside: 20 to 20000; 0: not said."""
    context_bytes: int = 0
    """What a CUDA context takes of the device itself: charged for each where the driver does not say it to the process.
    0: nothing said."""
    steered_at_ns: int = 0
    """When the agent last stood by charge_permille, by time.monotonic_ns(); it counts for ten seconds."""
    settled_ns: int = 0
    """GPU time that the share was charged too much since it began, as measured from outside; below 0: too little."""
    unseen_bytes: int = 0
    """Memory that the driver counts for the share's processes beyond what its books know of: taken off its room."""


class LimitsReader:
    """Reads the limits of one share, again and again; decodes them only when they have changed."""

    def __init__(self, directory: Path) -> None:
        """Take the folder of the share."""
        self._path = directory / names.LIMITS_FILE
        self._former: tuple[bytes, Limits] | None = None

    def read(self) -> Limits:
        """Return the limits of the share.

        Raises:
            StateError: the file is missing or not a valid limits file; names file, what was found, what was expected.
        """
        raw = self._read_whole()
        if self._former is None or self._former[0] != raw:
            self._former = raw, _decode(self._path, raw)
        return self._former[1]

    def _read_whole(self) -> bytes:
        """Return the file between two changes; after some tries as it is."""
        for _ in range(_TRIES):
            raw = read(self._path, layout().constants.VGPU_LIMITS_FILE_BYTES)
            if not raw[_SEQUENCE_AT] % 2:
                break
            time.sleep(_WRITING_S)
        return raw


def read_limits(directory: Path) -> Limits:
    """Return the limits of a share, once; see LimitsReader."""
    return LimitsReader(directory).read()


_SEQUENCE_AT = 16
_CONTEXT_BYTES_END = layout().ffi.offsetof("struct vgpu_limits", "context_bytes") + 8
_TRIES, _WRITING_S = 5, 0.001
"""A writer needs microseconds, unless it dies at it."""


def _decode(path: Path, raw: bytes) -> Limits:
    constants = layout().constants
    view = layout().limits(raw)
    expect(path, "magic", view.magic, constants.VGPU_LIMITS_MAGIC)
    expect(path, "version", view.version, constants.VGPU_VERSION)
    if view.size < constants.VGPU_LIMITS_MIN_BYTES:
        raise StateError(f"{path}: size: found {view.size}, expected at least {constants.VGPU_LIMITS_MIN_BYTES}")
    if view.sequence % 2:
        raise StateError(f"{path}: sequence: found {view.sequence}, expected an even number (a writer died)")
    policy = {value: key for key, value in _POLICIES.items()}.get(view.policy)
    if policy is None:
        raise StateError(f"{path}: policy: found {view.policy}, expected 1 (Fixed) or 2 (Burst)")
    limits = Limits(
        share=layout().text(view.share) or "",
        device_uuid=layout().text(view.device_uuid) or "",
        memory_bytes=view.memory_bytes,
        cores_percent=view.cores_percent,
        ceiling_percent=view.ceiling_percent,
        policy=policy,
        priority=view.priority,
        suspended=bool(view.flags & constants.VGPU_SUSPENDED),
        oversubscribe=bool(view.flags & constants.VGPU_OVERSUBSCRIBE),
        kill_overuse=bool(view.flags & constants.VGPU_KILL_OVERUSE),
        host_memory_bytes=view.host_memory_bytes,
        granted_percent=view.granted_percent,
        charge_permille=view.charge_permille,
        context_bytes=view.context_bytes if view.size >= _CONTEXT_BYTES_END else 0,
        steered_at_ns=view.steered_at_ns,
        settled_ns=view.settled_ns,
        unseen_bytes=view.unseen_bytes,
    )
    check(path, limits)
    return limits


def is_of_another_layout(path: Path) -> bool:
    """Return whether a file is the limits file of a release whose layout is not ours.

    Layouts are numbered anew only where a field cannot be appended (include/vgpu/layout.h).
    """
    constants = layout().constants
    try:
        view = layout().limits(bytearray(read(path, constants.VGPU_LIMITS_FILE_BYTES)))
    except StateError:
        return False  # no limits file at all
    return bool(view.magic == constants.VGPU_LIMITS_MAGIC and view.version != constants.VGPU_VERSION)


def encode(directory: Path, limits: Limits) -> bytes:
    """Return the limits file of these limits; StateError if one is out of its range."""
    check(directory / names.LIMITS_FILE, limits)
    constants = layout().constants
    view = layout().limits()
    view.magic = constants.VGPU_LIMITS_MAGIC
    view.version = constants.VGPU_VERSION
    view.flags = (
        limits.suspended * constants.VGPU_SUSPENDED
        + limits.oversubscribe * constants.VGPU_OVERSUBSCRIBE
        + limits.kill_overuse * constants.VGPU_KILL_OVERUSE
    )
    view.size = layout().ffi.offsetof("struct vgpu_limits", "reserved1")
    view.memory_bytes = limits.memory_bytes
    view.host_memory_bytes = limits.host_memory_bytes
    view.cores_percent = limits.cores_percent
    view.ceiling_percent = limits.ceiling_percent
    view.granted_percent = limits.granted_percent
    view.charge_permille = limits.charge_permille
    view.context_bytes = limits.context_bytes
    view.steered_at_ns = limits.steered_at_ns
    view.settled_ns = limits.settled_ns
    view.unseen_bytes = limits.unseen_bytes
    view.policy = _POLICIES[limits.policy]
    view.priority = limits.priority
    view.device_uuid = limits.device_uuid.encode()
    view.share = limits.share.encode()
    return layout().raw(view)


def store(mapping: mmap.mmap, raw: bytes) -> None:
    """Write new limits over a mapped file, field by field, with the sequence odd meanwhile.

    Of limits that a newer release wrote, what we do not know stays: their share may live on after a step back to ours.
    """
    ffi, constants = layout().ffi, layout().constants
    view, new = layout().limits(mapping), layout().limits(bytearray(raw))
    try:
        if view.magic == new.magic and new.size <= view.size <= constants.VGPU_LIMITS_FILE_BYTES:
            known = constants.VGPU_SUSPENDED | constants.VGPU_OVERSUBSCRIBE | constants.VGPU_KILL_OVERUSE
            new.flags |= view.flags & ~known
            new.size, new.reserved1 = view.size, view.reserved1
        view.sequence |= 1
        with _FENCE:
            pass
        for name, _ in ffi.typeof("struct vgpu_limits").fields or ():
            if name != "sequence":
                setattr(view, name, getattr(new, name))
        with _FENCE:
            pass
        view.sequence = (view.sequence + 1) & 0xFFFFFFFF
    finally:
        ffi.release(view)


def check(path: Path, limits: Limits) -> None:
    """Raise a StateError that names the first limit out of its range."""
    for field, found, low, high in (
        ("memory_bytes", limits.memory_bytes, 1, 2**62),
        ("host_memory_bytes", limits.host_memory_bytes, 0, 2**62),
        ("cores_percent", limits.cores_percent, 0, 100),
        ("ceiling_percent", limits.ceiling_percent, 1, 100),
        ("granted_percent", limits.granted_percent, 0, 100),
        ("charge_permille", limits.charge_permille, 0, 20_000),
        ("settled_ns", limits.settled_ns, -(2**63), 2**63 - 1),
        ("unseen_bytes", limits.unseen_bytes, 0, 2**62),
        ("priority", limits.priority, -(2**31), 2**31 - 1),
    ):
        if not low <= found <= high:
            raise StateError(f"{path}: {field}: found {found}, expected {low} to {high}")
    for field, text, longest in (("device_uuid", limits.device_uuid, 47), ("share", limits.share, 127)):
        if not 0 < len(text.encode()) <= longest:
            raise StateError(f"{path}: {field}: found {text!r}, expected text of 1 to {longest} bytes")
