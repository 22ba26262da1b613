"""The slots offer mode: each GPU is cut into devices of fixed sizes. It needs no feature gate: everything from 1.32.

A claim takes one slot and asks by CEL on its `memory` and `cores`; the scheduler takes the first that fits, so the
smallest come first. There is no whole GPU beside its slots: nothing would keep both from being allocated.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from api import names
from api.quantities import format_bytes
from api.slices import Capacity, Device
from controller.offers.forms import GPU, Amount, Division, Form, Kind, amount_of, total
from controller.offers.offering import SliceContent, fixed_device, pack


@dataclass(frozen=True)
class SlotsMode:
    """An OfferMode: a layout of slots per GPU."""

    name: str = "slots"
    feature_gate: str = ""

    def wanted(self, gpu: GPU) -> tuple[Form, ...]:
        """Return the slots in use, and of the layout those that fit beside all that is in use, in its order.

        It depends on claims and layout alone and not on what is on offer, so that whatever came before, a GPU ends up
        cut as a new one would be. A slot of it that is allocated is in it still, and nothing else has to go.
        """
        held = [Form(slot.name, Kind.SLOT, amount_of(slot)) for slot in gpu.held_slots()]
        shares = total(gpu.booked(holding.amount) for holding in gpu.held if holding.name == gpu.name)
        chosen = {form.name: form for form in held}
        layout = [Form(slot.name, Kind.SLOT, amount_of(slot)) for slot in gpu.slots()]
        _add(chosen, layout, gpu, gpu.room - shares - _booked(gpu, held))
        return tuple(chosen.values())

    def divide(self, gpu: GPU) -> Division:
        """Return the wanted slots that are or may be in use, and of the others what fits beside all that may be."""
        if gpu.held_whole():
            form = Form(gpu.name, Kind.WHOLE, gpu.room)
            return Division() if gpu.counted_lately else Division(((fixed_device(gpu, form), form),))
        held = {slot.name for slot in gpu.held_slots()}
        wanted = self.wanted(gpu)
        chosen = {form.name: form for form in wanted if form.name in held | gpu.published}
        _add(chosen, wanted, gpu, gpu.room - gpu.taken - _booked(gpu, chosen.values()))
        forms = [form for form in chosen.values() if form.name not in held or not gpu.counted_lately]
        return Division(tuple((fixed_device(gpu, form), form) for form in forms))

    def pack(self, divisions: Sequence[tuple[GPU, Division]]) -> tuple[SliceContent, ...]:
        """Return the smallest first, of all GPUs; among equals in the order of the GPUs."""
        return pack(smallest_first(divisions))

    def sample(self) -> tuple[SliceContent, ...]:
        """Return a slice with one device with a capacity."""
        memory = Capacity(format_bytes(names.MEMORY_STEP_BYTES))
        return (SliceContent((Device(name="probe", capacity={names.CAPACITY_MEMORY: memory}),)),)


def _booked(gpu: GPU, forms: Iterable[Form]) -> Amount:
    return total(gpu.booked(form.amount) for form in forms)


def _add(chosen: dict[str, Form], forms: Sequence[Form], gpu: GPU, room: Amount) -> None:
    """Choose the forms of a GPU that fit into the room, in their order."""
    for form in forms:
        if form.name not in chosen and gpu.booked(form.amount).fits(room):
            chosen[form.name] = form
            room = room - gpu.booked(form.amount)


def smallest_first(divisions: Sequence[tuple[GPU, Division]]) -> list[Device]:
    """Return the devices of all GPUs by size, among equals in the order of the GPUs, and of one GPU by number.

    Which of them are in use makes no difference: a claim that comes or goes is no reason to write.
    """
    found = [
        ((form.amount.memory_bytes, form.amount.cores_percent, place, len(form.name), form.name), device)
        for place, (_, division) in enumerate(divisions)
        for device, form in division.devices
    ]
    return [device for _, device in sorted(found, key=lambda entry: entry[0])]
