"""Notices that the API server serves another best version of resource.k8s.io than the one in use. Used by `controller`.

An upgrade of the API server is no event that anybody sends. Several API servers behind one address are upgraded one by
one, with watches that never break for long, so the version is asked for from time to time: one small request.
"""

import logging
import threading
from collections.abc import Callable

from api.errors import VGPUError
from api.kube import KubeClient

log = logging.getLogger(__name__)

PERIOD_S = 5.0
SEEN_IN_A_ROW = 2
"""While API servers of two versions answer in turn, whoever follows each answer lists the whole cluster each time."""


class VersionWatch:
    """Asks for the version in a thread of its own, from `start` to `stop`."""

    def __init__(
        self, kube: KubeClient, in_use: Callable[[], str | None], on_change: Callable[[], None], period_s: float
    ) -> None:
        """Call `on_change` when the best version is not the one `in_use`; None: none is in use yet."""
        self._kube = kube
        self._in_use = in_use
        self._on_change = on_change
        self._period_s = period_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="versions", daemon=True)

    def start(self) -> None:
        """Begin; does not block."""
        self._thread.start()

    def stop(self) -> None:
        """End. What is being reported now is reported to its end."""
        self._stopping.set()

    def _run(self) -> None:
        seen = 0
        while not self._stopping.wait(self._period_s):
            in_use = self._in_use()
            try:
                found = self._kube.resource_api_version()
            except VGPUError as error:
                log.debug("cannot ask for the version", extra={"error": str(error)})
                continue
            seen = seen + 1 if in_use is not None and found != in_use else 0
            if seen >= SEEN_IN_A_ROW and not self._stopping.is_set():
                seen = 0
                log.info("the API server serves another version", extra={"version": found, "before": in_use})
                self._on_change()
