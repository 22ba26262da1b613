"""What a round of the node agent's monitor costs with 200 shares, idle and at work. Called by `make bench`."""

import fcntl
import os
import resource
import struct
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from api.names import ClaimUID, DeviceName
from kubeletplugin.agentsettings import AgentSettings
from kubeletplugin.monitoring.bookreading import Monitor
from kubeletplugin.state.ledgers import Ledger
from kubeletplugin.state.preparedclaims import PreparedClaim, PreparedDevice
from libvgpu.layout import layout
from libvgpu.shares import Limits, Policy, create_share

_SHARES = 200
_DEVICES = 16
_PROCESSES = 2
_ROUNDS = 20
_FLOCK = struct.Struct("@hhqqi4x")


def main() -> None:
    """Make the shares, and print the processor time of a round as a part of a core at the default rate."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        ledger = Ledger(root / "checkpoint", lambda _uid: None)
        ledger.load()
        books = [_add_share(ledger, root / "shares", number) for number in range(_SHARES)]
        monitor = Monitor(ledger, root / "shares")
        monitor.run_once()
        _measure("nothing happens", monitor, lambda: None)
        _measure("all shares at work", monitor, lambda: _work_all(books))
        print(f"  resident memory of a process with this monitor {_resident_mb():.0f} MB")


def _measure(what: str, monitor: Monitor, meanwhile: Any) -> None:
    spent_s = 0.0
    for _ in range(_ROUNDS):
        meanwhile()
        before_s = time.process_time()
        monitor.run_once()
        spent_s += time.process_time() - before_s
    interval_s = AgentSettings("node").monitor_interval_s
    percent = 100 * spent_s / _ROUNDS / interval_s
    print(f"  {_SHARES} shares, {what}: {1e3 * spent_s / _ROUNDS:.1f} ms a round, {percent:.2f} % of a core")


def _add_share(ledger: Ledger, shares_dir: Path, number: int) -> Path:
    uid = ClaimUID(f"{number:08d}-aaaa-4000-8000-000000000000")
    policy = Policy.BURST if number % 2 else Policy.FIXED
    limits = Limits(f"{uid}-0", f"GPU-{number % _DEVICES}", 1 << 30, 5, 5 if policy is Policy.FIXED else 100, policy)
    device = PreparedDevice(0, "gpu", "node", DeviceName(limits.device_uuid.lower()), limits=limits)
    ledger.add(PreparedClaim(uid, "bench", f"claim-{number}", (device,)))
    create_share(shares_dir / limits.share, limits, durable=False)
    path = shares_dir / limits.share / "books"
    _work(path)
    descriptor = os.open(path, os.O_RDWR)  # stays open: its locks stand for living processes
    for slot in range(_PROCESSES):
        lock = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, layout().constants.VGPU_SLOT_LOCKS + slot, 1, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
    return path


def _work_all(books: Sequence[Path]) -> None:
    for path in books:
        _work(path)


def _work(path: Path) -> None:
    """Let each process of a share launch once more."""
    books = layout().books(bytearray(path.read_bytes()))
    books.slots_high = _PROCESSES
    for slot in range(_PROCESSES):
        books.slots[slot].pid = 1 + slot
        books.slots[slot].reserved_bytes = 1 << 20
        books.slots[slot].launches += 1
        books.slots[slot].gpu_time_ns += 1000
    with path.open("r+b") as file:
        file.write(layout().raw(books))


def _resident_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
