"""The steering of the node agent, for a rig of the benchmarks: `python -m tests.bench.steer DRIVER_ROOT SHARES_DIR`.

Prints "ready" and steers until its standard input ends. A process of its own: NVML is one per process.
"""

import sys
import threading
from collections.abc import Iterable
from pathlib import Path

from kubeletplugin.driverroots import DriverRoot
from kubeletplugin.nvidiatimes import NvmlGpuTimes
from kubeletplugin.nvml import NvmlSession
from kubeletplugin.steering import Steering
from libvgpu.shares import read_books


class _Owners:
    """Processes by the books: those of a rig have no mounts of their own."""

    def __init__(self, shares: Path) -> None:
        self._shares = shares
        self._known: dict[int, frozenset[str]] = {}

    def folders(self) -> dict[str, Path]:
        return {folder.name: folder for folder in self._shares.glob("*/*")}

    def shares_of(self, pid: int) -> frozenset[str]:
        if not self._known.get(pid):
            found = [n for n, path in self.folders().items() if pid in {p.pid for p in read_books(path).processes}]
            self._known[pid] = frozenset(found)
        return self._known[pid]

    def keep(self, pids: Iterable[int]) -> None:
        pass


def main() -> None:
    """Steer."""
    root, owners = Path(sys.argv[1]), _Owners(Path(sys.argv[2]))
    session = NvmlSession(DriverRoot(root, root), Path("/sys"))
    session.open()
    stopping = threading.Event()
    steering = Steering(owners.folders, NvmlGpuTimes(session), owners)
    thread = threading.Thread(target=steering.run, args=(stopping,))
    thread.start()
    print("ready", flush=True)
    sys.stdin.read()
    stopping.set()
    thread.join()
    session.close()


if __name__ == "__main__":
    main()
