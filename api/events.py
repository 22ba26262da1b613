"""Events (events.k8s.io/v1) as our components write them: about what, what they say, who says it.

Used by the controller (claims and pods that wait) and by the node agent (what its shares do). Source:
k8s.io/api/events/v1/types.go and the validation of core events.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from api.kube import EVENTS

_MAX_NAME = 253
_MAX_NOTE_BYTES = 1024
_MAX_INSTANCE = 128
_NAMESPACE = "default"
"""Of events about what has no namespace."""


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
class Reporter:
    """Who says it."""

    component: str
    instance: str


def render(subject: Subject, message: Message, reporter: Reporter, suffix: str, now: datetime) -> dict[str, Any]:
    """Return a warning as JSON; what is too long for the API server is cut.

    Args:
        subject: what it is about; the event lives in its namespace, if it has one.
        message: what it says.
        reporter: who says it.
        suffix: of the event's name, behind the subject's: what makes it one of its own.
        now: when it was observed, in UTC.
    """
    return {
        "apiVersion": EVENTS.api_version,
        "kind": "Event",
        "metadata": {
            "namespace": subject.namespace or _NAMESPACE,
            "name": f"{subject.name[: _MAX_NAME - len(suffix) - 1].rstrip('-.')}.{suffix}",
        },
        "eventTime": micro_time(now),
        "reportingController": reporter.component,
        "reportingInstance": reporter.instance[:_MAX_INSTANCE],
        "action": message.action,
        "reason": message.reason,
        "type": "Warning",
        "regarding": subject.reference(),
        "note": message.note.encode()[:_MAX_NOTE_BYTES].decode(errors="ignore"),
    }


def micro_time(now: datetime) -> str:
    """Return a time in UTC as a MicroTime."""
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
