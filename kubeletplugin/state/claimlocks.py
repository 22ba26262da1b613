"""One lock per claim: calls for one claim wait for each other, calls for different claims never do.

Called by preparing, unpreparing and all that tidies up. It holds between the threads of an agent and between two agents
on one node: the kubelet may send a claim to either of them during a rolling update.
"""

import hashlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from api.deadlines import left_s
from api.errors import TransientError
from api.names import ClaimUID
from kubeletplugin.state.instancelocks import InstanceLocks

_TIMEOUT_S = 20.0
"""Longer than one request to the API server takes; less where the deadline of the call is nearer."""


@dataclass
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class ClaimLocks:
    """Locks by claim UID; one that nobody holds or waits for takes no memory."""

    def __init__(self, path: Path, timeout_s: float = _TIMEOUT_S) -> None:
        """Take the file that all instances on the node lock, and how long to wait for a lock."""
        self._guard = threading.Lock()
        self._entries: dict[ClaimUID, _Entry] = {}
        self._instances = InstanceLocks(path)
        self._timeout_s = timeout_s

    @contextmanager
    def hold(self, uid: ClaimUID) -> Iterator[None]:
        """Hold the lock of a claim.

        Raises:
            TransientError: another call for this claim did not end in time.
        """
        self._take(uid, self._timeout_s)
        try:
            yield
        finally:
            self._give_back(uid)

    @contextmanager
    def hold_free(self, uids: Iterable[ClaimUID]) -> Iterator[frozenset[ClaimUID]]:
        """Hold the locks of those of some claims that nobody has now; yields which. Waits for none, so in any order."""
        held: list[ClaimUID] = []
        try:
            for uid in uids:
                with suppress(TransientError):
                    self._take(uid, 0)
                    held.append(uid)
            yield frozenset(held)
        finally:
            for uid in held:
                self._give_back(uid)

    def _take(self, uid: ClaimUID, timeout_s: float) -> None:
        with self._guard:
            entry = self._entries.setdefault(uid, _Entry())
            entry.users += 1
        try:
            self._acquire(entry.lock, uid, timeout_s)
        except BaseException:
            self._forget(uid, entry)
            raise

    def _acquire(self, lock: threading.Lock, uid: ClaimUID, timeout_s: float) -> None:
        wait_s = min(timeout_s, left_s(timeout_s))
        if not lock.acquire(timeout=wait_s):
            raise TransientError(f"claim {uid}: another call for it runs for more than {wait_s:.3g} s")
        try:
            self._instances.acquire(_byte(uid), min(timeout_s, left_s(timeout_s)))
        except BaseException:
            lock.release()
            raise

    def _give_back(self, uid: ClaimUID) -> None:
        entry = self._entries[uid]
        try:
            self._instances.release(_byte(uid))
        finally:
            entry.lock.release()
            self._forget(uid, entry)

    def _forget(self, uid: ClaimUID, entry: _Entry) -> None:
        with self._guard:
            entry.users -= 1
            if not entry.users:
                del self._entries[uid]


def _byte(uid: ClaimUID) -> int:
    """Return the byte that stands for a claim: among 2**62, so that no two claims of a node meet."""
    return int.from_bytes(hashlib.blake2b(uid.encode(), digest_size=8).digest(), "big") >> 2
