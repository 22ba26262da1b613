"""Keeps the DeviceTaintRules of the cluster, where and while its API server serves them. Used by `caching`.

Most clusters do not: up to Kubernetes 1.36 they are behind a feature gate and an API version that is off. Which version
has them is asked from time to time, since an upgrade brings them without any other sign; nothing waits for the answer.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable

from api import kube as kube_api
from api import names
from api.errors import VGPUError
from api.kube import KubeClient, Resource
from controller.cluster.watching import Key, Kind, Watcher
from controller.reasons.taintrules import TaintRule, rule_trimmer

log = logging.getLogger(__name__)

PERIOD_S = 30.0


def served_rules(kube: KubeClient) -> Resource | None:
    """Return the best version of DeviceTaintRules that the API server serves; None: it serves none.

    Raises:
        KubeError: it did not answer.
    """
    served = kube.served_versions(names.RESOURCE_GROUP)
    for version in names.TAINT_RULE_VERSIONS:
        rules = kube_api.taint_rules(version)
        # A version is no sign: v1beta2 is of 1.33 and v1 of 1.34, both without these rules.
        if version in served and rules.plural in kube.served_kinds(rules.group, version):
            return rules
    return None


class RuleWatch:
    """The rules for our devices, from `start` to `stop`."""

    def __init__(
        self, kube: KubeClient, driver: str, on_change: Callable[[], None], *, period_s: float = PERIOD_S
    ) -> None:
        """Call `on_change` after the rules for the devices of `driver` have changed, from any thread."""
        self._kube = kube
        self._trim = rule_trimmer(driver)
        self._on_change = on_change
        self._period_s = period_s
        self._lock = threading.Lock()
        self._resource: Resource | None = None
        self._watcher: Watcher[TaintRule] | None = None
        self._stopped = False
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._run, name="taint-rules", daemon=True)

    def start(self) -> None:
        """Begin; does not block."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is still received is not reported."""
        with self._lock:
            self._stopped = True
            if self._watcher is not None:
                self._watcher.stop()
        self._due.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the ends of the threads; return whether they have ended."""
        ends_s = time.monotonic() + timeout_s
        self._thread.join(timeout_s)
        with self._lock:
            watcher = self._watcher
        watching = watcher is not None and not watcher.join(max(ends_s - time.monotonic(), 0.0))
        return not self._thread.is_alive() and not watching

    def look_again(self) -> None:
        """Find out now which version is served, as after an outage."""
        self._due.set()

    def rules(self) -> Iterable[TaintRule]:
        """Return the rules as they are known; none where none are served."""
        with self._lock:
            watcher = self._watcher
        return watcher.items().values() if watcher is not None else ()

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._follow(served_rules(self._kube))
            except VGPUError as error:
                log.debug("cannot ask for taint rules, will try again", extra={"error": str(error)})
            self._due.wait(self._period_s)
            self._due.clear()

    def _follow(self, found: Resource | None) -> None:
        with self._lock:
            if found == self._resource or self._stopped:
                return
            before, self._resource, self._watcher = self._watcher, found, None
            if before is not None:
                before.stop()
            if found is not None:
                self._watcher = Watcher(self._kube, Kind(found, self._trim, self._note))
                self._watcher.start()
        log.info("DeviceTaintRules", extra={"version": found.version if found else "not served"})
        if before is not None:
            self._on_change()

    def _note(self, _key: Key, old: TaintRule | None, new: TaintRule | None) -> None:
        if old != new:
            self._on_change()
