"""Keeps an offer from promising what an older offer may have given away: another mode, another layout, another leader.

Used by `composing`. What claims hold stays on offer until they end, and what is left of a GPU is offered anew. A device
that is withdrawn counts as taken for some seconds more: the scheduler may have chosen it from the slices that it knew a
moment ago, and that claim is not here yet.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from api import names
from api.claims import Object
from api.errors import ConfigError, StateError
from api.quantities import parse_count
from api.slices import Device, read_counter_set, read_device
from api.slots import gpu_of, parse_slot
from controller.offers.counting import Usage
from controller.offers.forms import GPU, Amount, Form, Holding, Kind, amount_of, total
from controller.offers.offering import OfferMode

WITHDRAWAL_S = 10.0
"""So long after its withdrawal a device can still turn up in an allocation."""


@dataclass(frozen=True)
class Published:
    """What the stored slices of a pool offer."""

    forms: Mapping[str, Form] = field(default_factory=dict)
    """By device name."""
    counters: Mapping[str, Amount] = field(default_factory=dict)
    """By GPU."""

    def shown(self, gpu: str) -> Amount:
        """Return how much of a GPU can be allocated by what is on offer; counters, if a device draws on them."""
        mine = [form for form in self.forms.values() if gpu_of(form.name) == gpu]
        shown = total(form.amount for form in mine if form.kind is not Kind.COUNTED)
        counted = any(form.kind is Kind.COUNTED for form in mine)
        return shown + self.counters.get(gpu, Amount()) if counted else shown


def read_published(slices: Iterable[Object]) -> Published:
    """Return what stored slices offer; what cannot be read is left out, as the scheduler leaves it out."""
    forms: dict[str, Form] = {}
    counters: dict[str, Amount] = {}
    for obj in slices:
        for entry in obj["spec"].get("devices") or []:
            try:
                form = _form(read_device(entry))
            except (StateError, ConfigError):
                continue
            forms[form.name] = form
        for entry in obj["spec"].get("sharedCounters") or []:
            try:
                found = read_counter_set(entry)
                counters[found.name] = _amount(found.counters)
            except (StateError, ConfigError):
                continue
    return Published(forms, counters)


def _form(device: Device) -> Form:
    slot = parse_slot(device.name)
    capacity = {name.rpartition("/")[2]: amount.value for name, amount in device.capacity.items()}
    amount = amount_of(slot) if slot else _amount(capacity)
    if device.allow_multiple:
        return Form(device.name, Kind.SHARED, amount)
    if device.consumes:
        return Form(device.name, Kind.COUNTED, amount)
    return Form(device.name, Kind.SLOT if slot else Kind.WHOLE, amount)


def _amount(quantities: Mapping[str, str]) -> Amount:
    memory, cores = (quantities.get(name, "0") for name in (names.CAPACITY_MEMORY, names.CAPACITY_CORES))
    return Amount(parse_count(memory, "memory"), parse_count(cores, "cores"))


def holdings(usage: Mapping[str, Usage]) -> dict[str, list[Holding]]:
    """Return what claims hold, by GPU.

    Args:
        usage: of the devices of one pool, by their names.
    """
    found: dict[str, list[Holding]] = {}
    for name, used in sorted(usage.items()):
        slot = parse_slot(name)
        amount = amount_of(slot) if slot else Amount(used.memory_bytes, used.cores_percent)
        whole = slot is None and used.whole > 0
        holding = Holding(name, amount, used.shares, whole, idle=0 if slot else used.idle)
        found.setdefault(gpu_of(name), []).append(holding)
    return found


@dataclass
class _Inherited:
    """What is not known of a node when it is looked at for the first time."""

    due: float
    """Until then, what another leader withdrew may be allocated yet."""
    noted: set[str] = field(default_factory=set)
    """GPUs of which it is noted what that leader may have withdrawn."""


class Withdrawals:
    """Devices that were on offer lately and are not any more. One thread at a time may work on a node."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing known: what another leader withdrew just now is found out by what is missing."""
        self._clock = clock
        self._seen: dict[str, Published] = {}
        self._inherited: dict[str, _Inherited] = {}
        self._gone: dict[str, dict[tuple[str, Kind], tuple[Form, float]]] = {}

    def gone(self, node: str, gpus: Sequence[GPU], published: Published, *, is_new: bool = False) -> tuple[Form, ...]:
        """Return what was on offer of a node's GPUs lately and may be allocated yet.

        Args:
            node: its name.
            gpus: those that may be offered now.
            published: what is on offer now.
            is_new: nothing of the node was ever offered, as far as can be seen.
        """
        now = self._clock()
        # Counted from the first look: what was withdrawn before that cannot have been later.
        inherited = self._inherited.setdefault(node, _Inherited(now if is_new else now + WITHDRAWAL_S))
        if node in self._seen:
            self._note_vanished(node, self._seen[node], published)
        if now < inherited.due:
            self._assume(inherited, node, gpus, published)
        self._seen[node] = published
        gone = {key: entry for key, entry in self._gone.get(node, {}).items() if entry[1] > now}
        self._gone[node] = gone
        return tuple(form for form, _ in gone.values())

    def _note_vanished(self, node: str, before: Published, now: Published) -> None:
        """Take over what is not on offer any more, whoever withdrew it.

        Counted from when that is seen and not from when it was asked for: a write may take effect long after that.
        """
        if before is now:
            return
        stays = {(form.name, form.kind) for form in now.forms.values()}
        due = self._clock() + WITHDRAWAL_S
        gone = self._gone.setdefault(node, {})
        for form in before.forms.values():
            if (form.name, form.kind) not in stays:
                gone[form.name, form.kind] = (form, due)

    def due_in_s(self, node: str) -> float | None:
        """Return after how many seconds more of a node's GPUs may be offered; None: nothing was withdrawn lately."""
        dues = [due for _, due in self._gone.get(node, {}).values()]
        return max(min(dues) - self._clock(), 0.0) if dues else None

    def note_offered(self, node: str, published: Published) -> None:
        """Take over what was put on offer and is not seen on offer: somebody may have withdrawn it already."""
        self._note_vanished(node, published, Published())

    def forget(self, node: str) -> None:
        """Take all of a node that is gone for withdrawn, and forget what was withdrawn long ago."""
        if node not in self._seen:
            # For the second time, or never looked at: it has not come back.
            self._inherited.pop(node, None)
        self._note_vanished(node, self._seen.pop(node, Published()), Published())
        now = self._clock()
        for other in self._gone.keys() - self._seen.keys():
            if all(due <= now for _, due in self._gone[other].values()):
                del self._gone[other]

    def _assume(self, inherited: _Inherited, node: str, gpus: Sequence[GPU], published: Published) -> None:
        """Take what a new leader finds unoffered of a GPU for withdrawn by the one before it.

        That may be all there is: a change of the mode withdraws everything first. And a GPU that is broken at the first
        look may have been withdrawn a moment before that, and be well a moment later.
        """
        for gpu in gpus:
            if gpu.name in inherited.noted:
                continue
            inherited.noted.add(gpu.name)
            missing = (gpu.room - published.shown(gpu.name)).clamped()
            if missing.memory_bytes or missing.cores_percent:
                form = Form(gpu.name, Kind.SLOT, missing)
                self._gone.setdefault(node, {})[form.name, form.kind] = (form, inherited.due)


def situate(gpu: GPU, mode: OfferMode, published: Published, gone: Sequence[Form]) -> GPU:
    """Return a GPU with what is on offer of it and what must not be.

    Args:
        gpu: what policy makes of it, and what claims hold.
        mode: how it is to be offered.
        published: what its node has on offer now.
        gone: what its node had on offer a moment ago.
    """
    wanted = {(form.name, form.kind) for form in mode.wanted(gpu)}
    on_offer = [form for form in published.forms.values() if gpu_of(form.name) == gpu.name]
    held = {holding.name for holding in gpu.held if holding.slot or holding.whole}
    # What is on offer and leaves with this very offer is as good as gone.
    leaving = [form for form in on_offer if form.name not in held]
    lost = {(form.name, form.kind): form.amount for form in (*gone, *leaving) if gpu_of(form.name) == gpu.name}
    taken = [gpu.booked(amount) for key, amount in lost.items() if key not in wanted]
    if (gpu.name, Kind.SHARED) not in wanted:
        taken += [gpu.booked(holding.amount) for holding in gpu.held if holding.name == gpu.name]
    counted = any(form.kind is Kind.COUNTED and gpu_of(form.name) == gpu.name for form in (*gone, *on_offer))
    stays = frozenset(form.name for form in (*gone, *on_offer) if (form.name, form.kind) in wanted)
    lately = counted and all(kind is not Kind.COUNTED for _, kind in wanted)
    return replace(gpu, taken=total(taken), published=stays, counted_lately=lately)
