"""Keeps the driver's files open, so that no container can hold up the others by a lease on one (fcntl(2), F_SETLEASE).

Used by the NVIDIA backend. All containers have the same files, and they belong to root, as a tenant may be: with a
lease on libcuda each start of a CUDA program elsewhere would take 45 s, as long as nobody has it open. The kernel
grants none that keeps readers out on a file that somebody else has open.
"""

import os
import threading
from pathlib import Path

from kubeletplugin.hardware.devices import Driver
from kubeletplugin.hardware.driverroots import DriverRoot


class KeptFiles:
    """The files of one driver. Of the host's own alone: one that is open keeps a driver container's root mounted."""

    def __init__(self, root: DriverRoot) -> None:
        self._root = root
        self._guard = threading.Lock()
        self._open: dict[Path, int] = {}
        self._waiter: threading.Thread | None = None

    def keep(self, driver: Driver) -> None:
        """Keep what containers get of a driver, and nothing else; does not wait for who holds a file up now."""
        if self._root.on_host != Path("/"):
            return
        mounts = (Path(mount["hostPath"]) for mount in driver.toolkit.get("mounts", ()))
        wanted = {self._root.path / path.relative_to("/") for path in (*_mounted(driver), *mounts)}
        with self._guard:
            for path in [path for path in self._open if path not in wanted or not _is(path, self._open[path])]:
                os.close(self._open.pop(path))
            missing = wanted - self._open.keys()
        held_up = [path for path in sorted(missing) if not self._take(path, os.O_NONBLOCK)]
        if held_up and (self._waiter is None or not self._waiter.is_alive()):
            # Their leases end by the tries above, within lease-break-time; who waits then is there before the next one.
            self._waiter = threading.Thread(target=self._wait, args=(held_up,), name="lease", daemon=True)
            self._waiter.start()

    def close(self) -> None:
        """Keep nothing any more."""
        with self._guard:
            while self._open:
                os.close(self._open.popitem()[1])

    def _wait(self, paths: list[Path]) -> None:
        for path in paths:
            self._take(path, 0)

    def _take(self, path: Path, flags: int) -> bool:
        """Open a file for as long as it is wanted; return False where a lease holds it up."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
        except BlockingIOError:
            return False
        except OSError:
            return True  # gone, or not there yet: the next look sees
        with self._guard:
            former = self._open.pop(path, None)
            self._open[path] = descriptor
        if former is not None:
            os.close(former)
        return True


def _mounted(driver: Driver) -> tuple[Path, ...]:
    return tuple(file.host_path for file in driver.files if not file.is_device)


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False
