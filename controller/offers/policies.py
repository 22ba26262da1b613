"""What policy makes of a node's devices: which are offered, how much of each, cut into which sizes, kept away by what.

Pure; used by `composing`. Policy comes from rules in the controller's settings and, for one node, from the `spec` of
its NodeInventory, which goes before the rules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from api import names
from api.nodeinventory import DeviceFacts, InventorySpec, InventoryStatus
from api.offerrules import OfferRule, Order, first
from api.quantities import MAX_BYTES
from api.slices import Taint
from controller.offers.forms import GPU, Amount, Holding
from controller.offers.layouts import default_menu, default_slots, sizes
from controller.offers.offering import CORDONED, Withheld, sort_out


@dataclass(frozen=True)
class NodeDevices:
    """What is known of a node and its devices."""

    inventory: InventoryStatus
    spec: InventorySpec = field(default_factory=InventorySpec)
    labels: Mapping[str, str] = field(default_factory=dict)
    holdings: Mapping[str, Sequence[Holding]] = field(default_factory=dict)
    """What claims hold, by GPU."""
    keeps_mode: bool = True
    """The inventory has a place for the offer mode: without one, it does not say that nothing was ever offered."""

    def held(self, gpu: str) -> tuple[Holding, ...]:
        """Return what claims hold of a GPU."""
        return tuple(self.holdings.get(gpu, ()))


@dataclass(frozen=True)
class Policy:
    """The operator's wishes, as far as this API server can carry them."""

    rules: tuple[OfferRule, ...] = ()
    taints: bool = False
    """The API server keeps device taints: what claims must stay away from is tainted. Else it leaves the offer."""
    menu: bool = False
    """Sizes are those of menus and not of slots."""
    first_decides: bool = False
    """The scheduler gives out a shared device only where the first one of its slice has room for the request too.

    So it is in Kubernetes 1.34 (kubernetes/kubernetes issue 133705): the GPU with the most room must be the first.
    """

    def gpus(self, node: NodeDevices) -> tuple[list[GPU], list[Withheld]]:
        """Return the GPUs to offer in the inventory's order, and what claims cannot have; tainted ones are both.

        What claims hold is not in it: it does not depend on policy.
        """
        kept, withheld = sort_out(node.inventory.devices)
        gpus = []
        for facts in kept:
            taints = _taints(facts, node.spec)
            if taints:
                withheld.append(Withheld(facts.name, _why(facts, node.spec)))
            if self.taints or not taints:
                gpus.append(self._gpu(facts, node, taints))
        return gpus, withheld

    def order(self, node: NodeDevices) -> Order | None:
        """Return the order of a node's GPUs; None: those with the most room first, whatever anybody wishes."""
        if self.first_decides:
            return None
        rules = [rule for rule in self.rules if rule.matches_node(node.labels)]
        return node.spec.order or first(rules, "order") or Order.BINPACK

    def room(self, facts: DeviceFacts, node: NodeDevices) -> Amount:
        """Return how much of a device claims may hold together, whether it is on offer now or not."""
        rules = self._rules(facts, node)
        memory_scaling = node.spec.memory_scaling or first(rules, "memory_scaling") or 1.0
        cores_scaling = node.spec.cores_scaling or first(rules, "cores_scaling") or 1.0
        if first(rules, "exclusive"):
            cores_scaling = min(cores_scaling, 1.0)  # all cores of the GPU are all that there are
        memory_bytes = min(int(facts.memory_bytes * memory_scaling), MAX_BYTES)
        return Amount(memory_bytes, int(names.CORES_PER_DEVICE * cores_scaling)).clamped()

    def _rules(self, facts: DeviceFacts, node: NodeDevices) -> list[OfferRule]:
        return [rule for rule in self.rules if rule.matches(node.labels, facts.product_name)]

    def _gpu(self, facts: DeviceFacts, node: NodeDevices, taints: tuple[Taint, ...]) -> GPU:
        rules = self._rules(facts, node)
        room = self.room(facts, node)
        chosen = first(rules, "menu" if self.menu else "slots")
        default = default_menu if self.menu else default_slots
        return GPU(
            facts=facts,
            room=room,
            sizes=sizes(room, chosen) if chosen else default(room),
            taints=taints,
            exclusive=bool(first(rules, "exclusive")),
        )


def is_cordoned(facts: DeviceFacts, spec: InventorySpec) -> bool:
    """Say whether an operator keeps new claims away from a device: by its name or its UUID."""
    return not {facts.name.lower(), facts.uuid.lower()}.isdisjoint(name.lower() for name in spec.cordoned_devices)


def _why(facts: DeviceFacts, spec: InventorySpec) -> str:
    """Return why claims must stay away from a device; empty: they need not."""
    reasons = []
    if not facts.healthy:
        reasons.append(facts.health or "not healthy")
    if is_cordoned(facts, spec):
        reasons.append(CORDONED)
    return "; ".join(reasons)


def _taints(facts: DeviceFacts, spec: InventorySpec) -> tuple[Taint, ...]:
    found = []
    if not facts.healthy:
        found.append(Taint(names.TAINT_UNHEALTHY))
    if is_cordoned(facts, spec):
        found.append(Taint(names.TAINT_CORDONED))
    return tuple(found)
