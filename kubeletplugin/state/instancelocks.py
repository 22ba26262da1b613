"""Locks between the instances of the agent that share a node: two run side by side during a rolling update.

Called by claimlocks and by the ledger. A lock is a byte of one file, held by open file description (fcntl(2),
F_OFD_SETLK): it ends with the process that holds it, however that ends, and leaves nothing to clean up. Threads of one
process have one description: what keeps them apart is a lock of the caller's, taken first.
"""

import fcntl
import os
import struct
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from api.errors import TransientError

# struct flock of the 64-bit Linux ABIs: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK = struct.Struct("@hhqqi4x")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.0005, 0.05
"""Between tries. The kernel knows no lock that waits for a limited time, and a wait without limit for an instance that
was stopped would hold up the kubelet for good."""


class InstanceLocks:
    """The locks of one file, which is made at first use and stays."""

    def __init__(self, path: Path) -> None:
        """Take the file; all instances name the same one."""
        self._path = path
        self._descriptor: int | None = None
        self._opening = threading.Lock()

    @property
    def descriptor(self) -> int:
        """The open file, to read and to write; OSError if it cannot be opened."""
        if self._descriptor is not None:
            return self._descriptor
        # One for all threads: what is locked by one description cannot be unlocked by another.
        with self._opening:
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                weakref.finalize(self, os.close, self._descriptor)
        return self._descriptor

    @contextmanager
    def hold(self, byte: int, timeout_s: float) -> Iterator[None]:
        """Hold a lock; no other thread of this process may ask for it meanwhile.

        Args:
            byte: which, 0 to 2**62.
            timeout_s: how long to wait for another instance.

        Raises:
            TransientError: another instance still holds it.
        """
        self.acquire(byte, timeout_s)
        try:
            yield
        finally:
            self.release(byte)

    def acquire(self, byte: int, timeout_s: float) -> None:
        """Take a lock, as `hold` does."""
        deadline_s = time.monotonic() + timeout_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return self._ask(fcntl.F_WRLCK, byte)
            except BlockingIOError as error:
                if time.monotonic() >= deadline_s:
                    raise TransientError(
                        f"{self._path}: byte {byte} held by another instance of the agent for more than "
                        f"{timeout_s:.3g} s, expected it to be free by then"
                    ) from error
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def release(self, byte: int) -> None:
        """Give a lock back."""
        self._ask(fcntl.F_UNLCK, byte)

    def _ask(self, kind: int, byte: int) -> None:
        fcntl.fcntl(self.descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
