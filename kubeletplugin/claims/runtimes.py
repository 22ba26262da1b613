"""Keeps shares out of sandboxes where nothing would work or hold: Kata, gVisor.

Asked by preparing, and told by claimfollowing of pods that come to a claim later. A container with a kernel of its own
sees neither the node's driver nor the locks in the books. So a claim is refused with a message as long as only pods use
it whose RuntimeClass leads to such a runtime: they do not start without their GPU. The kubelet asks for claims and does
not say for which pod, so a claim that other pods use as well is prepared, for them, and the pod in the sandbox is told
by an event (docs/adr/0009-no-shares-in-sandboxes.md). Most clusters have no such class: then this costs a round of
claims one short list, which is asked for beside the claims. Where there is one, the pods of all claims of a round are
got together.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from api import names
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
_TELL_AGAIN_S = 600.0

Tell = Callable[[ClaimView, Consumer, str, str], None]
"""Tells the owner of a claim and of a pod that uses it: reason and note."""


class RuntimeGuard:
    """Knows which RuntimeClasses are refused. Safe to use from several threads."""

    def __init__(
        self, client: KubeClient, patterns: Iterable[str] = DEFAULT_PATTERNS, tell: Tell = lambda *_: None
    ) -> None:
        """Take patterns (`*`, `?`) of the handlers that are refused (none: nothing is), and whom to tell of pods."""
        self._client = client
        self._tell_owner = tell
        self._told_s: dict[tuple[ClaimUID, str], float] = {}
        """When what was told last, by claim and pod."""
        self._telling = threading.Lock()
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
        """Return why claims are refused that only pods in sandboxes would use; names pod, class and handler."""
        refused: dict[ClaimUID, ClaimError] = {}
        for claim, (sandboxed, others) in self._sort_pods(claims):
            for user, reason in sandboxed.items():
                self._tell_once(claim, user, reason)
            if sandboxed and not others:
                refused[claim.uid] = ClaimError(next(iter(sandboxed.values())))
        return refused

    def meet(self, claim: ClaimView) -> None:
        """Tell of the pods in sandboxes among those that use a claim by now: the kubelet does not ask about them."""
        asks = self.asks()
        if asks:
            self.hears(self._client.get_all(asks))
        self.refusals([claim])

    def _sort_pods(self, claims: Sequence[ClaimView]) -> Iterable[tuple[ClaimView, tuple[Mapping[Consumer, str], int]]]:
        """Yield each claim with its pods in sandboxes (and what is to be said of each), and the number of others."""
        refused = self._refused  # another thread may hear of other classes meanwhile
        if not refused:
            return
        users = {claim.uid: [one for one in claim.reserved_for if one.resource == "pods"] for claim in claims}
        wanted = [Wanted(PODS, user.name, claim.namespace) for claim in claims for user in users[claim.uid]]
        pods = iter(self._client.get_all(wanted))
        for claim in claims:
            sandboxed: dict[Consumer, str] = {}
            others = 0
            for user in users[claim.uid]:
                pod = next(pods)
                name = self._class_of(user, pod)
                if name in refused:
                    sandboxed[user] = _describe(claim, user, name, refused[name])
                elif _is_served(user, pod):
                    others += 1
            yield claim, (sandboxed, others)

    def _tell_once(self, claim: ClaimView, user: Consumer, reason: str) -> None:
        now_s = time.monotonic()
        with self._telling:
            self._told_s = {key: told_s for key, told_s in self._told_s.items() if now_s < told_s + _TELL_AGAIN_S}
            if (claim.uid, user.uid) in self._told_s:
                return
            self._told_s[claim.uid, user.uid] = now_s
        self._tell_owner(claim, user, names.EVENT_SANDBOXED, reason)

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


def _describe(claim: ClaimView, user: Consumer, name: str, handler: str) -> str:
    return (
        f"{claim}: pod {user.name}: found runtimeClassName {name} with handler {handler}, expected a runtime that "
        "shares the node's kernel: in a sandbox the GPU driver is out of reach, and no share of it can be enforced; "
        "give the pod another runtimeClassName, or none"
    )


def _is_served(user: Consumer, pod: JSON | KubeError) -> bool:
    """Return whether the kubelet may ask for a pod that is in no sandbox: not before it has a node, nor at its end."""
    if isinstance(pod, KubeError):
        return not isinstance(pod, NotFoundError)
    metadata, ended = pod["metadata"], pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}
    return (
        metadata["uid"] == user.uid
        and "deletionTimestamp" not in metadata
        and bool(pod["spec"].get("nodeName"))
        and not ended
    )
