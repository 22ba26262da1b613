"""One term of leadership: caches, queues and workers, from the Lease won to the Lease lost. Used by `controller`."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from api.errors import ConfigError, VGPUError
from api.kube import KubeClient
from api.offerrules import OfferModeName, OfferRule
from controller.choosing import ModeChooser
from controller.classes import ClassKeeper, ClassSettings
from controller.cluster.caching import ClusterCache
from controller.cluster.indexing import Listeners
from controller.crds import update_crd
from controller.drivernames import DriverName
from controller.keeping import PoolKeeper, Sources
from controller.leading import NotLeadingError
from controller.metrics import Metrics
from controller.offers.offering import OfferMode
from controller.offers.policies import Policy
from controller.offers.probing import PROBE_NODE
from controller.pending import PendingKeeper, Topic
from controller.queueing import WorkQueue, backoff_s, work_off

log = logging.getLogger(__name__)

_CHOOSE_MODE = ""
"""A key of the pools' queue that is no node: find out anew which mode the API server carries."""
_ALL_CLASSES = Topic("class", ("", ""))
_CHOOSE_SOON_S = 2.0
"""After fields were dropped of a slice that is in use: of two API servers behind one address, one may keep them."""
_RENEW_CACHE_S = 1.0
_HOLD_AGAIN_S = 60.0


@dataclass(frozen=True)
class TermSettings:
    """What a term needs to know."""

    driver: str
    identity: str
    offer_mode: OfferModeName = "auto"
    rules: tuple[OfferRule, ...] = ()
    classes: ClassSettings = field(default_factory=ClassSettings)
    update_crd: bool = False

    @property
    def node_labels(self) -> set[str]:
        """The labels of Nodes that rules ask for."""
        return {label for rule in self.rules for label in rule.node_labels}


class Term:
    """Does the controller's work from `start` to `stop`."""

    def __init__(
        self, kube: KubeClient, settings: TermSettings, is_leading: Callable[[], bool], metrics: Metrics
    ) -> None:
        """Write as long as `is_leading` says so."""
        self._kube = kube
        self._settings = settings
        self._is_leading = is_leading
        self._metrics = metrics
        self._chooser = ModeChooser(kube, settings.driver, settings.offer_mode, settings.rules)
        self._name = DriverName(kube, settings.driver, settings.classes.owner)
        self._holds_name = True
        self._pools: WorkQueue[str] = WorkQueue()
        self._topics: WorkQueue[Topic] = WorkQueue()
        self._stopping = threading.Event()
        self._cache: ClusterCache | None = None
        self._trouble = "starting"
        self._had_old_crd = False
        self.version: str | None = None
        """Version of resource.k8s.io in use; None: not known yet. Another one takes another term."""
        self._main = threading.Thread(target=self._run, name="term", daemon=True)

    def start(self) -> None:
        """Begin; does not block."""
        self._main.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End, and wait until nothing more is written."""
        self._stopping.set()
        self._pools.close()
        self._topics.close()
        self._main.join(timeout_s)
        if self._cache is not None:
            self._cache.stop()

    def trouble(self) -> str:
        """Return why the term is not at work; empty: it is."""
        return self._trouble

    def idle(self) -> bool:
        """Say whether everything that is known has been worked on."""
        return not self._trouble and self._pools.idle() and self._topics.idle()

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                self._work_until_stopped()
            except Exception as error:
                # Whoever holds the Lease must work: nobody else does.
                failures += 1
                self._trouble = f"cannot begin: {error!r}"
                log.exception("cannot begin, will try again")
                if self._cache is not None:
                    self._cache.stop()
                self._stopping.wait(backoff_s(failures))

    def _work_until_stopped(self) -> None:
        begun = self._begin()
        if begun is None:
            return
        cache, keeper, pending = begun
        classes = ClassKeeper(self._kube, self._settings.driver, keeper.version, self._settings.classes)
        self._topics.add(_ALL_CLASSES)
        self._trouble = ""
        failures = self._metrics.failures
        jobs: dict[str, Callable[[], None]] = {
            "pools": lambda: work_off(
                self._pools, lambda node: self._sync(cache, keeper, node), failures.labels("pools").inc
            ),
            "claims": lambda: work_off(
                self._topics, lambda topic: self._sync_topic(pending, classes, topic), failures.labels("claims").inc
            ),
        }
        workers = [threading.Thread(target=job, name=name, daemon=True) for name, job in jobs.items()]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _begin(self) -> tuple[ClusterCache, PoolKeeper, PendingKeeper] | None:
        """Find out what the API server is and list everything; None: the term ended before that was done."""
        found = self._discover()
        if found is None:
            return None
        version, mode, policy = found
        self.version = version
        listeners = Listeners(
            pool=self._pools.add,
            claim=lambda key: self._topics.add(Topic("claim", key)),
            pod=lambda key: self._topics.add(Topic("pod", key)),
            template=lambda key: self._topics.add(Topic("template", key)),
            inventory=lambda key: self._topics.add(Topic("inventory", key)),
            device_class=lambda key: self._topics.add(Topic("class", key)),
            outage_end=lambda: self._pools.add(_CHOOSE_MODE),
        )
        driver = self._settings.driver
        cache = self._cache = ClusterCache(
            self._kube, driver, version, listeners, node_labels=self._settings.node_labels
        )
        sources = Sources(
            node_uid=cache.node_uid,
            inventory=cache.inventory,
            devices=cache.node_devices,
            followed=cache.followed,
            slices=cache.slices,
            has_seen=cache.has_seen_slice,
            heartbeat_age_s=cache.pulse.age_s,
        )
        keeper = PoolKeeper(
            self._kube, driver, version, sources=sources, may_write=self._may_write, metrics=self._metrics
        )
        if self._had_old_crd:
            keeper.note_old_crd()
        self._set_mode(cache, keeper, mode, policy)
        self._choose_later(keeper)
        cache.start()
        while not cache.wait_synced(_RENEW_CACHE_S):
            self._trouble = f"the API server has not listed {', '.join(cache.unsynced())} yet"
            if self._stopping.is_set():
                return None
        log.info("at work", extra={"version": version, "mode": mode.name, "slices": cache.slice_count()})
        pending = PendingKeeper(self._kube, cache, self._settings.identity, metrics=self._metrics)
        return cache, keeper, pending

    def _discover(self) -> tuple[str, OfferMode, Policy] | None:
        """Return the version of resource.k8s.io and the offer mode of this cluster, when the API server can tell."""
        failures = 0
        while not self._stopping.is_set():
            try:
                if self._settings.update_crd:
                    self._had_old_crd |= update_crd(self._kube)
                version = self._kube.resource_api_version()
                self._name.hold(version)
                return version, *self._chooser.choose(version)
            except VGPUError as error:
                failures += 1
                self._trouble = str(error)
                log.warning("cannot begin, will try again", extra={"error": str(error)})
                self._stopping.wait(backoff_s(failures))
        return None

    def _may_write(self) -> bool:
        return not self._stopping.is_set() and self._holds_name and self._is_leading()

    def _check_lead(self) -> None:
        if not self._may_write():
            raise NotLeadingError(self._trouble or "the Lease was not renewed in time")

    def _hold_name(self, version: str) -> float | None:
        """Make the driver's name ours again, where its slice was removed; without it write nothing more."""
        try:
            self._name.hold(version)
        except ConfigError as error:
            self._holds_name, self._trouble = False, str(error)
            log.exception(self._trouble)
            return _HOLD_AGAIN_S
        if not self._holds_name:
            self._holds_name, self._trouble = True, ""
        return None

    def _choose_later(self, keeper: PoolKeeper) -> None:
        delay_s = self._chooser.again_s(keeper.mode, keeper.policy)
        if delay_s is not None:
            self._pools.add_after(_CHOOSE_MODE, delay_s)

    def _sync(self, cache: ClusterCache, keeper: PoolKeeper, node: str) -> float | None:
        if node == _CHOOSE_MODE:
            self._check_lead()
            self._set_mode(cache, keeper, *self._chooser.choose(keeper.version))
            return self._chooser.again_s(keeper.mode, keeper.policy)
        if node == PROBE_NODE:
            return self._hold_name(keeper.version)
        mode = keeper.mode
        try:
            return keeper.sync(node)
        finally:
            if keeper.mode is not mode:
                self._set_mode(cache, keeper, keeper.mode, force=True)
                self._pools.add_after(_CHOOSE_MODE, _CHOOSE_SOON_S)
            cache.note_withheld(node, keeper.withheld(node))
            self._measure(cache)

    def _sync_topic(self, pending: PendingKeeper, classes: ClassKeeper, topic: Topic) -> float | None:
        self._check_lead()
        if topic.kind != "class":
            return pending.sync(topic)
        if topic == _ALL_CLASSES:
            classes.sync_all()
            return None
        delays = classes.sync(topic.key[1]), pending.sync(topic)
        return min((delay for delay in delays if delay is not None), default=None)

    def _set_mode(
        self,
        cache: ClusterCache,
        keeper: PoolKeeper,
        mode: OfferMode,
        policy: Policy | None = None,
        *,
        force: bool = False,
    ) -> None:
        """Use a mode and a policy; if one is another, every pool is due."""
        if keeper.set_mode(mode, policy) or force:
            self._metrics.mode.clear()
            self._metrics.mode.labels(mode.name).set(1)
            for pool in cache.pools():
                self._pools.add(pool)

    def _measure(self, cache: ClusterCache) -> None:
        offered, withheld = cache.device_counts()
        self._metrics.slices.set(cache.slice_count())
        self._metrics.devices.labels("offered").set(offered)
        self._metrics.devices.labels("withheld").set(withheld)
