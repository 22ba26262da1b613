"""Leader election on a Lease: of all controllers of a cluster, one works and the others wait.

Own and not `kubernetes.leaderelection`: that one cannot be stopped, never gives the Lease back (so that every rolling
update waits until it expires), measures with the wall clock, and does not tell a worker that its time is over. The
rules are client-go's: a Lease is taken over once it has not changed for its duration by the *own* monotonic clock, so
clocks may differ; a leader that could not renew for the renew deadline, which is shorter than the duration, has
stopped working before anybody else may begin. Time for which the machine is suspended counts: who wakes up after a
minute has not led for a minute.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from api.claims import Object
from api.errors import ConfigError, KubeError, NotFoundError
from api.kube import LEASES, KubeClient

log = logging.getLogger(__name__)


class NotLeadingError(KubeError):
    """Nothing may be written now: the Lease was not renewed in time, and somebody else may hold it."""


def monotonic_s() -> float:
    """Return seconds that no setting of the clock changes, and that pass while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class LeaseSettings:
    """Which Lease to hold, as whom, and for how long."""

    namespace: str
    name: str
    identity: str
    """Unique among all controllers, such as the pod's name and a random part."""
    duration_s: float = 15.0
    """Others wait so long after the last renewal that they saw."""
    renew_deadline_s: float = 10.0
    """Without a renewal for so long, the leader stops."""
    retry_s: float = 2.0
    """Between two attempts to take or renew the Lease."""

    def __post_init__(self) -> None:
        if not 0 < self.retry_s < self.renew_deadline_s < self.duration_s:
            raise ConfigError(
                f"leader election: found retry {self.retry_s} s, renew deadline {self.renew_deadline_s} s, duration "
                f"{self.duration_s} s, expected 0 < retry < renew deadline < duration"
            )


@dataclass(frozen=True)
class Seen:
    """A Lease as it was last seen to change."""

    spec: Object
    at: float
    """Monotonic seconds."""


def may_take(lease: Object, seen: Seen, identity: str, now: float) -> bool:
    """Say whether a candidate may hold a Lease: nobody does, it does itself, or the holder has let it run out."""
    spec = lease.get("spec") or {}
    holder = spec.get("holderIdentity")
    return not holder or holder == identity or now >= seen.at + float(spec.get("leaseDurationSeconds") or 0)


def renewed(lease: Object, settings: LeaseSettings, now: datetime) -> dict[str, Any]:
    """Return the Lease as its new or old holder writes it."""
    spec = dict(lease.get("spec") or {})
    taken_over = spec.get("holderIdentity") != settings.identity
    time_text = _micro_time(now)
    return {
        **lease,
        "spec": {
            **spec,
            "holderIdentity": settings.identity,
            "leaseDurationSeconds": max(round(settings.duration_s), 1),
            "renewTime": time_text,
            "acquireTime": time_text if taken_over else spec.get("acquireTime", time_text),
            "leaseTransitions": int(spec.get("leaseTransitions") or 0) + taken_over,
        },
    }


class LeaderElector:
    """Takes part in the election from `start` to `stop`, in a thread of its own."""

    def __init__(
        self,
        kube: KubeClient,
        settings: LeaseSettings,
        *,
        on_started: Callable[[], None],
        on_stopped: Callable[[], None],
    ) -> None:
        """Call `on_started` when leading begins and `on_stopped` when it ends; both must not block for long."""
        self._kube = kube
        self._settings = settings
        self._on_started = on_started
        self._on_stopped = on_stopped
        self._seen: Seen | None = None
        self._leads_until = 0.0
        self._leading = False
        self._contact = 0.0
        self._trouble = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leader-election", daemon=True)

    def start(self) -> None:
        """Become a candidate."""
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop leading, give the Lease back, and end."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def is_leading(self) -> bool:
        """Say whether the Lease is held now, by the clock, not by the last renewal. Ask before each write."""
        return self._leading and monotonic_s() < self._leads_until

    def in_contact(self) -> bool:
        """Say whether the API server has answered within the last two lease durations."""
        return self._contact > 0 and monotonic_s() < self._contact + 2 * self._settings.duration_s

    def running(self) -> bool:
        """Say whether it takes part in the election."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._attempt()
            self._follow()
            self._stopping.wait(self._settings.retry_s)
        if self._leading:
            self._end()
            self._release()

    def _attempt(self) -> None:
        # Taken before the request: the others count from when they have seen it, which is never earlier.
        asked = monotonic_s()
        try:
            held = self._take_or_renew()
        except Exception as error:  # noqa: BLE001 -- logged; see below
            # A Lease that somebody has written nonsense into is no reason to leave the election for ever.
            text = str(error) if isinstance(error, KubeError) else f"cannot read it: {error!r}"
            # Once for each trouble, and not every two seconds.
            level = logging.DEBUG if text == self._trouble else logging.WARNING
            log.log(level, "cannot reach the Lease", extra={"lease": self._settings.name, "error": text})
            self._trouble = text
            return
        self._trouble = ""
        self._contact = monotonic_s()
        self._leads_until = asked + self._settings.renew_deadline_s if held else 0.0

    def _take_or_renew(self) -> bool:
        settings = self._settings
        try:
            lease = self._kube.get(LEASES, settings.name, settings.namespace)
        except NotFoundError:
            # Somebody deleted it, which its holder does not know yet.
            if self._seen is not None and not may_take(
                {"spec": self._seen.spec}, self._seen, settings.identity, monotonic_s()
            ):
                return False
            fresh = {
                "apiVersion": LEASES.api_version,
                "kind": "Lease",
                "metadata": {"namespace": settings.namespace, "name": settings.name},
            }
            self._kube.create(LEASES, renewed(fresh, settings, datetime.now(UTC)))
            return True
        spec = lease.get("spec") or {}
        now = monotonic_s()  # after the answer: the holder may have renewed while it was on its way
        if self._seen is None or self._seen.spec != spec:
            self._seen = Seen(spec, now)
        if not may_take(lease, self._seen, settings.identity, now):
            return False
        # The resourceVersion in it makes this fail if another candidate was faster.
        self._kube.replace(LEASES, renewed(lease, settings, datetime.now(UTC)))
        return True

    def _follow(self) -> None:
        """Begin or end the work as the Lease says."""
        held = monotonic_s() < self._leads_until
        if held and not self._leading:
            log.info("leading", extra={"identity": self._settings.identity})
            self._leading = True
            self._on_started()
        elif self._leading and not held:
            log.warning("no longer leading", extra={"identity": self._settings.identity})
            self._end()

    def _end(self) -> None:
        self._leading = False
        self._on_stopped()

    def _release(self) -> None:
        settings = self._settings
        try:
            lease = self._kube.get(LEASES, settings.name, settings.namespace)
            if (lease.get("spec") or {}).get("holderIdentity") == settings.identity:
                lease["spec"] |= {
                    "holderIdentity": "",
                    "leaseDurationSeconds": 1,
                    "renewTime": _micro_time(datetime.now(UTC)),
                }
                self._kube.replace(LEASES, lease)
        except KubeError as error:
            log.warning("cannot give the Lease back", extra={"lease": settings.name, "error": str(error)})


def _micro_time(now: datetime) -> str:
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
