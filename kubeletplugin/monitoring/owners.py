"""Which shares a process of the node has: told by its container, which it cannot make up, nor leave, nor hide.

Called by the supervisor and by the steering for the processes that a driver names. The agent has to live in the host's
pid namespace; in another one it knows none of them, and their memory counts as nobody's.
"""

import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from api import names
from api.errors import StateError
from kubeletplugin.monitoring.mounts import Origin, origin_of, origins
from kubeletplugin.state.ledgers import Prepared
from libvgpu.shares import read_books

_CONTAINER = re.compile(r"/[^/\n]*pod([0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12})(?:\.slice)?/([^/\n]+)")
"""The cgroup of a container: UID of its pod, and what the runtime calls it. All runtimes and both cgroup drivers."""
_ASK_AGAIN_S = 30.0
"""After which a process that shows no share is looked at again."""
_MOST_BYTES, _MOST_OTHERS = 1 << 18, 32
"""How much is looked at of a process's mounts, and of how many others of its container: who may mount can make a
hundred thousand mounts in each of a thousand processes. Whose share is not seen for that counts for its pod's."""


@dataclass(frozen=True)
class _Container:
    pod_uid: str
    name: str


@dataclass(frozen=True)
class _Known:
    """What the kernel says of a process."""

    started: str
    """Time at which the process started: another one may have its id by now."""
    shares: frozenset[str]
    """Those that are mounted where it lives."""
    pod_uid: str
    """Empty for a process that is in no pod."""
    until_s: float


@dataclass(frozen=True)
class _Beside:
    """What the processes of a container show together."""

    shares: frozenset[str]
    until_s: float


_NOBODY = _Known("", frozenset(), "", float("inf"))


class ProcessOwners:
    """Shares by process. Asks again only for processes that are new, and now and then for those without a share.

    A share is mounted into the containers that have it. A process that has changed its root shows no mounts, so the
    other processes of its container are asked too: it cannot leave its cgroup. If all of them hide, it counts for
    what its pod may use.
    """

    def __init__(
        self,
        claims: Callable[[], Prepared],
        shares_dir: Path,
        proc: Path = Path("/proc"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what returns the claims of the node, where their shares are, and where processes are described."""
        self._claims = claims
        self._shares_dir = shares_dir
        self._proc = proc
        self._clock = clock
        self._known: dict[int, _Known] = {}
        self._beside: dict[_Container, _Beside] = {}

    def shares_of(self, pid: int) -> frozenset[str]:
        """Return the names of the shares that a process has, none if it is gone or lives outside of any share."""
        known = self._look(pid)
        if known.shares or not known.pod_uid:
            return known.shares
        claims = (claim for claim in self._claims().values() if known.pod_uid in claim.pods)
        return frozenset(limits.share for claim in claims for limits in claim.shares())

    def pod_of(self, pid: int) -> str:
        """Return the UID of the pod that a process is in; empty if it is in none, or in one that may observe."""
        uid = self._look(pid).pod_uid
        observes = uid and any(uid in claim.pods and claim.observes for claim in self._claims().values())
        return "" if observes else uid

    def keep(self, pids: Iterable[int]) -> None:
        """Forget all other processes."""
        wanted, now_s = set(pids), self._clock()
        self._known = {pid: known for pid, known in self._known.items() if pid in wanted}
        self._beside = {container: beside for container, beside in self._beside.items() if now_s < beside.until_s}

    def _look(self, pid: int) -> _Known:
        try:
            started = _read(self._proc / str(pid) / "stat").rpartition(")")[2].split()[19]
        except IndexError:
            return _NOBODY  # it has ended
        known = self._known.get(pid)
        if known is None or known.started != started or (not known.shares and self._clock() >= known.until_s):
            container = self._container(pid)
            pod_uid = container.pod_uid if container else ""
            until_s = self._clock() + _ASK_AGAIN_S
            known = self._known[pid] = _Known(started, self._find(pid, container), pod_uid, until_s)
        return known

    def _find(self, pid: int, container: _Container | None) -> frozenset[str]:
        ours = origin_of(self._shares_dir, _read(self._proc / "self/mountinfo"))
        shares = self._mounted(pid, ours)
        if shares or container is None:
            return shares
        beside = self._beside.get(container)
        if beside is None or self._clock() >= beside.until_s:
            # Once for all that hide: each of them could have the whole node searched.
            others = itertools.islice(self._others(container), _MOST_OTHERS)
            found = frozenset[str]().union(*(self._mounted(other, ours) for other in others))
            beside = self._beside[container] = _Beside(found, self._clock() + _ASK_AGAIN_S)
        return beside.shares

    def _mounted(self, pid: int, ours: Origin | None) -> frozenset[str]:
        """Return the shares among the mounts that a process can reach.

        Where something is mounted, and under which name, a process with mount rights can choose. What counts is
        whether it is the very file of this node's share.
        """
        found: set[str] = set()
        for origin in origins(_read(self._proc / str(pid) / "mountinfo", _MOST_BYTES)):
            folder, _, file = origin.path.rpartition("/")
            parent, _, share = folder.rpartition("/")
            if file == names.LIMITS_FILE and ours == Origin(origin.device, parent):
                found.add(share)
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


def _read(path: Path, most_bytes: int = -1) -> str:
    """Return what the kernel says of a process, whatever it calls itself and its folders; nothing if it has ended."""
    try:
        with path.open("rb") as file:
            return file.read(most_bytes).decode(errors="replace")  # text files have other signs for ends of lines
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

    def pod_of(self, _pid: int) -> str:
        """Return nothing: there are no pods."""
        return ""

    def keep(self, pids: Iterable[int]) -> None:
        """Forget all other processes."""
        wanted = set(pids)
        self._known = {pid: known for pid, known in self._known.items() if pid in wanted}


def _pids(folder: Path) -> set[int]:
    try:
        return {process.pid for process in read_books(folder).processes}
    except StateError:
        return set()
