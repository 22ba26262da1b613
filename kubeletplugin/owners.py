"""Which shares a process of the node has: told by the mounts of its container, which it cannot make up.

Called by the supervisor for the processes that a driver names. The agent has to live in the host's pid namespace; in
another one it knows none of them, and their memory counts as nobody's.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from api import names
from api.errors import StateError
from libvgpu.shares import read_books

_LIMITS_MOUNT = re.compile(rf"{re.escape(names.CONTAINER_SHARES_DIR)}/([^/]+)/{names.LIMITS_FILE}")


class ProcessOwners:
    """Shares by process. Asks again only for processes that are new."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._known: dict[int, tuple[str, frozenset[str]]] = {}
        """Start time and shares by process id."""

    def shares_of(self, pid: int) -> frozenset[str]:
        """Return the names of the shares that a process has, none if it is gone or lives outside of any share."""
        try:
            started = (self._proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
            known = self._known.get(pid)
            if known is None or known[0] != started:
                known = self._known[pid] = started, self._read(pid)
        except (OSError, IndexError):
            return frozenset()
        return known[1]

    def keep(self, pids: Iterable[int]) -> None:
        """Forget all other processes."""
        wanted = set(pids)
        self._known = {pid: known for pid, known in self._known.items() if pid in wanted}

    def _read(self, pid: int) -> frozenset[str]:
        found: set[str] = set()
        for line in (self._proc / str(pid) / "mountinfo").read_text().splitlines():
            root, mounted_at = line.split()[3:5]
            match = _LIMITS_MOUNT.fullmatch(mounted_at)
            # The source too: a container that may mount can put anything of its own at that place.
            if match and root.endswith(f"/{names.SHARES_SUBDIR}/{match.group(1)}/{names.LIMITS_FILE}"):
                found.add(match.group(1))
        return frozenset(found)


class BookOwners:
    """The same where processes have no mounts of their own (`dra-driver run`): told by the books of the shares.

    Whoever can write books can claim processes there; a share that does so is charged for them.
    """

    def __init__(self, folders: Callable[[], Mapping[str, Path]]) -> None:
        """Take what returns the folders of the shares, by name."""
        self._folders = folders
        self._known: dict[int, frozenset[str]] = {}

    def shares_of(self, pid: int) -> frozenset[str]:
        """Return the names of the shares whose books have a process."""
        if pid not in self._known:
            found = frozenset(name for name, folder in self._folders().items() if pid in _pids(folder))
            if not found:
                return found
            self._known[pid] = found
        return self._known[pid]

    def keep(self, pids: Iterable[int]) -> None:
        """Forget all other processes."""
        wanted = set(pids)
        self._known = {pid: known for pid, known in self._known.items() if pid in wanted}


def _pids(folder: Path) -> set[int]:
    try:
        return {process.pid for process in read_books(folder).processes}
    except StateError:
        return set()
