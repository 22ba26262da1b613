"""Events about claims, written by a thread of its own: whoever has something to tell does not wait for the API.

Used by the agent for what a claim's owner should see without access to the node.
"""

import logging
import queue
import secrets
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from api import events, names
from api.claims import ClaimView, Consumer
from api.events import Message, Reporter, Subject
from api.kube import EVENTS, KubeClient
from kubeletplugin.state.preparedclaims import PreparedClaim

_log = logging.getLogger(__name__)

REPORTER = "dra-driver-vgpu-node-agent"
_QUEUE = 100
"""What is told while the API server is away is worth little once it is back."""
_ACTION = "Enforcing"
_CLAIM_VERSION = f"{names.RESOURCE_GROUP}/{names.RESOURCE_VERSIONS[0]}"


class EventWriter:
    """Writes events, from start() until stop()."""

    def __init__(self, client: KubeClient, node_name: str) -> None:
        """Take where to write, and who says it."""
        self._client = client
        self._node_name = node_name
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(_QUEUE)
        self._thread = threading.Thread(target=self._write_all, name="event-writer", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End after what is under way."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return  # the API server is away; the thread ends with the process
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def tell(self, claim: PreparedClaim, reason: str, note: str) -> None:
        """Have a warning about a claim written; never waits, and drops it where too many wait already."""
        if claim.name:  # not rebuilt from the share alone: then its name is not known
            self._put(Subject(_CLAIM_VERSION, "ResourceClaim", claim.namespace, claim.name, claim.uid), reason, note)

    def tell_of_pod(self, claim: ClaimView, pod: Consumer, reason: str, note: str) -> None:
        """Have a warning about a pod and a claim that it uses written on both, as tell() does."""
        self._put(Subject("v1", "Pod", claim.namespace, pod.name, pod.uid), reason, note)
        self._put(Subject(_CLAIM_VERSION, "ResourceClaim", claim.namespace, claim.name, claim.uid), reason, note)

    def tell_of_node(self, reason: str, note: str) -> None:
        """Have a warning about the node written, as tell() does."""
        # The kubelet gives its node's name as UID, and `kubectl describe node` looks for that.
        self._put(Subject("v1", "Node", "", self._node_name, self._node_name), reason, note)

    def _put(self, subject: Subject, reason: str, note: str) -> None:
        message, reporter = Message(reason, note, _ACTION), Reporter(REPORTER, self._node_name)
        event = events.render(subject, message, reporter, secrets.token_hex(8), datetime.now(UTC))
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            facts = {"about": _about(event), "reason": reason, "note": note}
            _log.warning("event dropped: the API server takes none, and many wait", extra=facts)

    def _write_all(self) -> None:
        while (event := self._queue.get()) is not None:
            try:
                self._client.create(EVENTS, event)
            except Exception as error:  # noqa: BLE001 - one event is lost, and not all that come after it
                facts = {"about": _about(event), "reason": event["reason"], "note": event["note"], "error": str(error)}
                _log.warning("event not written", extra=facts)


def _about(event: Mapping[str, Any]) -> str:
    """Return what an event is about, in words: who reads the log has nothing else of one that was lost."""
    regarding = event["regarding"]
    return f"{regarding['kind']} " + "/".join(part for part in (regarding.get("namespace"), regarding["name"]) if part)
