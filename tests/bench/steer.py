"""The steering of the node agent, for a rig of the benchmarks: `python -m tests.bench.steer DRIVER_ROOT SHARES_DIR`.

Prints "ready" and steers until its standard input ends. A process of its own: NVML is one per process.
"""

import sys
import threading
from pathlib import Path

from kubeletplugin.hardware.driverroots import DriverRoot
from kubeletplugin.hardware.nvidiatimes import NvmlGpuTimes
from kubeletplugin.hardware.nvml import NvmlSession
from kubeletplugin.monitoring.owners import BookOwners
from kubeletplugin.monitoring.steering import Steering


def main() -> None:
    """Steer."""
    root, shares = Path(sys.argv[1]), Path(sys.argv[2])

    def folders() -> dict[str, Path]:
        return {folder.name: folder for folder in shares.glob("*/*")}

    session = NvmlSession(DriverRoot(root, root), Path("/sys"))
    session.open()
    stopping = threading.Event()
    steering = Steering(folders, NvmlGpuTimes(session), BookOwners(folders))
    thread = threading.Thread(target=steering.run, args=(stopping,))
    thread.start()
    print("ready", flush=True)
    sys.stdin.read()
    stopping.set()
    thread.join()
    session.close()


if __name__ == "__main__":
    main()
