"""The end of somebody's work, for threads that wait for the API server meanwhile: their watch ends with it, at once.

Made by who has the work (`controller.cluster.watching`); a KubeClient registers how a watch of its kind is ended.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Ending:
    """Not set, until it is set for ever. Safe to use from several threads."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._interrupts: list[Callable[[], None]] = []

    def set(self) -> None:
        """End the work; who waits in `interrupted_by` is woken up."""
        with self._lock:
            self._event.set()
            for interrupt in self._interrupts:
                interrupt()

    def is_set(self) -> bool:
        """Say whether the work is to end."""
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end, at most so long; return whether it has come."""
        return self._event.wait(timeout_s)

    @contextmanager
    def interrupted_by(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Call `interrupt` if the end comes within this block, or has come before it; from any thread, once.

        It must not block, and its errors are not caught.
        """
        with self._lock:
            self._interrupts.append(interrupt)
            if self._event.is_set():
                interrupt()
        try:
            yield
        finally:
            with self._lock:
                self._interrupts.remove(interrupt)
