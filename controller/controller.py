"""The controller as a whole: takes part in the election, and works while it leads. Called by `dra_driver`."""

import logging
import threading
from dataclasses import dataclass, field

from prometheus_client import REGISTRY, CollectorRegistry

from api import names
from api.kube import KubeClient
from api.offerrules import OfferModeName, OfferRule
from controller.classes import ClassSettings
from controller.leading import LeaderElector, LeaseSettings
from controller.metrics import Metrics
from controller.terms import Term, TermSettings
from controller.versionwatching import PERIOD_S, VersionWatch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ControllerSettings:
    """Settings of a controller."""

    namespace: str
    """Where the Lease lives."""
    identity: str
    """Unique among all controllers of the cluster, restarts included."""
    driver_name: str = names.DRIVER_NAME
    offer_mode: OfferModeName = "auto"
    rules: tuple[OfferRule, ...] = ()
    """What is offered of which GPUs."""
    classes: ClassSettings = field(default_factory=ClassSettings)
    update_crd: bool = False
    """Bring a CRD of an older release up to date."""
    lease_duration_s: float = 15.0
    renew_deadline_s: float = 10.0
    retry_s: float = 2.0
    version_period_s: float = PERIOD_S

    @property
    def lease(self) -> LeaseSettings:
        """The Lease: one per driver name, so that two drivers in one cluster do not wait for each other."""
        return LeaseSettings(
            namespace=self.namespace,
            name=f"controller-{self.driver_name}",
            identity=self.identity,
            duration_s=self.lease_duration_s,
            renew_deadline_s=self.renew_deadline_s,
            retry_s=self.retry_s,
        )


class Controller:
    """Turns inventories into ResourceSlices and explains claims that wait, as long as it leads."""

    def __init__(self, kube: KubeClient, settings: ControllerSettings, registry: CollectorRegistry = REGISTRY) -> None:
        """Register the figures in `registry`; one controller a registry.

        Raises:
            ConfigError: the durations of the Lease do not go together.
        """
        self._kube = kube
        self._settings = settings
        self._metrics = Metrics(registry)
        self._lock = threading.Lock()
        self._term: Term | None = None
        self._version_watch: VersionWatch | None = None
        self._started = False
        self._elector = LeaderElector(kube, settings.lease, on_started=self._begin, on_stopped=self._end)

    def start(self) -> None:
        """Become a candidate; does not block."""
        self._started = True
        self._elector.start()

    def stop(self) -> None:
        """End the work, give the Lease back, and wait for both."""
        self._elector.stop()

    def alive(self) -> str:
        """Return why a restart would help; empty: it would not."""
        return "" if not self._started or self._elector.running() else "the election has ended by itself"

    def ready(self) -> str:
        """Return why the controller is not ready; empty: it waits for its turn, or is at work."""
        if not self._elector.in_contact():
            return "the API server has not answered yet, or not for a while"
        with self._lock:
            return self._term.trouble() if self._term is not None else ""

    def is_leading(self) -> bool:
        """Say whether this controller leads now."""
        return self._elector.is_leading()

    def idle(self) -> bool:
        """Say whether it leads and everything that it knows of has been worked on. For tests."""
        with self._lock:
            return self._term is not None and self._term.idle()

    def _begin(self) -> None:
        term = self._make_term()
        version_watch = VersionWatch(self._kube, self._version, self._begin_anew, self._settings.version_period_s)
        with self._lock:
            self._term, self._version_watch = term, version_watch
        self._metrics.leader.set(1)
        term.start()
        version_watch.start()

    def _make_term(self) -> Term:
        mine = self._settings
        settings = TermSettings(
            mine.driver_name, mine.identity, mine.offer_mode, mine.rules, mine.classes, mine.update_crd
        )
        return Term(self._kube, settings, self._elector.is_leading, self._metrics)

    def _version(self) -> str | None:
        with self._lock:
            return self._term.version if self._term is not None else None

    def _begin_anew(self) -> None:
        """Work with the version that the API server serves now: caches, queues and mode all depend on it."""
        with self._lock:
            old = self._term
        if old is None:
            return
        old.stop()
        with self._lock:
            if self._term is old:  # and not: the Lease was lost meanwhile
                self._term = self._make_term()
                self._term.start()

    def _end(self) -> None:
        self._metrics.leader.set(0)
        with self._lock:
            term, self._term = self._term, None
            version_watch, self._version_watch = self._version_watch, None
        if version_watch is not None:
            version_watch.stop()
        if term is not None:
            term.stop()
        self._metrics.retire()
