"""Memory of a share that only the driver sees: taken off the share's room by its limits. Fed by the supervisor.

The library charges what calls ask for, and measures the rest where NVML names its process. Where it does not, modules,
local memory and blocks of small allocations stay outside of the books; so do graphics and video sessions anywhere. The
driver's count by process, which the agent has, contains all of it.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from api.errors import StateError
from kubeletplugin.monitoring.bookreading import ShareReading
from kubeletplugin.monitoring.comparing import Attribution
from libvgpu.shares import change_limits

_log = logging.getLogger(__name__)

_WORTH_BYTES = 1 << 20
"""Smaller changes are not written."""


class UnseenMemory:
    """What the books of each share lack. It counts once two looks in a row found it: they are not of one moment."""

    def __init__(self, folders: Callable[[], Mapping[str, Path]]) -> None:
        """Take what returns the folders of all shares, by name."""
        self._folders = folders
        self._before: dict[str, int] = {}

    def observe(self, found: Attribution, readings: Iterable[ShareReading]) -> None:
        """Write what one look at the driver and at the books says into the limits."""
        uses = Counter(pid for count in found.by_share.values() for pid in count.pids)
        before, self._before = self._before, {}
        folders = self._folders()
        for reading in readings:
            name = reading.limits.share
            counted = found.by_share[name]
            if any(uses[pid] > 1 for pid in counted.pids):
                continue  # of several shares: which of their books lacks it nobody can say
            self._before[name] = max(counted.memory_bytes - reading.books.used_bytes, 0)
            unseen_bytes = min(self._before[name], before.get(name, 0))
            if name in folders and _differ(unseen_bytes, reading.limits.unseen_bytes):
                _write(folders[name], name, unseen_bytes)


def _differ(found_bytes: int, said_bytes: int) -> bool:
    return abs(found_bytes - said_bytes) >= _WORTH_BYTES or (found_bytes == 0) != (said_bytes == 0)


def _write(folder: Path, share: str, unseen_bytes: int) -> None:
    try:
        change_limits(folder, lambda present: replace(present, unseen_bytes=unseen_bytes))
    except StateError as error:
        # Unprepared meanwhile, most likely; if not, the monitor says so.
        _log.debug("unseen memory not written", extra={"share": share, "error": str(error)})
