"""Keeps shares out of sandboxes where nothing would work or hold: Kata, gVisor.

Asked by preparing. A container with a kernel of its own sees neither the node's driver nor the locks in the books. So a
pod whose RuntimeClass leads to such a runtime is refused with a message, and does not start without its GPU
(docs/adr/0009-no-shares-in-sandboxes.md). Most clusters have no such class: then this costs a prepare one short list.
"""

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from api.claims import ClaimView
from api.errors import ClaimError, KubeError, NotFoundError
from api.kube import PODS, RUNTIME_CLASSES, KubeClient

_log = logging.getLogger(__name__)

DEFAULT_PATTERNS = ("kata*", "runsc*", "gvisor*")
"""Handlers as the installers of Kata Containers and gVisor name them."""
_FRESH_S = 0.05
"""For how long a list counts: calls that come together share one. A class is there before a pod can name it, and much
more time passes until that pod has a claim, a node, and its call here."""


class RuntimeGuard:
    """Knows which RuntimeClasses are refused. Safe to use from several threads."""

    def __init__(self, client: KubeClient, patterns: Iterable[str] = DEFAULT_PATTERNS) -> None:
        """Take patterns (`*`, `?`) of the handlers that are refused; none: nothing is."""
        self._client = client
        self._patterns = tuple(patterns)
        self._refused: Mapping[str, str] = {}
        """Handlers by the name of their RuntimeClass."""
        self._outage = ""
        self._listing = threading.Lock()
        self._listed_s = float("-inf")

    def _refresh(self) -> None:
        """Ask which classes there are now. What was known counts on while the API server does not say."""
        with self._listing:
            if time.monotonic() >= self._listed_s + _FRESH_S:
                self._list()
                self._listed_s = time.monotonic()

    def _list(self) -> None:
        try:
            classes = self._client.list(RUNTIME_CLASSES)["items"]
        except KubeError as error:
            self._tell("RuntimeClasses cannot be read: pods in sandboxes are not refused", error)
            return
        self._outage = ""
        handlers = {one["metadata"]["name"]: str(one.get("handler", "")) for one in classes}
        self._refused = {name: handler for name, handler in handlers.items() if self._is_refused(handler)}

    def check(self, claim: ClaimView) -> None:
        """Raise a ClaimError if a pod that uses the claim would run in a sandbox; names pod, class and handler."""
        if not self._patterns:
            return
        self._refresh()
        if not self._refused:
            return
        for consumer in claim.reserved_for:
            if consumer.resource != "pods":
                continue
            name = self._class_of(claim.namespace, consumer.name, consumer.uid)
            if name is not None and name in self._refused:
                raise ClaimError(
                    f"{claim}: pod {consumer.name}: found runtimeClassName {name} with handler {self._refused[name]}, "
                    "expected a runtime that shares the node's kernel: in a sandbox the GPU driver is out of reach, "
                    "and no share of it can be enforced"
                )

    def _is_refused(self, handler: str) -> bool:
        return any(fnmatchcase(handler, pattern) for pattern in self._patterns)

    def _class_of(self, namespace: str, name: str, uid: str) -> str | None:
        try:
            pod = self._client.get(PODS, name, namespace)
        except NotFoundError:
            return None
        except KubeError as error:
            self._tell("pod cannot be read: it is not refused if it runs in a sandbox", error)
            return None
        return pod["spec"].get("runtimeClassName") if pod["metadata"]["uid"] == uid else None

    def _tell(self, what: str, error: KubeError) -> None:
        if not self._outage:
            _log.warning(what, extra={"error": str(error)})
        self._outage = str(error)
