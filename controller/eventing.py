"""Events on claims and pods: one per object and reason, kept up to date and not spammed. Used by `pending`.

An event's note cannot change (events.k8s.io/v1 allows only its series to), so a new note replaces the event. Names
are made from object and reason: a controller that takes over finds the events of the one before it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from api.errors import ConflictError, NotFoundError
from api.kube import EVENTS, KubeClient

REPORTER = "dra-driver-vgpu-controller"

_MAX_NAME = 253
_MAX_NOTE_BYTES = 1024
_MIN_INTERVAL_S = 60.0
_MAX_INTERVAL_S = 900.0
"""Well below the hour after which the API server forgets an event."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The object that an event is about."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str

    def reference(self) -> dict[str, str]:
        """Return the ObjectReference."""
        return {
            "apiVersion": self.api_version,
            "kind": self.kind,
            "namespace": self.namespace,
            "name": self.name,
            "uid": self.uid,
        }


@dataclass(frozen=True)
class Message:
    """What an event says."""

    reason: str
    note: str
    action: str
    """What was being done, such as Allocating."""


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


def event_name(subject: Subject, reason: str, related: Subject | None = None) -> str:
    """Return the name of the one event about an object, for a reason, with regard to another object."""
    about = (subject.uid, reason, related.uid if related else "")
    digest = hashlib.sha256("/".join(about).encode()).hexdigest()[:16]
    return f"{subject.name[: _MAX_NAME - len(digest) - 1].rstrip('-.')}.{digest}"


def render(
    subject: Subject, message: Message, instance: str, now: datetime, related: Subject | None = None
) -> dict[str, Any]:
    """Return the event as JSON of events.k8s.io/v1."""
    event: dict[str, Any] = {
        "apiVersion": EVENTS.api_version,
        "kind": "Event",
        "metadata": {"namespace": subject.namespace, "name": event_name(subject, message.reason, related)},
        "eventTime": _micro_time(now),
        "reportingController": REPORTER,
        "reportingInstance": instance[:128],
        "action": message.action,
        "reason": message.reason,
        "type": "Warning",
        "regarding": subject.reference(),
        "note": message.note.encode()[:_MAX_NOTE_BYTES].decode(errors="ignore"),
    }
    if related is not None:
        event["related"] = related.reference()
    return event


def repeated(event: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Return a stored event as it stands after it was observed once more."""
    count = int((event.get("series") or {}).get("count", 1)) + 1
    return {**event, "series": {"count": count, "lastObservedTime": _micro_time(now)}}


def write(kube: KubeClient, event: Mapping[str, Any]) -> None:
    """Create an event; where it exists, count it once more, or replace it if it says something else.

    Raises:
        KubeError: the API server refused or did not answer.
    """
    now = datetime.now(UTC)
    try:
        kube.create(EVENTS, event)
        return
    except ConflictError:
        metadata = event["metadata"]
    try:
        stored = kube.get(EVENTS, metadata["name"], metadata["namespace"])
        if stored.get("note") == event["note"]:
            kube.replace(EVENTS, repeated(stored, now))
            return
        kube.delete(EVENTS, stored)
    except NotFoundError:
        pass  # It expired between the two requests.
    kube.create(EVENTS, event)


def _micro_time(now: datetime) -> str:
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
