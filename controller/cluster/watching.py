"""Caches of the API server's objects, each kept up to date by one list and one watch.

Objects are trimmed before they are kept. A watch resumes where it broke; after 410 Gone the kind is listed anew, and
what vanished meanwhile is reported as deleted. While the API server is away the cache stays as it was and the watcher
tries again with back-off.

Own and not `kubernetes.informer`: that one keeps typed, untrimmed objects, and asks again at once and for ever while
the API server refuses connections.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from api.claims import Object
from api.endings import Ending
from api.errors import GoneError, KubeError, NotFoundError
from api.kube import KubeClient, Resource, Selection

log = logging.getLogger(__name__)

T = TypeVar("T")
Key = tuple[str, str]
"""Namespace (empty for cluster-scoped kinds) and name."""

_FIRST_DELAY_S = 0.5
_LAST_DELAY_S = 15.0


def key_of(obj: Object) -> Key:
    """Return the key of an object in a cache."""
    return (obj["metadata"].get("namespace", ""), obj["metadata"]["name"])


@dataclass(frozen=True)
class Kind(Generic[T]):
    """What to watch, and what to keep of it."""

    resource: Resource
    trim: Callable[[Object], T | None]
    """Returns what is worth keeping of an object; None: nothing, as if it did not exist."""
    on_change: Callable[[Key, T | None, T | None], None]
    """Called with key, old and new after the cache has changed; from the watcher's thread."""
    index: Callable[[Key, T | None, T | None], None] = lambda _key, _old, _new: None
    """As `on_change`, but called before the change counts as seen: for indexes that are asked after `has_seen`."""
    selection: Selection = field(default_factory=Selection)
    timeout_s: int = 300
    """After so long a watch is opened anew; the API server ends it then."""


class Watcher(Generic[T]):
    """The cache of one kind and the thread that keeps it."""

    def __init__(self, kube: KubeClient, kind: Kind[T], on_outage_end: Callable[[], None] = lambda: None) -> None:
        """Keep `kind` up to date; `on_outage_end` is called when the API server answers again after it did not."""
        self._kube = kube
        self._kind = kind
        self._on_outage_end = on_outage_end
        self._lock = threading.Lock()
        self._kept: dict[Key, T] = {}
        self._version: str | None = None
        self._seen = 0
        self._failures = 0
        self._synced = threading.Event()
        self._stopping = Ending()
        # A daemon: a list that waits for the API server cannot be interrupted, and must not delay the end.
        self._thread = threading.Thread(target=self._run, name=f"watch-{kind.resource.plural}", daemon=True)

    def start(self) -> None:
        """Start to list and watch."""
        self._thread.start()

    def stop(self) -> None:
        """End; nothing is reported after this has returned and what was being reported is done.

        A watch ends at once, a list when the API server has answered; what was kept of a whole cluster goes now.
        """
        self._stopping.set()
        with self._lock:
            self._kept.clear()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread's end; return whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def plural(self) -> str:
        """Name of the kind."""
        return self._kind.resource.plural

    @property
    def synced(self) -> threading.Event:
        """Set once the first list is in the cache."""
        return self._synced

    def has_seen(self, version: str) -> bool:
        """Say whether the cache holds the state at a resourceVersion, such as that of an own write, or a later one.

        ResourceVersions of one kind can be compared as numbers (KEP-5504); one that is no number counts as seen.
        """
        return not version.isdecimal() or self._seen >= int(version)

    def get(self, key: Key) -> T | None:
        """Return what is kept of an object, or None."""
        with self._lock:
            return self._kept.get(key)

    def items(self) -> Mapping[Key, T]:
        """Return a copy of the cache."""
        with self._lock:
            return dict(self._kept)

    def __len__(self) -> int:
        with self._lock:
            return len(self._kept)

    def _run(self) -> None:
        while not self._stopping.is_set():
            begun = time.monotonic()
            try:
                if self._version is None:
                    self._list()
                self._watch(self._version or "0")
                # Ended as it should be, after minutes; one that ends at once (a proxy on the way) must not be a loop.
                self._stopping.wait(max(begun + _FIRST_DELAY_S - time.monotonic(), 0.0))
            except GoneError:
                log.info("watch is too old, listing anew", extra={"kind": self._kind.resource.plural})
                self._version = None
                # At once, but not again and again where what was listed a moment ago is too old already.
                self._stopping.wait(max(begun + _FIRST_DELAY_S - time.monotonic(), 0.0))
            except KubeError as error:
                self._wait(error)
            except Exception as error:
                # An answer that is no JSON, say. A watcher that ends would leave a cache that is wrong for ever.
                log.exception("cannot watch", extra={"kind": self._kind.resource.plural})
                self._version = None
                self._wait(KubeError(str(error)))

    def _wait(self, error: KubeError) -> None:
        if self._stopping.is_set():
            return
        self._failures += 1
        if isinstance(error, NotFoundError) or error.status == 403:
            # The kind is not served (its CRD is not installed yet, say), or not ours to see: begin at the beginning.
            self._version = None
        delay_s = min(_FIRST_DELAY_S * 2.0 ** min(self._failures - 1, 10), _LAST_DELAY_S)
        level = logging.WARNING if self._failures == 1 else logging.DEBUG
        log.log(level, "cannot watch, will try again", extra={"kind": self._kind.resource.plural, "error": str(error)})
        # Jitter: after an outage all watchers of all controllers come back at once.
        self._stopping.wait(max(delay_s, error.wait_s) * random.uniform(1.0, 1.4))  # noqa: S311 -- no secret is made of it

    def _list(self) -> None:
        answer = self._kube.list(self._kind.resource, self._kind.selection)
        self._answered()
        items = {key_of(obj): obj for obj in answer["items"] or []}
        for key in set(self.items()) - set(items):
            self._change(key, None)
        for key, obj in items.items():
            self._change(key, obj)
        self._advance(answer["metadata"])
        self._synced.set()

    def _watch(self, version: str) -> None:
        kind = self._kind
        for event in self._kube.watch(kind.resource, version, kind.selection, kind.timeout_s, self._stopping):
            if self._stopping.is_set():
                return
            self._answered()
            if event.type == "BOOKMARK":
                self._advance(event.object["metadata"])
            else:
                obj = None if event.type == "DELETED" else event.object
                self._change(key_of(event.object), obj, event.object["metadata"])

    def _answered(self) -> None:
        failures, self._failures = self._failures, 0
        if failures:
            log.info("watching again", extra={"kind": self._kind.resource.plural, "failures": failures})
            self._on_outage_end()

    def _trim(self, key: Key, obj: Object) -> T | None:
        try:
            return self._kind.trim(obj)
        except Exception:
            # One object that nobody thought of must not hide all others.
            log.exception("cannot read, left out", extra={"kind": self._kind.resource.plural, "key": "/".join(key)})
            return None

    def _advance(self, metadata: Object) -> None:
        self._version = version = str(metadata["resourceVersion"])
        self._seen = int(version) if version.isdecimal() else 0

    def _change(self, key: Key, obj: Any, position: Object | None = None) -> None:
        new = None if obj is None else self._trim(key, obj)
        with self._lock:
            old = self._kept.get(key)
            if new is None:
                self._kept.pop(key, None)
            elif not self._stopping.is_set():
                self._kept[key] = new
        tell = (old is not None or new is not None) and not self._stopping.is_set()
        if tell:
            self._report(self._kind.index, key, old, new)
        if position is not None:
            # After the indexes: who finds that this has been seen must find it there. Before anybody is told.
            self._advance(position)
        if tell:
            self._report(self._kind.on_change, key, old, new)

    def _report(
        self, report: Callable[[Key, T | None, T | None], None], key: Key, old: T | None, new: T | None
    ) -> None:
        try:
            report(key, old, new)
        except Exception:
            # As with the trim. Listed anew, it would raise again, and what comes behind it would never be seen.
            log.exception("cannot take a change over", extra={"kind": self._kind.resource.plural, "key": "/".join(key)})
