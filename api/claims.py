"""ResourceClaims as the driver sees them, whichever version of resource.k8s.io they were read in.

v1 and v1beta2 wrap a request in `exactly`, v1beta1 has it inline; the rest of what the driver reads is the same. Used
by the node agent (what was allocated), by the controller (what was asked, and why it cannot be met) and by `dra-
driver explain`. Source: k8s.io/api/resource/{v1,v1beta1,v1beta2}/types.go.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from sys import intern  # of many claims in memory at once, most name the same few namespaces, pools and devices
from typing import Any

from api import names
from api.errors import ClaimError, ConfigError
from api.names import ClaimUID
from api.quantities import parse_count_up

Object = Mapping[str, Any]
"""A Kubernetes object as JSON gave it."""
_ReadAmounts = Callable[[Mapping[str, object], str], dict[str, int]]


@dataclass(frozen=True, slots=True)
class Toleration:
    """Taints of devices that a request puts up with; empty fields stand for any."""

    key: str = ""
    operator: str = ""
    """Exists, or Equal (the default)."""
    value: str = ""
    effect: str = ""


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    """One device request of a claim, or one alternative of it (`parent/name` in a firstAvailable list)."""

    name: str
    device_class: str
    capacity: Mapping[str, int]
    """Requested amounts by capacity name as it is written: bytes of memory, percent of cores."""
    selectors: tuple[str, ...]
    """CEL expressions; a device must pass them all."""
    count: int
    """Devices wanted; 0 stands for all that match (allocationMode All)."""
    admin_access: bool
    tolerations: tuple[Toleration, ...] = ()
    resource: str = ""
    """The extended resource of a pod that it stands for, which has no claim yet (KEP-5004); empty: it is a claim's."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the devices of a claim must have in common, or must not."""

    requests: tuple[str, ...]
    """Those whose devices are compared; empty: all."""
    attribute: str
    """With its domain."""
    distinct: bool
    """Every device has another value (distinctAttribute), and not all the same one (matchAttribute)."""


@dataclass(frozen=True, slots=True)
class AllocationResult:
    """One device that the scheduler gave to a claim."""

    index: int
    """Place in `status.allocation.devices.results`; it never changes while the allocation lasts."""
    request: str
    driver: str
    pool: str
    device: str
    share_id: str | None
    consumed: Mapping[str, int]
    """Consumed capacity by unprefixed name; empty where the device was allocated whole."""
    admin_access: bool


@dataclass(frozen=True, slots=True)
class OpaqueConfig:
    """Opaque parameters that apply to an allocation, in the order of their precedence: the last wins."""

    driver: str
    requests: tuple[str, ...]
    """Requests that it applies to; empty: all."""
    parameters: object
    from_class: bool

    def applies_to(self, request: str) -> bool:
        """Say whether this is meant for a request, or for the parent of a firstAvailable alternative."""
        return not self.requests or request in self.requests or request.partition("/")[0] in self.requests


@dataclass(frozen=True, slots=True)
class Consumer:
    """An entry of `status.reservedFor`."""

    resource: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Allocation:
    """What the scheduler decided for a claim."""

    results: tuple[AllocationResult, ...]
    configs: tuple[OpaqueConfig, ...]


@dataclass(frozen=True, slots=True)
class ClaimView:
    """A ResourceClaim, read from any served API version."""

    namespace: str
    name: str
    uid: ClaimUID
    requests: tuple[DeviceRequest, ...]
    configs: tuple[OpaqueConfig, ...]
    """The parameters that the claim itself carries."""
    allocation: Allocation | None
    reserved_for: tuple[Consumer, ...]
    pod_uid: str | None
    """UID of the pod that the claim was made for from a template, if any."""
    deleting: bool
    limits_annotation: str | None = None
    """What is to be changed of its shares while they live; see api.adjustments."""
    constraints: tuple[Constraint, ...] = ()

    def __str__(self) -> str:
        return f"ResourceClaim {self.namespace}/{self.name}"

    @property
    def pods(self) -> tuple[str, ...]:
        """UIDs of the pods that may use it now."""
        return tuple(sorted(consumer.uid for consumer in self.reserved_for if consumer.resource == "pods"))

    def digest(self) -> str:
        """Return what tells one state from another of what can change while it is prepared: annotation and pods.

        Empty for a claim without an annotation that was made for one pod and is used by no other, as nearly all are.
        """
        pods = self.pods
        if self.limits_annotation is None and all(pod == self.pod_uid for pod in pods):
            return ""
        content = json.dumps([self.limits_annotation, pods])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def asked(self, result: AllocationResult) -> Mapping[str, int]:
        """Return the amounts that the request of a result asks for, by unprefixed name.

        Those that it leaves to the device are not in it, nor those of another driver's capacities.
        """
        capacity = next((found.capacity for found in self.requests if found.name == result.request), {})
        bare = {name.removeprefix(f"{result.driver}/"): amount for name, amount in capacity.items()}
        return {name: amount for name, amount in bare.items() if "/" not in name}

    @classmethod
    def from_object(cls, claim: Object) -> "ClaimView":
        """Read a claim as the API server sent it.

        Raises:
            ClaimError: names the claim, the field, what was found and what was expected.
        """
        metadata = claim.get("metadata", {})
        where = f"ResourceClaim {metadata.get('namespace', '')}/{metadata.get('name', '')}"
        try:
            return _read_claim(claim, where)
        except (KeyError, TypeError, AttributeError, ConfigError) as error:
            if isinstance(error, ConfigError):
                raise ClaimError(str(error)) from error
            raise ClaimError(f"{where}: expected the fields of {names.RESOURCE_GROUP}, found {error!r}") from error


def amounts(quantities: Mapping[str, object], where: str) -> dict[str, int]:
    """Return amounts by capacity name as it is written.

    Fractions are rounded up, as the scheduler does to a device's steps: a claim that asks for `500m` cores is given one
    percent. Other drivers' devices may have capacities of the same names, in whatever fractions.
    """
    return {name: parse_count_up(value, f"{where}: {name}") for name, value in quantities.items()}


def _amounts_of_allocated(quantities: Mapping[str, object], where: str) -> dict[str, int]:
    """Return amounts of a claim that has its devices: what is no amount, such as -1, is 0, of which each has the least.

    The API server and the scheduler take that, maybe in an alternative that was not chosen; nobody else may get what
    such a claim holds.
    """
    found: dict[str, int] = {}
    for name, value in quantities.items():
        try:
            found |= amounts({name: value}, where)
        except ConfigError:
            found |= amounts({name: 0}, where)
    return found


def _read_claim(claim: Object, where: str) -> ClaimView:
    metadata = claim["metadata"]
    spec = claim.get("spec") or {}
    devices = spec.get("devices") or {}
    status = claim.get("status") or {}
    owners = metadata.get("ownerReferences") or []
    read_amounts = _amounts_of_allocated if status.get("allocation") else amounts
    requests = (_read_request(request, where, read_amounts) for request in devices.get("requests") or [])
    return ClaimView(
        namespace=intern(metadata["namespace"]),
        name=metadata["name"],
        uid=ClaimUID(metadata["uid"]),
        requests=tuple(each for group in requests for each in group),
        configs=tuple(_read_configs(devices.get("config") or [])),
        allocation=_read_allocation(status["allocation"], where) if status.get("allocation") else None,
        reserved_for=tuple(
            Consumer(entry["resource"], entry["name"], entry["uid"]) for entry in status.get("reservedFor") or []
        ),
        pod_uid=next((o["uid"] for o in owners if o.get("kind") == "Pod" and o.get("controller")), None),
        deleting="deletionTimestamp" in metadata,
        limits_annotation=(metadata.get("annotations") or {}).get(names.ANNOTATION_LIMITS),
        constraints=tuple(_read_constraints(devices.get("constraints") or [])),
    )


def _read_request(request: Object, where: str, read_amounts: _ReadAmounts) -> Iterator[DeviceRequest]:
    name = request["name"]
    if request.get("firstAvailable"):
        for alternative in request["firstAvailable"]:
            yield _read_exact(f"{name}/{alternative['name']}", alternative, where, read_amounts)
    else:
        # v1beta1 has the fields of `exactly` in the request itself.
        yield _read_exact(name, request.get("exactly") or request, where, read_amounts)


def _read_exact(name: str, exact: Object, where: str, read_amounts: _ReadAmounts) -> DeviceRequest:
    everything = exact.get("allocationMode") == "All"
    requested = (exact.get("capacity") or {}).get("requests") or {}
    return DeviceRequest(
        name=name,
        device_class=exact["deviceClassName"],
        capacity=read_amounts(requested, f"{where}: request {name}: capacity"),
        selectors=tuple(s["cel"]["expression"] for s in exact.get("selectors") or [] if s.get("cel")),
        count=0 if everything else exact.get("count", 1),
        admin_access=bool(exact.get("adminAccess")),
        tolerations=tuple(_read_toleration(entry) for entry in exact.get("tolerations") or []),
    )


def _read_constraints(constraints: list[Object]) -> Iterator[Constraint]:
    for entry in constraints:
        attribute = entry.get("matchAttribute") or entry.get("distinctAttribute")
        if attribute:
            yield Constraint(tuple(entry.get("requests") or ()), attribute, not entry.get("matchAttribute"))


def _read_toleration(entry: Object) -> Toleration:
    fields = (intern(entry.get(name) or "") for name in ("key", "operator", "value", "effect"))
    return Toleration(*fields)


def _read_allocation(allocation: Object, where: str) -> Allocation:
    devices = allocation.get("devices") or {}
    return Allocation(
        results=tuple(
            AllocationResult(
                index=index,
                request=intern(result["request"]),
                driver=intern(result["driver"]),
                pool=intern(result["pool"]),
                device=intern(result["device"]),
                share_id=result.get("shareID"),
                consumed=_consumed(result, where),
                admin_access=bool(result.get("adminAccess")),
            )
            for index, result in enumerate(devices.get("results") or [])
        ),
        configs=tuple(_read_configs(devices.get("config") or [])),
    )


def _consumed(result: Object, where: str) -> dict[str, int]:
    found = amounts(result.get("consumedCapacity") or {}, f"{where}: consumedCapacity")
    # Both forms occur, see kubernetes/kubernetes KEP-5075.
    return {intern(name.rpartition("/")[2]): amount for name, amount in found.items()}


def _read_configs(configs: list[Object]) -> Iterator[OpaqueConfig]:
    # The API server keeps classes before the claim, but does not promise it; a claim must win over its class.
    for config in sorted(configs, key=lambda c: c.get("source") != "FromClass"):
        opaque = config.get("opaque")
        if opaque:
            yield OpaqueConfig(
                driver=opaque["driver"],
                requests=tuple(config.get("requests") or ()),
                parameters=opaque.get("parameters"),
                from_class=config.get("source") == "FromClass",
            )
