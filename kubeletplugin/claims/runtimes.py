"""Keeps shares out of sandboxes where nothing would work or hold: Kata, gVisor.

Asked by preparing. A container with a kernel of its own sees neither the node's driver nor the locks in the books. So a
pod whose RuntimeClass leads to such a runtime is refused with a message, and does not start without its GPU
(docs/adr/0009-no-shares-in-sandboxes.md). Most clusters have no such class: then this costs a round of claims one short
list, which is asked for beside the claims. Where there is one, the pods of all claims of a round are got together.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from api.claims import ClaimView, Consumer
from api.errors import ClaimError, KubeError, NotFoundError
from api.kube import JSON, PODS, RUNTIME_CLASSES, KubeClient, Wanted
from api.names import ClaimUID

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
        self._heard_s = float("-inf")

    def asks(self) -> Sequence[Wanted]:
        """Return what is to be read together with claims: the classes, unless they were read a moment ago."""
        fresh = time.monotonic() < self._heard_s + _FRESH_S
        return () if fresh or not self._patterns else (Wanted(RUNTIME_CLASSES),)

    def hears(self, answers: Sequence[JSON | KubeError]) -> None:
        """Take what was read. What was known counts on while the API server does not say."""
        for answer in answers:
            self._heard_s = time.monotonic()
            if isinstance(answer, KubeError):
                self._tell("RuntimeClasses cannot be read: pods in sandboxes are not refused", answer)
                continue
            self._outage = ""
            handlers = {one["metadata"]["name"]: str(one.get("handler", "")) for one in answer["items"]}
            self._refused = {name: handler for name, handler in handlers.items() if self._is_refused(handler)}

    def refusals(self, claims: Sequence[ClaimView]) -> Mapping[ClaimUID, ClaimError]:
        """Return why claims are refused whose pods would run in a sandbox; names pod, class and handler."""
        if not self._refused:
            return {}
        users = [(claim, user) for claim in claims for user in claim.reserved_for if user.resource == "pods"]
        pods = self._client.get_all([Wanted(PODS, user.name, claim.namespace) for claim, user in users])
        refused: dict[ClaimUID, ClaimError] = {}
        for (claim, user), pod in zip(users, pods, strict=True):
            name = self._class_of(user, pod)
            if name in self._refused:
                refused[claim.uid] = ClaimError(
                    f"{claim}: pod {user.name}: found runtimeClassName {name} with handler {self._refused[name]}, "
                    "expected a runtime that shares the node's kernel: in a sandbox the GPU driver is out of reach, "
                    "and no share of it can be enforced"
                )
        return refused

    def _is_refused(self, handler: str) -> bool:
        return any(fnmatchcase(handler, pattern) for pattern in self._patterns)

    def _class_of(self, user: Consumer, pod: JSON | KubeError) -> str:
        if isinstance(pod, KubeError):
            if not isinstance(pod, NotFoundError):
                self._tell("pod cannot be read: it is not refused if it runs in a sandbox", pod)
            return ""
        return str(pod["spec"].get("runtimeClassName") or "") if pod["metadata"]["uid"] == user.uid else ""

    def _tell(self, what: str, error: KubeError) -> None:
        if not self._outage:
            _log.warning(what, extra={"error": str(error)})
        self._outage = str(error)
