"""The processes of shares as metrics show them: few, each once, and new names of them only at a slow rate.

Called by metrics. Ids and names of processes stand in the books of a share, which its tenant can write as it likes: as
labels they are new time series for whoever scrapes, and for ever. A share has the figures of all its processes,
those that are not named together.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from libvgpu.shares import ProcessUsage

OTHERS = ("", "", "others")
"""What those are called that are not named."""
_SHOWN = 16
"""Processes of a share that are named at once, those with the most memory."""
_NAMES, _NAME_S = 64, 60.0
"""New names that a share may use up, and in which time it gets one back."""

Name = tuple[str, str, str]
"""Process id, its namespace, command."""


@dataclass
class _Allowance:
    """What one share may still name."""

    shown: frozenset[Name] = frozenset()
    names: float = _NAMES
    asked_s: float = 0.0


class ProcessNames:
    """Chooses which processes are named. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Take a clock that nobody sets."""
        self._clock = clock
        self._lock = threading.Lock()
        self._shares: dict[str, _Allowance] = {}

    def keep(self, shares: Iterable[str]) -> None:
        """Forget all other shares."""
        with self._lock:
            wanted = set(shares)
            self._shares = {name: one for name, one in self._shares.items() if name in wanted}

    def of_share(self, share: str, processes: Sequence[ProcessUsage]) -> dict[Name, ProcessUsage]:
        """Return the processes of a share by what they are called; figures of those called the same are added up."""
        by_name: dict[Name, ProcessUsage] = {}
        for process in processes:
            _add(by_name, (str(process.pid), str(process.pid_namespace), process.command), process)
        with self._lock:
            allowance = self._shares.setdefault(share, _Allowance(asked_s=self._clock()))
            self._refill(allowance)
            found: dict[Name, ProcessUsage] = {}
            for name in sorted(by_name, key=lambda one: (-by_name[one].memory_bytes, one)):
                if len(found) < _SHOWN and (name in allowance.shown or allowance.names >= 1):
                    allowance.names -= name not in allowance.shown
                    found[name] = by_name[name]
            allowance.shown = frozenset(found)
        for name in by_name.keys() - allowance.shown:
            _add(found, OTHERS, by_name[name])
        return found

    def _refill(self, allowance: _Allowance) -> None:
        now_s = self._clock()
        allowance.names = min(allowance.names + (now_s - allowance.asked_s) / _NAME_S, _NAMES)
        allowance.asked_s = now_s


def _add(by_name: dict[Name, ProcessUsage], name: Name, process: ProcessUsage) -> None:
    there = by_name.get(name)
    by_name[name] = (
        process
        if there is None
        else replace(
            there,
            memory_bytes=there.memory_bytes + process.memory_bytes,
            host_bytes=there.host_bytes + process.host_bytes,
            gpu_time_ns=there.gpu_time_ns + process.gpu_time_ns,
        )
    )
