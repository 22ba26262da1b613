"""Tells why claims and pods wait, and what is wrong with what somebody wrote: events on them, templates, inventories.

Used by `terms`, which hands it keys from a queue. Why a claim waits is `reasoning.explain`, what is wrong with
parameters is `checking`; when an event is due is `eventing.due_in_s`. All three are pure.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from api import names
from api.claims import ClaimView
from api.events import Message, Subject
from api.kube import KubeClient
from controller import eventing
from controller.cluster.caching import ClusterCache
from controller.cluster.records import ClaimRecord, ClassRecord, InventoryRecord, PodRecord, TemplateRecord
from controller.cluster.watching import Key
from controller.eventbudgets import EventBudget
from controller.eventing import Said
from controller.explanationbudgets import ExplanationBudget
from controller.metrics import Metrics
from controller.offers.deciding import HEARTBEAT_LIMIT_S
from controller.reasons.checking import check_allocated
from controller.reasons.describing import describe
from controller.reasons.extendedresources import special_claim
from controller.reasons.reasoning import RequestExplanation, explain, of_classes
from controller.telling import kept_for

_MAX_PODS = 10
"""Pods that get an event of their own for one claim; a claim that 1,000 pods share is no reason for 1,000 events."""
_MAX_LOOK_S = 60.0
_MOST_REQUESTS = 64
"""Of a pod that a look at one of its claims goes through: of each there is a reason for each device of the cluster, and
a pod may have thousands of requests."""


@dataclass(frozen=True)
class Topic:
    """What events are about: an object and a reason."""

    kind: str
    key: Key


class PendingKeeper:
    """Looks at one topic after the other. One thread at a time may work on one."""

    def __init__(
        self,
        kube: KubeClient,
        cache: ClusterCache,
        instance: str,
        *,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write events in the name of `instance`."""
        self._kube = kube
        self._cache = cache
        self._instance = instance
        self._metrics = metrics
        self._clock = clock
        self._explanation_budget = ExplanationBudget(self._look_at, clock=clock)
        self._event_budget = EventBudget(clock)
        self._said: dict[tuple[Topic, str], Said] = {}
        self._waiting: set[Topic] = set()
        self._quiet: dict[Topic, int] = {}
        """Looks at what pods wait for that found nothing to say, in a row."""

    def sync(self, topic: Topic) -> float | None:
        """Say what there is to say about a topic; return after how many seconds to look again, None: when it changes.

        Raises:
            KubeError: the API server refused or did not answer; try again later.
        """
        if topic.kind == "claim":
            return self._sync_claim(topic.key)
        if topic.kind == "pod":
            return self._sync_pod(topic)
        if topic.kind == "template":
            return self._sync_problem(topic, names.EVENT_CONFIG_INVALID, self._cache.template(topic.key))
        if topic.kind == "class":
            return self._sync_problem(topic, names.EVENT_CONFIG_INVALID, self._cache.device_class(topic.key))
        return self._sync_inventory(topic)

    def _sync_inventory(self, topic: Topic) -> float | None:
        node = topic.key[1]
        record = self._cache.inventory(node)
        delays = [self._sync_problem(topic, names.EVENT_INVENTORY_INVALID, record)]
        if record is None or self._cache.node_uid(node) is not None or not kept_for(record):
            self._unsay(topic, names.EVENT_INVENTORY_KEPT)
        else:
            # A Node that is away for a moment is nothing to tell.
            wait_s = HEARTBEAT_LIMIT_S - self._cache.pulse.age_s(node)
            note = (
                f"its Node is gone; kept for what it says: {kept_for(record)}. If that is not to count when a Node "
                f"{node} comes back: kubectl delete nodeinventory {node}"
            )
            message = Message(names.EVENT_INVENTORY_KEPT, note, "Cleaning")
            delays.append(wait_s if wait_s > 0 else self._say(topic, message, [(record.subject, None)]))
        return min((delay for delay in delays if delay is not None), default=None)

    def _sync_claim(self, key: Key) -> float | None:
        topic = Topic("claim", key)
        record = self._cache.claim(key)
        if record is None or record.allocated:
            self._forget(topic)
            return self._sync_problem(topic, names.EVENT_CONFIG_INVALID, self._as_allocated(record))
        delays = [
            self._sync_problem(topic, names.EVENT_CONFIG_INVALID, record),
            self._explain(topic, record),
        ]
        return min((delay for delay in delays if delay is not None), default=None)

    def _sync_pod(self, topic: Topic) -> float | None:
        """Say why a pod waits for the extended resources that it asks for: there is no claim yet that could say it."""
        pod = self._cache.pod(topic.key)
        special = self._special(pod) if pod is not None and pod.unschedulable else None
        if pod is None or special is None:
            self._forget(topic)
            return None
        found = self._look(topic, special, pod)
        if isinstance(found, float):
            return found
        note = describe([entry for entry in found if entry.is_ours and entry.request.resource])
        return self._tell(topic, note, [(pod.subject, None)])

    def _special(self, pod: PodRecord) -> ClaimView | None:
        return special_claim(pod.subject, pod.asks, self._cache.class_of) if pod.asks else None

    def _as_allocated(self, record: ClaimRecord | None) -> ClaimRecord | None:
        """Return a claim with what is wrong with its allocation, the sizes of GPUs that have none in it included."""
        if record is None or record.view is None or not record.is_odd or record.problem:
            return record
        return replace(record, problem=check_allocated(record.view, self._cache.driver, self._cache.gpu_bytes))

    def _sync_problem(
        self, topic: Topic, reason: str, wrong: ClaimRecord | ClassRecord | TemplateRecord | InventoryRecord | None
    ) -> float | None:
        """Say what is wrong with an object; None: nothing is, or it is gone."""
        if wrong is None or not wrong.problem:
            self._unsay(topic, reason)
            return None
        return self._say(topic, Message(reason, wrong.problem, "Checking"), [(wrong.subject, None)])

    def _explain(self, topic: Topic, record: ClaimRecord) -> float | None:
        """Say why a claim waits that pods wait for, if it is for our devices."""
        view, pods = record.view, self._cache.waiting_pods(topic.key)[:_MAX_PODS]
        if view is None or not pods or not any(self._cache.is_of_us(request.device_class) for request in view.requests):
            self._forget(topic)
            return None
        found = self._look(topic, of_classes(view, self._cache.is_of_us), pods[0])
        if isinstance(found, float):
            return found
        name = f"{view.namespace}/{view.name}"
        mine = [entry for entry in found if entry.is_ours and entry.claim == name and not entry.request.resource]
        about_pods = [(pod.subject, record.subject) for pod in pods]
        return self._tell(topic, describe(mine), [(record.subject, pods[0].subject), *about_pods])

    def _look(self, topic: Topic, view: ClaimView, pod: PodRecord) -> list[RequestExplanation] | float:
        """Return why all claims of a pod wait, or after how long to look again.

        Args:
            topic: what is looked at.
            view: the claim that it is about.
            pod: one that waits for it.
        """
        records = (self._cache.claim(key) for key in pod.claims)
        views = [record.view for record in records if record is not None and record.view is not None]
        special = self._special(pod)
        views = [*(of_classes(other, self._cache.is_of_us) for other in views), *([special] if special else [])]
        return self._explanation_budget.explain(topic, _with_some_others(view, views))

    def _look_at(self, claims: Sequence[ClaimView]) -> list[RequestExplanation]:
        asks = any(request.resource for claim in claims for request in claim.requests)
        plugins = self._cache.plugin_resources() if asks else {}
        return explain(claims, self._cache.devices(), self._cache.usage(), plugins)

    def _tell(self, topic: Topic, note: str, about: list[tuple[Subject, Subject | None]]) -> float:
        """Say why pods wait; without a reason among the devices, come back to see if there is one by then."""
        self._note_waiting(topic, waits=bool(note))
        if not note:
            self._unsay(topic, names.EVENT_UNSATISFIABLE)
            return self._look_again_s(topic)
        self._quiet.pop(topic, None)
        return self._say(topic, Message(names.EVENT_UNSATISFIABLE, note, "Allocating"), about)

    def _look_again_s(self, topic: Topic) -> float:
        """Return the delay to the next look at what pods wait for, which is something else than devices today.

        The first looks come soon: the scheduler may know an allocation that has not arrived here.
        """
        looks = self._quiet[topic] = self._quiet.get(topic, 0) + 1
        return min(2.0 ** (looks - 1), _MAX_LOOK_S)

    def _say(self, topic: Topic, message: Message, about: list[tuple[Subject, Subject | None]]) -> float:
        """Write events if they are due; return the seconds until they are due next."""
        now = self._clock()
        said = self._said.get((topic, message.reason))
        wait_s = eventing.due_in_s(said, message.note, now)
        if wait_s > 0:
            return wait_s
        wait_s = self._event_budget.ask((topic, message.reason), 2 * len(about), first=said is None)
        if wait_s > 0:
            return wait_s
        is_same = None if said is None else said.note == message.note
        for subject, related in about:
            event = eventing.render(subject, message, self._instance, datetime.now(UTC), related)
            self._event_budget.spend(eventing.write(self._kube, event, is_same=is_same))
            self._metrics.events.labels(message.reason).inc()
        count = said.count + 1 if said is not None and is_same else 1
        said = Said(message.note, now, count)
        self._said[topic, message.reason] = said
        return eventing.due_in_s(said, message.note, now)

    def _forget(self, topic: Topic) -> None:
        self._explanation_budget.forget(topic)
        self._unsay(topic, names.EVENT_UNSATISFIABLE)
        self._quiet.pop(topic, None)
        self._note_waiting(topic, waits=False)

    def _unsay(self, topic: Topic, reason: str) -> None:
        self._event_budget.forget((topic, reason))
        self._said.pop((topic, reason), None)

    def _note_waiting(self, topic: Topic, *, waits: bool) -> None:
        (self._waiting.add if waits else self._waiting.discard)(topic)
        self._metrics.pending_claims.set(len(self._waiting))


def _with_some_others(view: ClaimView, views: Sequence[ClaimView]) -> list[ClaimView]:
    """Return a claim and as many of the others of its pod as a look can go through."""
    left, kept = _MOST_REQUESTS - len(view.requests), []
    for other in views:
        if other.uid == view.uid:
            kept.append(other)
        elif other.allocation is not None or len(other.requests) <= left:
            kept.append(other)
            left -= len(other.requests)
    return kept
