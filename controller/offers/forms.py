"""What a GPU can be offered as, and how much that may take: the data that the offer modes and `migrating` speak in."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from api import names
from api.nodeinventory import DeviceFacts
from api.slices import Device, Taint
from api.slots import Slot, parse_slot


@dataclass(frozen=True)
class Amount:
    """Memory and guaranteed time of one GPU."""

    memory_bytes: int = 0
    cores_percent: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.memory_bytes + other.memory_bytes, self.cores_percent + other.cores_percent)

    def __sub__(self, other: "Amount") -> "Amount":
        return Amount(self.memory_bytes - other.memory_bytes, self.cores_percent - other.cores_percent)

    def fits(self, room: "Amount") -> bool:
        """Say whether there is room for it."""
        return self.memory_bytes <= room.memory_bytes and self.cores_percent <= room.cores_percent

    def clamped(self) -> "Amount":
        """Return it with nothing below 0, and memory in whole steps."""
        memory_bytes = max(self.memory_bytes, 0)
        return Amount(memory_bytes - memory_bytes % names.MEMORY_STEP_BYTES, max(self.cores_percent, 0))


def total(amounts: Iterable[Amount]) -> Amount:
    """Return the sum."""
    return sum(amounts, Amount())


class Kind(enum.Enum):
    """How a device may be allocated."""

    SHARED = "shared"
    """The GPU, to many claims, each with what it asks for."""
    WHOLE = "whole"
    """The GPU, to one claim."""
    SLOT = "slot"
    """A slot that has its part for itself."""
    COUNTED = "counted"
    """The GPU or a slot, as long as the GPU's counters have room."""


@dataclass(frozen=True)
class Form:
    """A device as it is or was published."""

    name: str
    kind: Kind
    amount: Amount
    """The most that claims can hold by it."""


@dataclass(frozen=True)
class Holding:
    """What claims hold by one device of a GPU."""

    name: str
    amount: Amount
    shares: int = 0
    whole: bool = False
    """By an allocation without amounts: the device is taken."""
    idle: int = 0
    """Those of the shares that took no cores."""

    @property
    def slot(self) -> Slot | None:
        """The slot, if it is one."""
        return parse_slot(self.name)


@dataclass(frozen=True)
class GPU:
    """A GPU that is offered, with all that decides about how."""

    facts: DeviceFacts
    room: Amount
    """What policy lets be offered of it."""
    sizes: tuple[tuple[Amount, int], ...] = ()
    """Sizes of slots and how many of each; smallest first."""
    taints: tuple[Taint, ...] = ()
    exclusive: bool = False
    """Each share takes a core at least, so that whoever has all cores is alone."""
    held: tuple[Holding, ...] = ()
    taken: Amount = field(default_factory=Amount)
    """What must not be offered, since it can be held by devices that are not published any more."""
    counted_lately: bool = False
    """Its devices drew on counters a moment ago, and would not any more. What claims hold is not to be on offer yet:
    when such a claim ends, a scheduler that still knows the counters could give its part to another device."""
    published: frozenset[str] = frozenset()
    """Names of its devices that are, or were a moment ago, on offer as this mode wants them: they may be in use."""

    @property
    def name(self) -> str:
        """Name of the GPU's own device."""
        return self.facts.name

    def booked(self, amount: Amount) -> Amount:
        """Return what a device takes of the GPU: where it is exclusive, one core at least."""
        if not self.exclusive:
            return amount
        return replace(amount, cores_percent=max(amount.cores_percent, names.CORES_OF_A_PLACE))

    def slots(self) -> list[Slot]:
        """Return the slots of its sizes, smallest first."""
        slots = [
            Slot(self.name, size.memory_bytes, size.cores_percent, index)
            for size, count in self.sizes
            for index in range(count)
        ]
        return [slot for slot in slots if slot.has_name()]

    def held_whole(self) -> bool:
        """Say whether a claim holds the GPU as a whole."""
        return any(holding.whole for holding in self.held if holding.name == self.name)

    def held_shared(self) -> bool:
        """Say whether claims hold shares of the GPU's own device."""
        return any(not holding.whole for holding in self.held if holding.name == self.name)

    def held_slots(self) -> list[Slot]:
        """Return the slots that claims hold, smallest first."""
        slots = [holding.slot for holding in self.held]
        return sorted(
            (slot for slot in slots if slot), key=lambda slot: (slot.memory_bytes, slot.cores_percent, slot.index)
        )


def amount_of(slot: Slot) -> Amount:
    """Return what a slot takes."""
    return Amount(slot.memory_bytes, slot.cores_percent)


@dataclass(frozen=True)
class Division:
    """What a GPU is offered as."""

    devices: tuple[tuple[Device, Form], ...] = ()
    counters: Amount | None = None
    """What devices of the kind COUNTED draw on."""
