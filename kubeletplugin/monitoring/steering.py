"""Steers the GPU time of shares while they run: what a Burst share may use now, and how its charges are corrected.

Run in a thread of its own by the node agent, and by `dra-driver run` for its share. Looks at who uses the devices many
times a second, as long as anybody does, and writes limits only when something changes.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from api import names
from api.errors import StateError, VGPUError
from api.vgpuconfig import Policy
from kubeletplugin.hardware.gputimes import GpuTimes, GpuTimeSource
from kubeletplugin.monitoring.correcting import Correction
from kubeletplugin.monitoring.granting import Activity, grants
from kubeletplugin.monitoring.settling import Span
from kubeletplugin.monitoring.steeredshares import Match, SteeredShare
from libvgpu.meters import ShareMeter
from libvgpu.shares import change_limits, read_limits

_log = logging.getLogger(__name__)
_SLOTS_A_SECOND = 10_000
"""Slots of books that are looked at on the whole node, each active share having an equal part of that: about two
hundredths of a core. Who has many processes, or says so, is looked at less often, and costs nobody else a look."""
_SAY_AGAIN_NS = 3_000_000_000
"""A correction counts for ten seconds after it was said."""


class Owners(Protocol):
    """Whose processes are whose."""

    def shares_of(self, pid: int) -> frozenset[str]:
        """Return the shares that a process has."""

    def keep(self, pids: Iterable[int]) -> None:
        """Forget all other processes."""


@dataclass(frozen=True)
class SteeringPace:
    """How often what is done, in seconds."""

    idle_s: float = 0.25
    """Between looks while nobody uses a device."""
    busy_s: float = 0.05
    measure_s: float = 0.25
    """Between measurements of a device in use."""
    list_s: float = 1.0
    """Between looks for shares that came, went or were changed."""
    linger_s: float = 0.5
    """How long a share counts as active after it was seen so."""

    @classmethod
    def of(cls, busy_s: float) -> "SteeringPace":
        """Return the pace with so much between looks at devices in use; nothing is done more often than that."""
        usual = cls()
        return cls(
            idle_s=max(usual.idle_s, busy_s),
            busy_s=busy_s,
            measure_s=max(usual.measure_s, busy_s),
            list_s=max(usual.list_s, busy_s),
            linger_s=max(usual.linger_s, 2 * busy_s),
        )


_USUAL_PACE = SteeringPace()


@dataclass
class _Device:
    correction: Correction = field(default_factory=Correction)
    active: frozenset[str] = frozenset()
    measured_s: float = float("-inf")
    pids: frozenset[int] = frozenset()
    """Processes that had GPU time at the last measurement."""


class Steering:
    """Looks and steers, one round at a time."""

    def __init__(
        self,
        folders: Callable[[], Mapping[str, Path]],
        times: GpuTimeSource,
        owners: Owners,
        only: frozenset[str] | None = None,
        pace: SteeringPace = _USUAL_PACE,
    ) -> None:
        """Take what to steer.

        Args:
            folders: returns the folders of all shares of the node, by name.
            times: what the driver counts.
            owners: tells whose processes those are.
            only: the shares whose limits are written; None: all.
            pace: of the rounds.
        """
        self._folders = folders
        self._times = times
        self._owners = owners
        self._only = only
        self._pace = pace
        self._shares: dict[str, SteeredShare] = {}
        self._devices: dict[str, _Device] = {}
        self._listed_s = float("-inf")

    def run(self, stopping: threading.Event) -> None:
        """Steer until the event is set."""
        while not stopping.wait(self._pace.busy_s if self._in_use() else self._pace.idle_s):
            try:
                self.run_once()
            except (VGPUError, OSError) as error:
                _log.error("round of the steering failed", extra={"error": str(error)})

    def run_once(self, now_s: float | None = None) -> None:
        """Look at all shares, and write the limits that have to change."""
        now_s = time.monotonic() if now_s is None else now_s
        if now_s - self._listed_s >= self._pace.list_s:
            self._list(now_s)
            self._listed_s = now_s
        for share in self._shares.values():
            share.note_activity(now_s)
        by_device: dict[str, list[SteeredShare]] = {}
        for share in self._shares.values():
            by_device.setdefault(share.limits.device_uuid, []).append(share)
        self._devices = {uuid: self._devices.get(uuid) or _Device() for uuid in by_device}
        looked_at = sum(share.waits or share.is_active(now_s, self._pace.linger_s) for share in self._shares.values())
        for uuid, shares in by_device.items():
            self._steer(uuid, shares, now_s, _SLOTS_A_SECOND / max(looked_at, 1))

    def _in_use(self) -> bool:
        return any(device.active for device in self._devices.values())

    def _list(self, now_s: float) -> None:
        folders = self._folders()
        gone = frozenset(self._shares.keys() - folders.keys())
        for device in self._devices.values():
            device.correction.forget(gone)
        found: dict[str, SteeredShare] = {}
        for name, folder in folders.items():
            try:
                limits = read_limits(folder)
            except StateError:
                continue  # the monitor tells
            known = self._shares.get(name)
            if known is None:
                known = SteeredShare(folder, limits, ShareMeter(folder))
                known.look(now_s, _SLOTS_A_SECOND)
            known.limits = limits
            found[name] = known
        self._shares = found

    def _steer(self, uuid: str, shares: list[SteeredShare], now_s: float, slots_a_second: float) -> None:
        device = self._devices[uuid]
        active = frozenset(one.name for one in shares if one.is_active(now_s, self._pace.linger_s))
        if active != device.active:
            device.correction.meet(active)
            device.active = active
        users = [share for share in shares if share.follow(now_s, share.name in active, slots_a_second)]
        if users and now_s - device.measured_s >= self._pace.measure_s:
            device.measured_s = now_s
            self._measure(uuid, device, users)
        granted = grants(Activity(share.limits, share.name in active) for share in shares)
        for share in shares:
            if self._only is None or share.name in self._only:
                self._write(share, granted, device)

    def _measure(self, uuid: str, device: _Device, users: Iterable[SteeredShare]) -> None:
        times = self._times.read(uuid)
        if times is None:
            return
        found_s = _by_share(times, self._owners)
        device.pids = frozenset(times.seconds)
        self._owners.keep(pid for one in self._devices.values() for pid in one.pids)
        matches: dict[str, Match] = {}
        for share in users:
            match = share.match(times, found_s.get(share.name, 0.0), self._pace.linger_s)
            if match is not None:
                matches[share.name] = match
        device.correction.add({name: match.measured for name, match in matches.items()})
        for share in users:
            part = share.rate_percent / names.CORES_PER_DEVICE
            if share.name in matches and part < 1:
                one, weight = matches[share.name], device.correction.weight(share.name)
                span = Span(one.measured.passed_s, one.measured.real_s, one.charged_s, part, weight)
                share.settlement.add(span)

    def _write(self, share: SteeredShare, granted: Mapping[str, int], device: _Device) -> None:
        limits, name = share.limits, share.name
        grant = granted.get(name, 0) if limits.policy is Policy.BURST else limits.granted_percent
        charge, said_ns, now_ns = limits.charge_permille, limits.steered_at_ns, time.monotonic_ns()
        if name in device.active:
            wanted = round(device.correction.ratio(name) * 1000)
            if not charge or abs(wanted - charge) > charge // 200 or not 0 <= now_ns - said_ns < _SAY_AGAIN_NS:
                charge, said_ns = wanted, now_ns
        settled_ns = round(share.settlement.take() * 1e9)
        if (grant, said_ns, settled_ns) == (limits.granted_percent, limits.steered_at_ns, 0):
            return
        try:
            # Changed, not replaced: since it was read, somebody else may have written other limits.
            share.limits = change_limits(
                share.folder,
                lambda found: replace(
                    found,
                    granted_percent=grant,
                    charge_permille=charge,
                    steered_at_ns=said_ns,
                    settled_ns=found.settled_ns + settled_ns,
                ),
            )
        except StateError as error:
            # Unprepared meanwhile, most likely; if not, the monitor says so.
            _log.debug("limits not steered", extra={"share": name, "error": str(error)})


def _by_share(times: GpuTimes, owners: Owners) -> dict[str, float]:
    found: dict[str, float] = {}
    for pid, seconds in times.seconds.items():
        for share in owners.shares_of(pid):
            found[share] = found.get(share, 0.0) + seconds
    return found
