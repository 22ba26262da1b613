"""Which shares a process of the node has: told by its container, which it cannot make up, nor leave, nor hide.

Called by the supervisor and by the steering for the processes that a driver names. The agent has to live in the host's
pid namespace; in another one it knows none of them, and their memory counts as nobody's.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from api import names
from api.errors import StateError
from kubeletplugin.ledgers import Prepared
from libvgpu.shares import read_books

_LIMITS_MOUNT = re.compile(rf"{re.escape(names.CONTAINER_SHARES_DIR)}/([^/]+)/{names.LIMITS_FILE}")
_CONTAINER = re.compile(r"/[^/\n]*pod([0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12})(?:\.slice)?/([^/\n]+)")
"""The cgroup of a container: UID of its pod, and what the runtime calls it. All runtimes and both cgroup drivers."""
_ASK_AGAIN_S = 30.0
"""After which a process without a share is looked at again: its pod may have come to a claim that others had before."""


@dataclass(frozen=True)
class _Container:
    pod_uid: str
    name: str


@dataclass(frozen=True)
class _Known:
    started: str
    """Time at which the process started: another one may have its id by now."""
    shares: frozenset[str]
    until_s: float


class ProcessOwners:
    """Shares by process. Asks again only for processes that are new.

    A share is mounted into the containers that have it. A process that has changed its root shows no mounts, so the
    other processes of its container are asked too: it cannot leave its cgroup. If all of them hide, it counts for
    what its pod may use.
    """

    def __init__(
        self,
        claims: Callable[[], Prepared],
        proc: Path = Path("/proc"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what returns the claims of the node, and where its processes are described."""
        self._claims = claims
        self._proc = proc
        self._clock = clock
        self._known: dict[int, _Known] = {}

    def shares_of(self, pid: int) -> frozenset[str]:
        """Return the names of the shares that a process has, none if it is gone or lives outside of any share."""
        try:
            started = (self._proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
            known = self._known.get(pid)
            if known is None or known.started != started or (not known.shares and self._clock() >= known.until_s):
                known = self._known[pid] = _Known(started, self._find(pid), self._clock() + _ASK_AGAIN_S)
        except (OSError, IndexError):
            return frozenset()
        return known.shares

    def keep(self, pids: Iterable[int]) -> None:
        """Forget all other processes."""
        wanted = set(pids)
        self._known = {pid: known for pid, known in self._known.items() if pid in wanted}

    def _find(self, pid: int) -> frozenset[str]:
        shares = self._mounted(pid)
        container = self._container(pid)
        if shares or container is None:
            return shares
        beside = frozenset[str]().union(*(self._mounted(other) for other in self._others(container)))
        return beside or frozenset(
            limits.share
            for claim in self._claims().values()
            if container.pod_uid in claim.pods
            for limits in claim.shares()
        )

    def _mounted(self, pid: int) -> frozenset[str]:
        """Return the shares among the mounts that a process can reach."""
        found: set[str] = set()
        for line in _read(self._proc / str(pid) / "mountinfo").splitlines():
            root, mounted_at = line.split()[3:5]
            match = _LIMITS_MOUNT.fullmatch(mounted_at)
            # The source too: a container that may mount can put anything of its own at that place.
            if match and root.endswith(f"/{names.SHARES_SUBDIR}/{match.group(1)}/{names.LIMITS_FILE}"):
                found.add(match.group(1))
        return frozenset(found)

    def _container(self, pid: int) -> _Container | None:
        # The first that matches: what is below a container's cgroup may be named by who lives there.
        match = _CONTAINER.search(_read(self._proc / str(pid) / "cgroup"))
        return _Container(match.group(1).replace("_", "-"), match.group(2)) if match else None

    def _others(self, container: _Container) -> Iterator[int]:
        """Yield the processes of a container."""
        for entry in self._proc.iterdir():
            if entry.name.isdecimal() and self._container(int(entry.name)) == container:
                yield int(entry.name)


def _read(path: Path) -> str:
    """Return what the kernel says of a process; nothing if it has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


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
