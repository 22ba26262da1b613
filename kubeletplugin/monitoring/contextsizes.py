"""What a context takes of each device by itself, learned from what the driver counts: written into new limits.

Fed by the supervisor, read when the folder of a share is made. The library measures contexts on its own where NVML
names its process. In some containers NVML does not; there each context is charged what the limits say of one, and only
the node knows that: the driver's count for a process, less what its books know of.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from kubeletplugin.files import read_if_there, write_atomically
from kubeletplugin.monitoring.bookreading import ShareReading
from kubeletplugin.monitoring.comparing import Attribution
from libvgpu.shares import Limits

_log = logging.getLogger(__name__)

_MIB = 1 << 20
LEAST_BYTES, MOST_BYTES = 8 * _MIB, 1 << 30
"""What is believed: real contexts take 200 to 600 MiB, and books belong to tenants, who may write what they like."""
_AGREEING_BYTES = 4 * _MIB
"""Two looks in a row have to agree: driver and books are not read in the same moment."""
_VOTES = 9
"""Namespaces per device that are remembered, the last ones to be seen."""
_NEAR_PERCENT = 20
"""So near another namespace has to come: programs load code of different sizes beside their contexts."""
_WORTH_PERCENT = 5
"""Smaller changes are not worth a word."""


class ContextSizes:
    """Sizes by device, kept over restarts. Each namespace has one vote; the median counts, once two of them agree.

    What one tenant alone makes the node see is not believed, with however many claims: it would set what its neighbours
    pay. On a node with claims of one namespace alone nothing is learned: there an operator can say it.
    """

    def __init__(self, path: Path, setting_bytes: int = 0) -> None:
        """Take the file that remembers.

        Args:
            path: of the file.
            setting_bytes: what an operator says of all devices; 0: learn it.
        """
        self._path = path
        self._setting_bytes = setting_bytes
        self._sights: dict[str, int] = {}
        """Bytes by share, as of the last look."""
        self._votes: dict[str, dict[str, int]] = {}
        """Bytes by device and namespace, the last one seen at the end; what claims showed that are gone counts on."""
        self._learned = _read(path)

    def bytes_of(self, uuid: str) -> int:
        """Return what to charge for a context of a device where the driver does not say it; 0: not known yet."""
        return self._setting_bytes or self._learned.get(uuid.lower(), 0)

    def observe(self, found: Attribution, readings: Iterable[ShareReading]) -> None:
        """Learn from one look at the driver and at the books."""
        before, self._sights = self._sights, {}
        seen: set[str] = set()
        for reading in readings:
            bytes_ = _context_bytes(found, reading)
            if bytes_ is not None:
                name, uuid = reading.limits.share, reading.limits.device_uuid.lower()
                agreed = name in before and abs(before[name] - bytes_) <= _AGREEING_BYTES
                self._sights[name] = bytes_
                if agreed:
                    self._vote(uuid, reading.claim.namespace, bytes_)
                    seen.add(uuid)
        for uuid in seen:
            votes = sorted(self._votes[uuid].values())
            median = votes[(len(votes) - 1) // 2]
            if sum(abs(vote - median) * 100 <= median * _NEAR_PERCENT for vote in votes) > 1:
                self._learn(uuid, median)

    def _vote(self, uuid: str, namespace: str, bytes_: int) -> None:
        votes = self._votes.setdefault(uuid, {})
        votes.pop(namespace, None)
        votes[namespace] = bytes_
        if len(votes) > _VOTES:
            del votes[next(iter(votes))]

    def _learn(self, uuid: str, bytes_: int) -> None:
        known = self._learned.get(uuid, 0)
        if abs(bytes_ - known) * 100 <= known * _WORTH_PERCENT:
            return
        self._learned = {**self._learned, uuid: bytes_}
        _log.info("size of a context learned", extra={"device_uuid": uuid, "bytes": bytes_, "bytes_before": known})
        try:
            write_atomically(self._path, json.dumps(self._learned).encode(), 0o600)
        except OSError as error:
            # Known as long as we live; the round that has learned it has more to do.
            _log.warning("sizes of contexts cannot be stored", extra={"path": str(self._path), "error": str(error)})


def _context_bytes(found: Attribution, reading: ShareReading) -> int | None:
    """Return what each context of a share takes. None: nobody can tell, or the library measures it by itself."""
    limits: Limits = reading.limits
    counted = found.by_share[limits.share]
    contexts = len(counted.pids)
    if contexts == 0 or contexts != len(reading.books.processes):
        return None  # some have no context, or are in no books
    unknown_bytes = (counted.memory_bytes - reading.books.used_bytes) // contexts + limits.context_bytes
    return unknown_bytes if LEAST_BYTES <= unknown_bytes <= MOST_BYTES else None


def _read(path: Path) -> Mapping[str, int]:
    """Return what was learned before. What cannot be read is learned again."""
    try:
        found = json.loads(read_if_there(path) or b"{}")
        return {str(uuid): int(bytes_) for uuid, bytes_ in found.items() if LEAST_BYTES <= int(bytes_) <= MOST_BYTES}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        _log.warning("sizes of contexts are learned again", extra={"path": str(path), "error": str(error)})
        return {}
