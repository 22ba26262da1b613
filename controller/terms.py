"""One term of leadership: caches, queues and workers, from the Lease won to the Lease lost. Used by `controller`."""

import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeVar

from api.errors import KubeError, VGPUError
from api.kube import KubeClient
from api.offerrules import OfferModeName, OfferRule
from controller.caching import ClusterCache, Listeners
from controller.classes import ClassKeeper, ClassSettings
from controller.consumable import ConsumableMode
from controller.counters import CountersMode
from controller.crds import update_crd
from controller.keeping import PoolKeeper, Sources
from controller.leading import NotLeadingError
from controller.metrics import Metrics
from controller.offering import NoMode, OfferMode
from controller.pending import PendingKeeper, Topic
from controller.policies import Policy
from controller.probing import PROBE_NODE, choose_mode, keeps_taints
from controller.queueing import WorkQueue, backoff_s
from controller.slots import SlotsMode

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

OFFER_MODES: tuple[OfferMode, ...] = (ConsumableMode(), CountersMode(), CountersMode(together=True), SlotsMode())
"""Modes that are tried, best first."""

_CHOOSE_MODE = ""
"""A key of the pools' queue that is no node: find out anew which mode the API server carries."""
_PROBE_AGAIN_S = 60.0
"""While no mode can be used: API servers that restart one by one turn a feature gate on without an outage to see."""
_ALL_CLASSES = Topic("class", ("", ""))
_CHOOSE_SOON_S = 2.0
"""After fields were dropped of a slice that is in use: of two API servers behind one address, one may keep them."""
_PROBE_BETTER_S = 900.0
"""While a mode can be used and a better one could be: each try makes the scheduler look at its queue again."""
_FIRST_DECIDES_BEFORE = 35
"""Minor version of Kubernetes from which on the scheduler asks each device of a slice for room (`policies`)."""
_RENEW_CACHE_S = 1.0
_REFUSED = (400, 403, 422)
"""HTTP: an answer that the same request gets again, until somebody does something about it."""


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
    def modes(self) -> tuple[OfferMode, ...]:
        """The modes to try, best first."""
        return tuple(mode for mode in OFFER_MODES if self.offer_mode in ("auto", mode.name))

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
        self._pools: WorkQueue[str] = WorkQueue()
        self._topics: WorkQueue[Topic] = WorkQueue()
        self._stopping = threading.Event()
        self._cache: ClusterCache | None = None
        self._trouble = "starting"
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
        workers = [
            threading.Thread(
                target=self._work, args=(self._pools, lambda key: self._sync(cache, keeper, key)), name="pools"
            ),
            threading.Thread(
                target=self._work,
                args=(self._topics, lambda topic: self._sync_topic(pending, classes, topic)),
                name="claims",
            ),
        ]
        self._trouble = ""
        for worker in workers:
            worker.daemon = True
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
            pool=self._note_pool,
            claim=lambda key: self._topics.add(Topic("claim", key)),
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
                    update_crd(self._kube)
                version = self._kube.resource_api_version()
                return version, *self._choose(version)
            except VGPUError as error:
                failures += 1
                self._trouble = str(error)
                log.warning("cannot begin, will try again", extra={"error": str(error)})
                self._stopping.wait(backoff_s(failures))
        return None

    def _choose(self, version: str) -> tuple[OfferMode, Policy]:
        """Return the mode and policy that the API server can carry.

        Raises:
            KubeError: it did not answer.
        """
        settings = self._settings
        mode = choose_mode(self._kube, settings.modes, settings.driver, version)
        if isinstance(mode, NoMode) and settings.offer_mode != "auto":
            mode = NoMode(
                f"the offer mode is set to {settings.offer_mode}, which this cluster cannot carry: {mode.reason}"
            )
        taints = keeps_taints(self._kube, settings.driver, version)
        first_decides = mode.name == "consumable" and self._kube.server_minor() < _FIRST_DECIDES_BEFORE
        return mode, Policy(settings.rules, taints, menu=mode.name == "counters", first_decides=first_decides)

    def _may_write(self) -> bool:
        return not self._stopping.is_set() and self._is_leading()

    def _check_lead(self) -> None:
        if not self._may_write():
            raise NotLeadingError("the Lease was not renewed in time")

    def _choose_again_s(self, keeper: PoolKeeper) -> float | None:
        if isinstance(keeper.mode, NoMode):
            return _PROBE_AGAIN_S
        return None if keeper.mode == self._settings.modes[0] and keeper.policy.taints else _PROBE_BETTER_S

    def _choose_later(self, keeper: PoolKeeper) -> None:
        delay_s = self._choose_again_s(keeper)
        if delay_s is not None:
            self._pools.add_after(_CHOOSE_MODE, delay_s)

    def _note_pool(self, pool: str) -> None:
        if pool != PROBE_NODE:
            self._pools.add(pool)

    def _work(self, queue: WorkQueue[K], handle: Callable[[K], float | None]) -> None:
        while (key := queue.take()) is not None:
            try:
                again_s = handle(key)
                queue.succeed(key)
                if again_s is not None:
                    queue.add_after(key, again_s)
            except KubeError as error:
                self._fail(queue, key, error)
            except Exception:
                # One object that nobody thought of must not end the work on all others.
                log.exception("cannot handle", extra={"key": str(key)})
                self._fail(queue, key, None)
            finally:
                queue.done(key)

    def _fail(self, queue: WorkQueue[K], key: K, error: KubeError | None) -> None:
        self._metrics.failures.labels("pools" if isinstance(key, str) else "claims").inc()
        delay_s = queue.retry(key)
        if error is not None:
            level = logging.WARNING if error.status in _REFUSED else logging.INFO
            log.log(
                level,
                "will try again",
                extra={"key": str(key), "error": str(error), "delay_s": round(delay_s, 1)},
            )

    def _sync(self, cache: ClusterCache, keeper: PoolKeeper, node: str) -> float | None:
        if node == _CHOOSE_MODE:
            self._check_lead()
            self._set_mode(cache, keeper, *self._choose(keeper.version))
            return self._choose_again_s(keeper)
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
        else:
            classes.sync(topic.key[1])
        return None

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
                self._note_pool(pool)

    def _measure(self, cache: ClusterCache) -> None:
        offered, withheld = cache.device_counts()
        self._metrics.slices.set(cache.slice_count())
        self._metrics.devices.labels("offered").set(offered)
        self._metrics.devices.labels("withheld").set(withheld)
