"""What the controller keeps of the objects that it watches: trims of its caches. Used by `caching`, `explaining`.

A cluster has many more claims and pods than this driver has shares, so what is kept is what is read later and nothing
else.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from sys import intern
from typing import Any

from api import names
from api.claims import ClaimView, Object
from api.errors import PermanentError, StateError
from api.events import Subject
from api.nodeinventory import InventorySpec, InventoryStatus, NodeInventory
from controller.cluster.watching import Key
from controller.reasons.checking import (
    asks_beside,
    check_allocated,
    check_class,
    check_configs,
    check_cordons,
    check_template,
)
from controller.reasons.extendedresources import Ask, plugin_resources, read_asks


@dataclass(frozen=True, slots=True)
class ClaimRecord:
    """A claim: what it wants while it has nothing, what it holds once it has."""

    subject: Subject
    view: ClaimView | None
    """None: it cannot be read, `problem` says why."""
    problem: str
    """What is wrong with its parameters; empty: nothing."""
    digest: str = ""
    """Of what can change while it is prepared, see `ClaimView.digest`."""

    @property
    def allocated(self) -> bool:
        """Say whether the scheduler has given it its devices."""
        return self.view is not None and self.view.allocation is not None

    @property
    def is_odd(self) -> bool:
        """Say whether there is something wrong with it, or may be: it asks beside what it was allocated."""
        return bool(self.problem) or (self.view is not None and self.allocated and bool(self.view.requests))


@dataclass(frozen=True, slots=True)
class PodRecord:
    """A pod that has no node yet."""

    subject: Subject
    claims: tuple[Key, ...]
    unschedulable: bool
    """The scheduler has tried, and found no place."""
    asks: tuple[Ask, ...] = ()
    """What it asks for of extended resources, as long as the scheduler has made no claim of it."""


@dataclass(frozen=True, slots=True)
class InventoryRecord:
    """A NodeInventory."""

    subject: Subject
    version: str
    """Its resourceVersion."""
    status: InventoryStatus | None
    """None: its agent has not looked yet, or wrote what cannot be read."""
    spec: InventorySpec = field(default_factory=InventorySpec)
    problem: str = ""
    """What of it cannot be read, or means nothing; empty: all is well."""


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A Node."""

    uid: str
    labels: Mapping[str, str]
    """Those that rules ask for, and no others."""
    resources: tuple[str, ...] = ()
    """Extended resources that device plugins have there."""


@dataclass(frozen=True, slots=True)
class TemplateRecord:
    """A ResourceClaimTemplate with parameters that cannot be read; others are not kept."""

    subject: Subject
    problem: str


@dataclass(frozen=True, slots=True)
class ClassRecord:
    """A DeviceClass that may select our devices, or stands for an extended resource."""

    subject: Subject
    problem: str
    """What is wrong with its parameters; empty: nothing."""
    is_ours: bool = True
    """Whether it may select our devices."""
    resource: str = ""
    """The extended resource that it stands for; empty: none but that of its own name."""
    created: str = ""
    """When, as the API server writes it."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.subject.name


def claim_trimmer(driver: str) -> Callable[[Object], ClaimRecord | None]:
    """Return the trim of claims: allocated ones of other drivers are not kept."""

    def trim(obj: Object) -> ClaimRecord | None:
        subject = _subject(obj, "ResourceClaim")
        try:
            view = ClaimView.from_object(obj)
        except PermanentError as error:
            return ClaimRecord(subject, None, str(error))
        if view.allocation is not None:
            results = tuple(result for result in view.allocation.results if result.driver == driver)
            held = replace(view.allocation, results=results, configs=())
            if not results:
                return None
            problem = check_allocated(view, driver)
            requests = view.requests if any(asks_beside(view, result) for result in results) else ()
            bare = replace(
                view,
                requests=requests,
                configs=(),
                allocation=held,
                reserved_for=(),
                limits_annotation=None,
                constraints=(),
            )
            return ClaimRecord(subject, bare, problem, view.digest())
        problem = check_configs(view.configs, driver, str(view))
        return ClaimRecord(subject, replace(view, configs=(), reserved_for=(), limits_annotation=None), problem)

    return trim


def template_trimmer(driver: str) -> Callable[[Object], TemplateRecord | None]:
    """Return the trim of templates: only wrong ones are kept."""

    def trim(obj: Object) -> TemplateRecord | None:
        problem = check_template(obj, driver)
        return TemplateRecord(_subject(obj, "ResourceClaimTemplate"), problem) if problem else None

    return trim


def class_trimmer(driver: str) -> Callable[[Object], ClassRecord | None]:
    """Return the trim of DeviceClasses: those that may select our devices or stand for an extended resource."""

    def trim(obj: Object) -> ClassRecord | None:
        spec = obj.get("spec") or {}
        expressions = [(selector.get("cel") or {}).get("expression", "") for selector in spec.get("selectors") or []]
        drivers = [(config.get("opaque") or {}).get("driver") for config in spec.get("config") or []]
        is_ours = driver in drivers or any(driver in text for text in expressions)
        resource = spec.get("extendedResourceName") or ""
        if not is_ours and not resource:
            return None
        created = obj["metadata"].get("creationTimestamp") or ""
        problem = check_class(obj, driver) if is_ours else ""
        return ClassRecord(_subject(obj, "DeviceClass"), problem, is_ours, resource, created)

    return trim


def trim_pod(obj: Object) -> PodRecord | None:
    """Keep a pod without a node if it has claims, or asks for what the scheduler may make one of."""
    names_of_claims = tuple(_claim_names(obj))
    made = ((obj.get("status") or {}).get("extendedResourceClaimStatus") or {}).get("resourceClaimName")
    if made:
        names_of_claims += (made,)
    asks = () if made else read_asks(obj)
    if not names_of_claims and not asks:
        return None
    namespace = obj["metadata"]["namespace"]
    conditions = (obj.get("status") or {}).get("conditions") or []
    return PodRecord(
        subject=_subject(obj, "Pod"),
        claims=tuple((namespace, name) for name in names_of_claims),
        unschedulable=any(
            condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable"
            for condition in conditions
        ),
        asks=asks,
    )


def _claim_names(pod: Object) -> list[str]:
    made = {
        entry["name"]: entry.get("resourceClaimName")
        for entry in (pod.get("status") or {}).get("resourceClaimStatuses") or []
    }
    entries = (pod.get("spec") or {}).get("resourceClaims") or []
    found = (entry.get("resourceClaimName") or made.get(entry["name"]) for entry in entries)
    return [name for name in found if name]


def trim_inventory(obj: Object) -> InventoryRecord:
    """Keep what an inventory states, and what an operator wishes."""
    metadata = obj["metadata"]
    subject = Subject(names.GROUP_VERSION, names.NODE_INVENTORY_KIND, "", metadata["name"], metadata["uid"])
    try:
        inventory = NodeInventory.from_object(obj)
    except StateError as error:
        return InventoryRecord(subject, metadata["resourceVersion"], None, problem=str(error))
    problems = [inventory.problem, check_cordons(inventory)]
    problem = "\n".join(filter(None, problems))
    return InventoryRecord(subject, metadata["resourceVersion"], inventory.status, inventory.spec, problem=problem)


def trim_slice(obj: Object) -> dict[str, Any]:
    """Keep of a slice what `publishing` compares."""
    kept = ("name", "uid", "resourceVersion", "ownerReferences")
    metadata: Mapping[str, Any] = obj["metadata"]
    return {"metadata": {key: metadata[key] for key in kept if key in metadata}, "spec": obj["spec"]}


def node_trimmer(labels: Iterable[str]) -> Callable[[Object], NodeRecord]:
    """Return the trim of Nodes: their uid, the labels of these names, and what device plugins have there."""
    kept = frozenset(labels)

    def trim(obj: Object) -> NodeRecord:
        found = obj["metadata"].get("labels") or {}
        labels = {key: found[key] for key in sorted(kept & set(found))}
        return NodeRecord(str(obj["metadata"]["uid"]), labels, plugin_resources(obj))

    return trim


def _subject(obj: Object, kind: str) -> Subject:
    metadata = obj["metadata"]
    # Objects in lists come without apiVersion and kind.
    api_version = obj.get("apiVersion") or ("v1" if kind == "Pod" else f"{names.RESOURCE_GROUP}/v1")
    namespace = intern(metadata.get("namespace", ""))
    return Subject(intern(api_version), kind, namespace, metadata["name"], metadata.get("uid", ""))
