"""Puts a node's offer together: policy, order, what older offers gave away, and the offer mode. Used by `keeping`.

Holds what must be remembered from one offer of a node to the next (`Withdrawals`, `Orders`), and what need not be
worked out again (`Memo`); all decisions are pure and stand in the modules that it calls.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from api import names
from api.claims import Object
from api.nodeinventory import OfferedRoom
from controller.offers.forms import GPU, Division, Form, Holding, Kind, total
from controller.offers.memoizing import Memo
from controller.offers.migrating import Withdrawals, read_published, situate
from controller.offers.offering import NoMode, Offer, OfferMode, Withheld, fixed_device
from controller.offers.ordering import Orders
from controller.offers.policies import NodeDevices, Policy

_PARTS = ("held", "situated", "division")
"""What is remembered of each GPU."""


class Composer:
    """Composes one node's offer after the other. One thread at a time may work on a node."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing remembered."""
        self._withdrawals = Withdrawals(clock)
        self._orders = Orders(clock)
        self._memos: dict[str, Memo] = {}

    def compose(
        self, node: str, devices: NodeDevices, mode: OfferMode, policy: Policy, stored: Sequence[Object]
    ) -> Offer:
        """Return what a node is to offer now.

        Args:
            node: its name.
            devices: what it has and what claims hold of it.
            mode: how to offer it.
            policy: the operator's wishes.
            stored: the slices that are on offer now.
        """
        memo = self._memos.setdefault(node, Memo())
        published = memo.recall("published", read_published, tuple(stored))
        bare, withheld = memo.recall("policy", policy.gpus, replace(devices, holdings={}))
        gpus = [memo.recall(("held", gpu.name), _hold, gpu, devices.held(gpu.name)) for gpu in bare]
        gpus = self._orders.arrange(node, policy.order(devices), gpus)
        # Before anything of a node is offered, its agent is told how (see `keeping`).
        is_new = not stored and not devices.inventory.offer_mode and devices.keeps_mode
        gone = self._withdrawals.gone(node, gpus, published, is_new=is_new)
        gpus = [memo.recall(("situated", gpu.name), situate, gpu, mode, published, gone) for gpu in gpus]
        divisions = [(gpu, memo.recall(("division", gpu.name), _divide, mode, gpu)) for gpu in gpus]
        memo.keep_only({"published", "policy"} | {(part, gpu.name) for gpu in gpus for part in _PARTS})
        withheld = [*withheld, *(_left_out(gpu, mode) for gpu, division in divisions if not division.devices)]
        return Offer(mode.pack(divisions), tuple(withheld), tuple(_rooms(gpus, devices, policy)))

    def due_in_s(self, node: str) -> float | None:
        """Return after how many seconds the offer may be another one though nothing changed; None: never."""
        dues = [self._withdrawals.due_in_s(node), self._orders.due_in_s(node)]
        return min((due for due in dues if due is not None), default=None)

    def note_offered(self, node: str, slices: Iterable[Object]) -> None:
        """Take over what was put on offer and is not among the stored slices, or will not be any more."""
        for obj in slices:
            self._withdrawals.note_offered(node, read_published((obj,)))

    def forget(self, node: str) -> None:
        """Forget a node that is gone."""
        self._withdrawals.forget(node)
        self._orders.forget(node)
        self._memos.pop(node, None)


def _hold(gpu: GPU, held: tuple[Holding, ...]) -> GPU:
    return replace(gpu, held=held) if held else gpu


def _divide(mode: OfferMode, gpu: GPU) -> Division:
    if gpu.facts.type == names.DEVICE_TYPE_GPU:
        return mode.divide(gpu)
    # A part that the hardware made: it has its limits already and is handed out as it is, in every mode.
    form = Form(gpu.name, Kind.WHOLE, gpu.room)
    return Division(((fixed_device(gpu, form), form),))


def _rooms(gpus: Iterable[GPU], node: NodeDevices, policy: Policy) -> Iterator[OfferedRoom]:
    """Yield the GPUs of which more is promised than they have: those on offer, and those that claims hold still."""
    rooms = {gpu.name: gpu.room for gpu in gpus}
    for name, facts in {facts.name: facts for facts in node.inventory.devices}.items():
        holdings = node.held(name)
        if name not in rooms and not holdings:
            continue
        room = rooms.get(name) or policy.room(facts, node)
        # What claims hold stays theirs when the scaling goes down.
        held = total(holding.amount for holding in holdings)
        memory_bytes = max(room.memory_bytes, held.memory_bytes)
        cores = max(room.cores_percent, held.cores_percent)
        if memory_bytes > facts.memory_bytes or cores > names.CORES_PER_DEVICE:
            yield OfferedRoom(device=name, memory_bytes=memory_bytes, cores=cores)


def _left_out(gpu: GPU, mode: OfferMode) -> Withheld:
    if isinstance(mode, NoMode):
        return Withheld(gpu.name, mode.reason)
    taken = gpu.taken
    if taken.memory_bytes or taken.cores_percent:
        return Withheld(gpu.name, "claims hold it by devices of another offer mode or layout, or did a moment ago")
    found = f"found {gpu.room.memory_bytes} bytes of memory and a name of {len(gpu.name)} characters"
    return Withheld(gpu.name, f"{found}, expected at least 2Mi, and for slots a size and a name that fit into theirs")
