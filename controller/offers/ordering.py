"""The order of a node's GPUs in its slices, which is the order in which the scheduler tries them. Used by `composing`.

The scheduler takes the first device that fits and weighs nothing, so order is the lever for packing and spreading. It
follows use only in coarse steps and not more often than twice a minute: each write of a slice makes the scheduler look
at all pods that wait again, and where a node has several slices, a new order would hide its pool for a moment. Packing
needs no more: who is first stays first until it is full. Spreading does: all pods go to the first GPU until another one
is first, so there a GPU that is not among the emptiest any more loses its place within a second.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from api import names
from api.offerrules import Order
from controller.offers.forms import GPU, total

REORDER_S = 30.0
"""Least time between two orders of a node."""
SPREAD_S = 1.0
"""The same, where the first GPU should not be the first."""
_STEPS = 8
"""Use is compared in eighths of a GPU."""


def arrange(order: Order, gpus: Sequence[GPU]) -> list[GPU]:
    """Return the GPUs in an order; those that are equal by it stay as the driver counts them."""
    by_index = sorted(gpus, key=lambda gpu: gpu.facts.index)
    if order is Order.TOPOLOGY:
        return sorted(by_index, key=_place)
    return sorted(by_index, key=_use, reverse=order is Order.BINPACK)


def widest_first(gpus: Sequence[GPU]) -> list[GPU]:
    """Return the GPUs with the most room for one more share first, whatever their sizes.

    For schedulers that ask the first device of a slice whether there is room on any of them (see `policies`).
    """
    by_index = sorted(gpus, key=lambda gpu: gpu.facts.index)
    most_bytes = max((gpu.room.memory_bytes for gpu in gpus), default=1)

    def width(gpu: GPU) -> tuple[float, int]:
        if gpu.held_whole():
            return 0.0, 0
        left = (gpu.room - total(holding.amount for holding in gpu.held)).clamped()
        parts = left.memory_bytes / max(most_bytes, 1), left.cores_percent / names.CORES_PER_DEVICE
        return min(parts), left.memory_bytes

    return sorted(by_index, key=width, reverse=True)


def _place(gpu: GPU) -> tuple[int, str, str]:
    facts = gpu.facts
    numa = facts.numa_node if facts.numa_node is not None else -1
    return numa, facts.link_island, facts.pcie_root


def _use(gpu: GPU) -> int:
    if gpu.held_whole():
        return _STEPS
    memory_bytes = sum(holding.amount.memory_bytes for holding in gpu.held)
    cores = sum(holding.amount.cores_percent for holding in gpu.held)
    memory_part = memory_bytes / max(gpu.room.memory_bytes, 1)
    cores_part = cores / max(gpu.room.cores_percent, names.CORES_PER_DEVICE)
    # Rounded up: a GPU with a small share is in use.
    return min(-int(-max(memory_part, cores_part) * _STEPS // 1), _STEPS)


@dataclass
class _Arranged:
    order: Order | None
    names: list[str]
    at: float


@dataclass
class Orders:
    """The orders in use. One thread at a time may work on a node."""

    clock: Callable[[], float] = time.monotonic
    _now: dict[str, _Arranged] = field(default_factory=dict)
    _due: dict[str, float] = field(default_factory=dict)

    def arrange(self, node: str, order: Order | None, gpus: Sequence[GPU]) -> list[GPU]:
        """Return a node's GPUs in the order to publish: the wanted one, or the one in use while that is young.

        Args:
            node: its name.
            order: as an operator wishes; None: the widest first.
            gpus: what the node offers.
        """
        wanted = arrange(order, gpus) if order else widest_first(gpus)
        wanted_names = [gpu.name for gpu in wanted]
        now = self.clock()
        used = self._now.get(node)
        self._due.pop(node, None)
        if used is not None and used.order is order and sorted(used.names) == sorted(wanted_names):
            if used.names == wanted_names:
                return wanted
            kept = sorted(wanted, key=lambda gpu: used.names.index(gpu.name))
            is_pressing = order is None or (order is Order.SPREAD and _use(kept[0]) > _use(wanted[0]))
            due = used.at + (SPREAD_S if is_pressing else REORDER_S)
            if now < due:
                self._due[node] = due
                return kept
        self._now[node] = _Arranged(order, wanted_names, now)
        return wanted

    def due_in_s(self, node: str) -> float | None:
        """Return after how many seconds another order may be published; None: this one is right."""
        due = self._due.get(node)
        return None if due is None else max(due - self.clock(), 0.0)

    def forget(self, node: str) -> None:
        """Forget a node that is gone."""
        self._now.pop(node, None)
        self._due.pop(node, None)
