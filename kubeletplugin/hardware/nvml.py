"""NVML of one driver root: loaded, initialised, and begun anew when what lies under it has changed. Used by `nvidia`.

NVML answers for the driver and the devices that it was initialised with. So it is begun anew when the library was
replaced (an update of the driver in place), when device nodes or PCI devices came or went, and after a device or the
driver stopped answering. The library is loaded by its full path and given to the binding: a look-up by name would find
the one that is mapped already. Source: NVML API reference (nvml.h).
"""

import contextlib
import ctypes
import enum
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml as _pynvml

from api import names
from api.errors import StateError
from kubeletplugin.hardware.driverroots import LIBRARY_FOLDERS, DriverRoot

_log = logging.getLogger(__name__)
pynvml: Any = _pynvml  # ships no types

LIBRARY = "libnvidia-ml.so.1"
PCI_VENDOR = "0x10de"
MAX_NVLINKS = 36
"""More NVLinks than a GPU has; NVML has no answer for the first that is not there."""
_NODE = re.compile(r"nvidia\d+")
_RETRY_S = 60.0
"""Between two restarts of NVML that a device which does not answer has caused: one takes seconds on large machines."""
_CALLS_S = 10.0
"""What calls that run may take before NVML is begun anew."""


def ask(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what NVML answers, None where this device or driver has no answer, or one that is no text."""
    try:
        return function(*arguments)
    except (pynvml.NVMLError, UnicodeDecodeError):
        return None


def error_code(error: Exception) -> int | None:
    """Return the number of an NVML error."""
    return getattr(error, "value", None)


def tells_of_another_driver(error: BaseException | None) -> bool:
    """Return whether an error says that the driver which NVML was initialised with is gone, and not that it failed."""
    gone = {pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH}
    return getattr(error, "value", None) in gone


class Opened(enum.Enum):
    """What NvmlSession.open() did."""

    KEPT = enum.auto()
    FIRST = enum.auto()
    RENEWED = enum.auto()
    """Begun anew: the driver is another one than before, or was gone in between."""
    RELISTED = enum.auto()
    """Begun anew on the same driver: devices came or went, or something did not answer."""


class NvmlSession:
    """NVML, from open() to close(). Safe to use from several threads; one per process, as the binding is."""

    def __init__(self, root: DriverRoot, sysfs: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._sysfs = sysfs
        self._clock = clock
        self._changed = threading.Condition()
        self._users = 0
        self._restarting = False
        self._running = False
        self._ground: tuple[tuple[object, ...], ...] | None = None
        """What NVML was initialised on."""
        self._distrusted = False
        self._driver_gone = False
        """Whether the driver was seen to be gone since NVML was initialised."""
        self._began_s = 0.0
        self._hung_s = float("-inf")
        """When a call was last found not to end."""
        self.generation = 0
        """Counts the initialisations: handles of an earlier one mean nothing."""

    def open(self) -> Opened:
        """Initialise NVML, or do so anew if there is reason to and the driver does not hang in a call.

        Raises:
            StateError: there is no library under the driver root, or it cannot be used.
        """
        ground = self._look()
        due = self._distrusted and self._clock() >= self._began_s + _RETRY_S
        if self._running and ground == self._ground and not due:
            return Opened.KEPT
        same_driver = not self._driver_gone and self._ground is not None and ground[0] == self._ground[0]
        if self._running and self._clock() < self._hung_s + _RETRY_S:
            return Opened.KEPT
        with self._alone() as alone:
            if not alone:
                return Opened.KEPT
            self._end()
            self._begin()
            # Initialising it may have loaded the kernel's part of the driver.
            self._ground = ground if ground[0][0] == self._module() else self._look()
            self._driver_gone = False
        return Opened.FIRST if self.generation == 1 else Opened.RELISTED if same_driver else Opened.RENEWED

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Keep NVML as it is while it is asked.

        Raises:
            StateError: it is not initialised now; it is not waited for, since a driver that hangs may never end that.
        """
        with self._changed:
            if self._restarting or not self._running:
                raise StateError("NVML is not initialised")
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def distrust(self) -> None:
        """Have NVML begun anew after a while: something does not answer."""
        self._distrusted = True

    def rest(self, timeout_s: float) -> bool:
        """Wait a while, or until NVML begins or ends; return False."""
        with self._changed:
            self._changed.wait(timeout_s)
        return False

    def close(self, *, driver_gone: bool = False) -> None:
        """End NVML; open() begins it again, and takes the driver for another one if it was seen to be gone."""
        with self._alone() as alone:
            if alone:
                self._end()
            self._distrusted = not alone
            self._driver_gone = self._driver_gone or driver_gone

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Keep others from asking once those who ask have their answers; False: a call hangs, so NVML must stay."""
        with self._changed:
            self._changed.wait_for(lambda: not self._restarting)
            self._restarting = True
            alone = self._changed.wait_for(lambda: not self._users, _CALLS_S)
            if not alone:
                self._hung_s = self._clock()
                _log.error(
                    "NVML not begun anew: a call of it does not end; if that lasts, the node needs a reboot",
                    extra={"driver_root": str(self._root.path), "waited_s": _CALLS_S},
                )
        try:
            yield alone
        finally:
            with self._changed:
                self._restarting = False
                self._changed.notify_all()

    def _begin(self) -> None:
        library = self._root.find_library(LIBRARY)
        if library is None:
            folders = ", ".join(LIBRARY_FOLDERS)
            raise StateError(f"driver root {self._root.path}: found no {LIBRARY}, expected it in one of {folders}")
        if self._root.path != Path("/"):
            # Read by the stub driver only: its cards are the files in the root.
            os.environ[names.ENV_STUB_DEVICE_DIR] = str(self._root.device_folder)
        try:
            pynvml.nvmlLib = ctypes.CDLL(str(self._root.resolve(library)))
            pynvml._nvmlGetFunctionPointer_cache.clear()  # its pointers lead into the library before
            pynvml.nvmlInit()
        except (OSError, pynvml.NVMLError) as error:
            self._driver_gone = self._driver_gone or tells_of_another_driver(error)
            raise StateError(f"{library}: cannot be used: {error}") from error
        self._running, self._distrusted, self._began_s = True, False, self._clock()
        self.generation += 1

    def _end(self) -> None:
        if self._running:
            self._running = False
            ask(pynvml.nvmlShutdown)

    def _module(self) -> int | None:
        """Return what names the kernel's part of the driver as it is loaded; None: it is not, or cannot be seen."""
        try:
            return (self._sysfs / "module/nvidia").stat().st_ino
        except OSError:
            return None

    def _look(self) -> tuple[tuple[object, ...], ...]:
        """Return what NVML stands on, the driver first: equal as long as there is no reason to begin anew."""
        library = self._root.find_library(LIBRARY)
        status = self._root.resolve(library).stat() if library else None
        identity = (self._module(), *((status.st_dev, status.st_ino, status.st_mtime_ns) if status else ()))
        with os.scandir(self._root.device_folder) as entries:
            nodes = sorted((entry.name, entry.inode()) for entry in entries if _NODE.fullmatch(entry.name))
        return identity, tuple(nodes), tuple(sorted(pci_devices(self._sysfs)))


def pci_devices(sysfs: Path) -> Iterator[tuple[str, str]]:
    """Yield the PCI address and the kernel driver's name ("" without) of each NVIDIA display or 3D controller."""
    folder = sysfs / "bus/pci/devices"
    for path in folder.iterdir() if folder.is_dir() else ():
        try:
            vendor, kind = (path / "vendor").read_text().strip(), (path / "class").read_text().strip()
        except OSError:
            continue  # gone since the folder was read
        if vendor == PCI_VENDOR and kind.startswith("0x03"):
            driver = path / "driver"
            yield path.name, driver.resolve().name if driver.exists() else ""
