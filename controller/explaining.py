"""Why does a claim or a pod wait? Reads the cluster once and answers in text, for `dra-driver explain`.

The reasons are those of `reasoning`, which the running controller writes as events; this works without a running
controller too.
"""

from collections.abc import Iterable, Iterator, Sequence

from api import kube as kube_api
from api import names
from api.claims import ClaimView
from api.errors import KubeError, NotFoundError
from api.kube import JSON, KubeClient, Resource, Selection
from api.quantities import format_bytes
from controller.cluster.records import (
    ClaimRecord,
    InventoryRecord,
    PodRecord,
    claim_trimmer,
    class_trimmer,
    trim_inventory,
    trim_pod,
    trim_slice,
)
from controller.cluster.rulewatching import served_rules
from controller.offers.counting import Ledger
from controller.offers.policies import NodeDevices, Policy
from controller.offers.probing import PROBE_NODE
from controller.reasons.describing import describe
from controller.reasons.extendedresources import class_of, plugin_resources, special_claim
from controller.reasons.reasoning import RequestExplanation, explain, of_classes
from controller.reasons.snapshots import DeviceIndex
from controller.reasons.tainting import tainted
from controller.reasons.taintrules import TaintRule, rule_trimmer

_NO_LIMIT = 1 << 20
"""A terminal shows every device; only events are short."""
_EXTENDED_BY_DEFAULT = 36
"""Minor version of Kubernetes from which on DeviceClasses stand for extended resources without a gate."""


def explain_claim(kube: KubeClient, namespace: str, name: str, driver: str = names.DRIVER_NAME) -> str:
    """Return why a ResourceClaim waits, device by device, or what it holds.

    Raises:
        NotFoundError: there is no such claim.
        KubeError: the API server refused or did not answer.
    """
    cluster = _Cluster(kube, driver)
    return _report([cluster.claim(namespace, name)], cluster)


def explain_pod(kube: KubeClient, namespace: str, name: str, driver: str = names.DRIVER_NAME) -> str:
    """Return why the claims of a pod wait; they must all end up on one node.

    Raises:
        NotFoundError: there is no such pod.
        KubeError: the API server refused or did not answer.
    """
    cluster = _Cluster(kube, driver)
    pod = trim_pod(_listed(kube, kube_api.PODS, ("Pod", namespace, name)))
    if pod is None:
        return f"Pod {namespace}/{name}: it has no ResourceClaims, or they have not been made yet"
    claims: list[ClaimRecord | ClaimView | str] = []
    missing = []
    for key in pod.claims:
        try:
            claims.append(cluster.claim(*key))
        except NotFoundError:
            missing.append(f"ResourceClaim {key[0]}/{key[1]}: there is none; the pod waits for it")
    claims += cluster.asked(pod)
    return "\n".join([*missing, _report(claims, cluster)]).strip()


class _Cluster:
    """The state of the cluster, as far as it decides about claims."""

    def __init__(self, kube: KubeClient, driver: str) -> None:
        self._kube = kube
        self.driver = driver
        version = kube.resource_api_version()
        self._claims = kube_api.claims(version)
        self._trim = claim_trimmer(driver)
        index = DeviceIndex()
        for obj in kube.list(kube_api.slices(version), Selection(fields=f"spec.driver={driver}"))["items"]:
            if obj["spec"]["pool"]["name"] != PROBE_NODE:
                index.note_slice(obj["metadata"]["name"], trim_slice(obj))
        for obj in kube.list(kube_api.NODE_INVENTORIES)["items"]:
            _note_withheld(index, obj["metadata"]["name"], trim_inventory(obj))
        self.remark = ""
        """What could not be looked at, and why; empty: all was."""
        self.devices = tainted(index.devices(), self._rules())
        self.plugins: dict[str, Sequence[str]] = {}
        """By node, extended resources that device plugins have there."""
        classes = map(class_trimmer(driver), kube.list(kube_api.device_classes(version))["items"])
        self._classes = [record for record in classes if record is not None]
        self.classes = {record.name for record in self._classes if record.is_ours}
        ledger = Ledger(driver)
        for record in map(self._trim, kube.list(self._claims)["items"]):
            if record is not None and record.view is not None:
                ledger.note(record.view.uid, record.view.allocation)
        self.usage = ledger.usage()

    def _rules(self) -> list[TaintRule]:
        trim = rule_trimmer(self.driver)
        try:
            served = served_rules(self._kube)
            found = self._kube.list(served)["items"] if served is not None else []
        except KubeError as error:
            if error.status != 403:
                raise
            self.remark = f"taints by DeviceTaintRules are not looked at: {error}"
            return []
        return [rule for rule in map(trim, found) if rule is not None]

    def claim(self, namespace: str, name: str) -> ClaimRecord | str:
        """Return a claim, or a sentence about why there is nothing to explain."""
        record = self._trim(_listed(self._kube, self._claims, ("ResourceClaim", namespace, name)))
        where = f"ResourceClaim {namespace}/{name}"
        if record is None:
            return f"{where}: allocated, by another driver than {self.driver}"
        view = record.view
        if (
            view is not None
            and view.allocation is None
            and not any(r.device_class in self.classes for r in view.requests)
        ):
            return f"{where}: none of its DeviceClasses selects devices of {self.driver}"
        return record

    def asked(self, pod: PodRecord) -> Iterator[ClaimView | str]:
        """Yield the claim that the scheduler would make for a pod's extended resources, and what to know of it."""
        special = special_claim(pod.subject, pod.asks, lambda resource: class_of(resource, self._classes))
        for resource in dict.fromkeys(ask.resource for ask in pod.asks):
            if not class_of(resource, self._classes):
                where = f"Pod {pod.subject.namespace}/{pod.subject.name}"
                yield f"{where}: no DeviceClass of {self.driver} stands for {resource}"
        if special is None:
            return
        yield special
        nodes = self._kube.list(kube_api.NODES)["items"]
        self.plugins = {node["metadata"]["name"]: plugin_resources(node) for node in nodes}
        if self._kube.server_minor() < _EXTENDED_BY_DEFAULT:
            yield "up to Kubernetes 1.35, DeviceClasses stand for such resources only with the gate DRAExtendedResource"


def _listed(kube: KubeClient, resource: Resource, wanted: tuple[str, str, str]) -> JSON:
    """Return an object by kind, namespace and name. Listed: in the controller's pod, its account may not do more."""
    kind, namespace, name = wanted
    found: Sequence[JSON] = kube.list(resource, Selection(namespace, fields=f"metadata.name={name}"))["items"]
    if not found:
        raise NotFoundError(f"{kind} {namespace}/{name}: found none, expected one")
    return found[0]


def _note_withheld(index: DeviceIndex, node: str, inventory: InventoryRecord) -> None:
    if inventory.status is not None:
        _, withheld = Policy().gpus(NodeDevices(inventory.status, inventory.spec))
        index.note_withheld(node, tuple(withheld))


def _report(found: Iterable[ClaimRecord | ClaimView | str], cluster: _Cluster) -> str:
    lines: list[str] = []
    views: list[ClaimView] = []
    for record in found:
        if isinstance(record, str):
            lines.append(record)
            continue
        if isinstance(record, ClaimView):
            views.append(record)
            continue
        lines += record.problem.splitlines()
        if record.view is not None:
            lines += _held(record.view)
            views.append(of_classes(record.view, cluster.classes.__contains__))
    for explanation in explain(views, cluster.devices, cluster.usage, cluster.plugins):
        lines += _reasons(explanation)
    if cluster.remark and any(view.allocation is None for view in views):
        lines.append(cluster.remark)
    return "\n".join(lines)


def _held(view: ClaimView) -> Sequence[str]:
    if view.allocation is None:
        return ()
    return [
        f"{view}: request {result.request} holds {result.pool}/{result.device}"
        + "".join(f", {name} {_amount(name, amount)}" for name, amount in sorted(result.consumed.items()))
        for result in view.allocation.results
    ]


def _reasons(explanation: RequestExplanation) -> list[str]:
    heading = describe([explanation], limit=_NO_LIMIT, findings=False)
    return [heading, *(f"  {finding}" for finding in explanation.findings)]


def _amount(name: str, amount: int) -> str:
    return format_bytes(amount) if name == names.CAPACITY_MEMORY else str(amount)
