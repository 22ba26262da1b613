"""Extended resources of pods that a DeviceClass stands for, as the requests that the scheduler makes of them. Pure.

Such a pod has `resources.limits` like `example.com/gpu: 1` and no claim: while it waits there is none, and when a node
is found for it the scheduler makes one, allocated. So what it waits for is worked out here, for `records`, `caching`,
`pending` and `explaining`. Source: KEP-5004 (DRAExtendedResource: alpha 1.34, on by default from 1.36), and
pkg/scheduler/framework/plugins/dynamicresources/extendeddynamicresources.go of Kubernetes 1.37.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from sys import intern
from typing import Protocol

from api.claims import ClaimView, DeviceRequest, Object
from api.errors import ConfigError
from api.events import Subject
from api.names import ClaimUID
from api.quantities import parse_count

_OF_CLASS = "deviceclass.resource.kubernetes.io/"
"""With the name of a DeviceClass behind it, it stands for that class (ResourceDeviceClassPrefix), from 1.35 on."""
_KUBERNETES = "kubernetes.io/"
_QUOTA = "requests."


@dataclass(frozen=True, slots=True)
class Ask:
    """What a pod asks for of one extended resource, as one request."""

    resource: str
    request: str
    """The name that the scheduler gives it."""
    count: int


class _Class(Protocol):
    """A DeviceClass as far as it can stand for an extended resource."""

    @property
    def name(self) -> str: ...
    @property
    def resource(self) -> str: ...
    @property
    def created(self) -> str: ...
    @property
    def is_ours(self) -> bool: ...


def is_extended(resource: str) -> bool:
    """Say whether a resource of a container may be one that a DeviceClass stands for."""
    if resource.startswith(_OF_CLASS):
        return True
    return "/" in resource and _KUBERNETES not in resource and not resource.startswith(_QUOTA)


def class_of(resource: str, classes: Iterable[_Class]) -> str:
    """Return the DeviceClass of ours that stands for an extended resource; empty: none does, or one of others.

    Of several that do, the scheduler takes the newest, and of equally old ones the first by name.
    """
    if resource.startswith(_OF_CLASS):
        name = resource.removeprefix(_OF_CLASS)
        return next((name for each in classes if each.name == name and each.is_ours), "")
    found = sorted((each for each in classes if each.resource == resource), key=lambda each: each.name)
    newest = max(found, key=lambda each: each.created, default=None)
    return newest.name if newest is not None and newest.is_ours else ""


def plugin_resources(node: Object) -> tuple[str, ...]:
    """Return the extended resources that device plugins have on a Node: there the scheduler asks no DeviceClass."""
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    return tuple(intern(name) for name in sorted(allocatable) if is_extended(name) and allocatable[name] != "0")


def read_asks(pod: Object) -> tuple[Ask, ...]:
    """Return what a pod asks for of extended resources, by the names of the requests.

    Init containers that end take what the containers behind them have; only what the largest of them wants beyond that
    is a request of its own.
    """
    spec = pod.get("spec") or {}
    inits = spec.get("initContainers") or []
    containers = [*inits, *(spec.get("containers") or [])]
    ends = [number < len(inits) and each.get("restartPolicy") != "Always" for number, each in enumerate(containers)]
    asked = [dict(_asked(number, container)) for number, container in enumerate(containers)]
    resources = {resource for each in asked for resource in each}
    found = [ask for resource in resources for ask in _of_resource([each.get(resource) for each in asked], ends)]
    return tuple(sorted(found, key=lambda ask: ask.request))


def _asked(number: int, container: Object) -> Iterator[tuple[str, Ask]]:
    requests = (container.get("resources") or {}).get("requests") or {}
    for place, resource in enumerate(sorted(requests)):
        if is_extended(resource):
            try:
                count = parse_count(requests[resource], resource)
            except ConfigError:
                continue
            if count > 0:
                yield resource, Ask(intern(resource), f"container-{number}-request-{place}", count)


def _of_resource(asks: Sequence[Ask | None], ends: Sequence[bool]) -> Iterator[Ask]:
    largest: Ask | None = None
    for number, ask in enumerate(asks):
        if ask is None:
            continue
        if not ends[number]:
            yield ask
            continue
        behind = zip(asks[number:], ends[number:], strict=True)
        more = ask.count - sum(other.count for other, is_short in behind if other is not None and not is_short)
        if more > (largest.count if largest is not None else 0):
            largest = Ask(ask.resource, ask.request, more)
    if largest is not None:
        yield largest


def special_claim(pod: Subject, asks: Collection[Ask], class_of: Callable[[str], str]) -> ClaimView | None:
    """Return the claim that the scheduler would make for a pod's extended resources; None: none of them is ours.

    Args:
        pod: the claim has its namespace, name and UID here.
        asks: of the pod.
        class_of: returns the DeviceClass of ours that stands for a resource, or an empty text.
    """
    requests = tuple(
        DeviceRequest(ask.request, name, {}, (), ask.count, admin_access=False, resource=ask.resource)
        for ask in asks
        if (name := class_of(ask.resource))
    )
    if not requests:
        return None
    return ClaimView(
        pod.namespace,
        pod.name,
        ClaimUID(pod.uid),
        requests,
        configs=(),
        allocation=None,
        reserved_for=(),
        pod_uid=None,
        deleting=False,
    )
