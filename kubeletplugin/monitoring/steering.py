"""Steers the GPU time of shares while they run: what a Burst share may use now, and how its charges are corrected.

Run in a thread of its own by the node agent, and by `dra-driver run` for its share. Looks at who uses the devices many
times a second, as long as anybody does, and writes limits only when something changes.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from api import names
from api.errors import StateError, VGPUError
from api.vgpuconfig import Policy
from kubeletplugin.hardware.gputimes import GpuTimes, GpuTimeSource
from kubeletplugin.monitoring.correcting import Correction, Measured
from kubeletplugin.monitoring.granting import Activity, grants
from kubeletplugin.monitoring.settling import Settlement, Span
from libvgpu.meters import ProcessKey, ShareMeter, Work
from libvgpu.shares import Limits, change_limits, read_limits

_log = logging.getLogger(__name__)
_HISTORY = 100
"""Looks that are remembered, about five seconds."""
_UNSEEN_S = 0.1
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
class _Share:
    folder: Path
    limits: Limits
    meter: ShareMeter
    stamp: bytes = b""
    seen_s: float = float("-inf")
    """When it was active last."""
    work: dict[ProcessKey, Work] = field(default_factory=dict)
    """At the look before."""
    history: deque[tuple[float, Work]] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    """Moments, and what the share's processes had done up to then, altogether."""
    due_s: float = float("-inf")
    """When its books may be looked at again."""
    waits: bool = False
    """It was active, and not looked at, since the last look."""
    unmatched: tuple[float, float] | None = None
    """Since when, and how much GPU time, the driver counted for which the look is still to come."""
    settlement: Settlement = field(default_factory=Settlement)

    @property
    def rate_percent(self) -> int:
        """What the share may use now."""
        return min(self.limits.granted_percent or 100, self.limits.ceiling_percent)

    def is_active(self, now_s: float, linger_s: float) -> bool:
        """Return whether it was seen at work a moment ago."""
        return now_s - self.seen_s <= linger_s

    def look(self, now_s: float, slots_a_second: float) -> None:
        """Add the present to the history, unless the last look cost so much that it is too early for another."""
        if now_s < self.due_s:
            self.waits = True
            return
        found = self.meter.work(self.limits.charge_permille or 1000)
        self.due_s = now_s + self.meter.cost / slots_a_second
        before, self.work = self.work if self.history else found, found
        total = self.history[-1][1] if self.history else Work()
        if self.history and now_s - self.history[-1][0] > _UNSEEN_S and not self.waits:
            self.history.append((now_s - _UNSEEN_S, total))  # it was idle until lately
        self.waits = False
        predicted_s = sum(work.predicted_s - before.get(key, Work()).predicted_s for key, work in self.work.items())
        charged_s = sum(work.charged_s - before.get(key, Work()).charged_s for key, work in self.work.items())
        self.history.append((now_s, Work(total.predicted_s + predicted_s, total.charged_s + charged_s)))

    def rest(self) -> None:
        """Take note that it is idle: what it did before, and nobody looked at, belongs to no measurement any more."""
        if self.waits or self.unmatched:
            self.waits, self.unmatched = False, None
            self.history.clear()

    def done(self, moment_s: float) -> Work:
        """Return what was done up to a moment, between two looks in proportion."""
        before_s, before = self.history[0]
        for after_s, after in self.history:
            if after_s >= moment_s:
                part = (moment_s - before_s) / (after_s - before_s) if after_s > before_s else 1.0
                part = min(max(part, 0.0), 1.0)
                return Work(
                    before.predicted_s + (after.predicted_s - before.predicted_s) * part,
                    before.charged_s + (after.charged_s - before.charged_s) * part,
                )
            before_s, before = after_s, after
        return before


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
        self._shares: dict[str, _Share] = {}
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
            stamp = share.meter.stamp()
            if stamp and share.stamp and stamp != share.stamp:
                share.seen_s = now_s
            share.stamp = stamp
        by_device: dict[str, list[_Share]] = {}
        for share in self._shares.values():
            by_device.setdefault(share.limits.device_uuid, []).append(share)
        self._devices = {uuid: self._devices.get(uuid) or _Device() for uuid in by_device}
        active = sum(share.is_active(now_s, self._pace.linger_s) for share in self._shares.values())
        for uuid, shares in by_device.items():
            self._steer(uuid, shares, now_s, _SLOTS_A_SECOND / max(active, 1))

    def _in_use(self) -> bool:
        return any(device.active for device in self._devices.values())

    def _list(self, now_s: float) -> None:
        folders = self._folders()
        gone = frozenset(self._shares.keys() - folders.keys())
        for device in self._devices.values():
            device.correction.forget(gone)
        found: dict[str, _Share] = {}
        for name, folder in folders.items():
            try:
                limits = read_limits(folder)
            except StateError:
                continue  # the monitor tells
            known = self._shares.get(name)
            if known is None:
                known = _Share(folder, limits, ShareMeter(folder))
                known.look(now_s, _SLOTS_A_SECOND)
            known.limits = limits
            found[name] = known
        self._shares = found

    def _steer(self, uuid: str, shares: list[_Share], now_s: float, slots_a_second: float) -> None:
        device = self._devices[uuid]
        active = frozenset(one.limits.share for one in shares if one.is_active(now_s, self._pace.linger_s))
        if active != device.active:
            device.correction.meet(active)
            device.active = active
        users = [share for share in shares if share.limits.share in active]
        for share in shares:
            if share.limits.share in active:
                share.look(now_s, slots_a_second)
            else:
                share.rest()
        if users and now_s - device.measured_s >= self._pace.measure_s:
            device.measured_s = now_s
            self._measure(uuid, device, users)
        granted = grants(Activity(share.limits, share.limits.share in active) for share in shares)
        for share in shares:
            if self._only is None or share.limits.share in self._only:
                self._write(share, granted, device)

    def _measure(self, uuid: str, device: _Device, users: Iterable[_Share]) -> None:
        times = self._times.read(uuid)
        if times is None:
            return
        found_s = _by_share(times, self._owners)
        device.pids = frozenset(times.seconds)
        self._owners.keep(pid for one in self._devices.values() for pid in one.pids)
        measured: dict[str, Measured] = {}
        charged_s: dict[str, float] = {}
        for share in users:
            name = share.limits.share
            from_s, real_s = share.unmatched or (times.from_s, 0.0)
            real_s += found_s.get(name, 0.0)
            share.unmatched = (from_s, real_s) if share.waits else None
            if not share.waits and share.history[0][0] <= from_s:
                start, end = share.done(from_s), share.done(times.to_s)
                measured[name] = Measured(times.to_s - from_s, real_s, end.predicted_s - start.predicted_s)
                charged_s[name] = end.charged_s - start.charged_s
        device.correction.add(measured)
        for share in users:
            name, part = share.limits.share, share.rate_percent / names.CORES_PER_DEVICE
            if name in measured and part < 1:
                one, weight = measured[name], device.correction.weight(name)
                share.settlement.add(Span(one.passed_s, one.real_s, charged_s[name], part, weight))

    def _write(self, share: _Share, granted: Mapping[str, int], device: _Device) -> None:
        limits, name = share.limits, share.limits.share
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
