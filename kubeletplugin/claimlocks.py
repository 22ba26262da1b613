"""One lock per claim: calls for one claim wait for each other, calls for different claims never do.

Called by preparing and unpreparing.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from api.names import ClaimUID


@dataclass
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class ClaimLocks:
    """Locks by claim UID; one that nobody holds or waits for takes no memory."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._entries: dict[ClaimUID, _Entry] = {}

    @contextmanager
    def hold(self, uid: ClaimUID) -> Iterator[None]:
        """Hold the lock of a claim."""
        with self._guard:
            entry = self._entries.setdefault(uid, _Entry())
            entry.users += 1
        try:
            with entry.lock:
                yield
        finally:
            with self._guard:
                entry.users -= 1
                if not entry.users:
                    del self._entries[uid]
