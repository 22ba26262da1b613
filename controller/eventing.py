"""Events on claims and pods: one per object and reason, kept up to date and not spammed. Used by `pending`.

An event's note cannot change (events.k8s.io/v1 allows only its series to), so a new note replaces the event. Names
are made from object and reason: a controller that takes over finds the events of the one before it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from api import events
from api.errors import ConflictError, NotFoundError
from api.events import Message, Reporter, Subject, micro_time
from api.kube import EVENTS, KubeClient

REPORTER = "dra-driver-vgpu-controller"

_MIN_INTERVAL_S = 60.0
_MAX_INTERVAL_S = 900.0
"""Well below the hour after which the API server forgets an event."""


@dataclass(frozen=True)
class Said:
    """What was last said about an object, and when."""

    note: str
    at: float
    """Monotonic seconds."""
    count: int


def due_in_s(said: Said | None, note: str, now: float) -> float:
    """Return the seconds until a note may be written: news once a minute, the same again ever more rarely."""
    if said is None:
        return 0.0
    if said.note != note:
        return max(said.at + _MIN_INTERVAL_S - now, 0.0)
    return max(said.at + min(_MIN_INTERVAL_S * 2.0 ** min(said.count - 1, 10), _MAX_INTERVAL_S) - now, 0.0)


def render(
    subject: Subject, message: Message, instance: str, now: datetime, related: Subject | None = None
) -> dict[str, Any]:
    """Return the one event about an object, for a reason, with regard to another object."""
    about = (subject.uid, message.reason, related.uid if related else "")
    suffix = hashlib.sha256("/".join(about).encode()).hexdigest()[:16]
    event = events.render(subject, message, Reporter(REPORTER, instance), suffix, now)
    return event | {"related": related.reference()} if related is not None else event


def repeated(event: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Return a stored event as it stands after it was observed once more."""
    count = int((event.get("series") or {}).get("count", 1)) + 1
    return {**event, "series": {"count": count, "lastObservedTime": micro_time(now)}}


def write(kube: KubeClient, event: Mapping[str, Any], *, is_same: bool | None = None) -> int:
    """Create an event; where it exists, count it once more, or replace it if it says something else.

    Args:
        kube: where to.
        event: as `render` makes it.
        is_same: whether what was last written of it said the same; None: it is not known if there is one.

    Returns:
        How many requests that took.

    Raises:
        KubeError: the API server refused or did not answer.
    """
    metadata, now, requests = event["metadata"], datetime.now(UTC), 1
    if is_same is None:
        try:
            kube.create(EVENTS, event)
            return requests
        except ConflictError:
            requests += 1
    try:
        if is_same is not False:
            stored = kube.get(EVENTS, metadata["name"], metadata["namespace"])
            requests += 1
            if stored.get("note") == event["note"]:
                kube.replace(EVENTS, repeated(stored, now))
                return requests
        kube.delete(EVENTS, {"metadata": {key: metadata[key] for key in ("name", "namespace")}})
        requests += 1
    except NotFoundError:
        requests += 1  # It has expired.
    kube.create(EVENTS, event)
    return requests
