"""The consumable offer mode: each GPU is one device that many claims share, each with the capacity that it asks for.

Source: KEP-5075 (DRAConsumableCapacity: alpha 1.34, on by default from 1.36). Its rules for a request policy with a
range: min <= default <= max <= value, default - min and max - min are multiples of step, min + step <= value; one
violation and the API server refuses the whole slice.
"""

from dataclasses import dataclass

from api import names
from api.nodeinventory import DeviceFacts, InventoryStatus
from api.quantities import format_bytes
from api.slices import MAX_DEVICES, Capacity, Device, Range
from controller.offering import Offer, SliceContent, Withheld, attributes, pack, sort_out

_MIN_MEMORY_BYTES = 2 * names.MEMORY_STEP_BYTES
"""Below this min + step would be above the value."""


@dataclass(frozen=True)
class ConsumableMode:
    """An OfferMode: `memory`, `cores` and `shares` of each GPU, consumed by claims."""

    name: str = "consumable"
    feature_gate: str = "DRAConsumableCapacity"

    def offer(self, inventory: InventoryStatus) -> Offer:
        """Return one shareable device per GPU, in the order of the inventory."""
        kept, withheld = sort_out(inventory.devices)
        too_small = [facts for facts in kept if facts.memory_bytes < _MIN_MEMORY_BYTES]
        withheld += [
            Withheld(facts.name, f"found {facts.memory_bytes} bytes of memory, expected at least {_MIN_MEMORY_BYTES}")
            for facts in too_small
        ]
        devices = [_device(facts) for facts in kept if facts not in too_small]
        return Offer(pack(devices, MAX_DEVICES), tuple(withheld))

    def sample(self) -> SliceContent:
        """Return a slice with one device that has every field of the mode."""
        capacity = _capacity(_MIN_MEMORY_BYTES)
        return SliceContent((Device(name="probe", capacity=capacity, allow_multiple=True),))


def _device(facts: DeviceFacts) -> Device:
    return Device(
        name=facts.name,
        attributes=attributes(facts),
        capacity=_capacity(facts.memory_bytes),
        allow_multiple=True,
    )


def _capacity(memory_bytes: int) -> dict[str, Capacity]:
    step = format_bytes(names.MEMORY_STEP_BYTES)
    memory = format_bytes(memory_bytes - memory_bytes % names.MEMORY_STEP_BYTES)
    cores = str(names.CORES_PER_DEVICE)
    return {
        # Who does not say how much gets all of it: a claim for "a GPU" must not end up with the smallest step.
        names.CAPACITY_MEMORY: Capacity(memory, default=memory, valid_range=Range(step, memory, step)),
        # Who does not say how much gets no guaranteed time, only idle time: what a CPU request of 0 means.
        names.CAPACITY_CORES: Capacity(cores, default="0", valid_range=Range("0", cores, "1")),
        # Every share takes one; the limit keeps a device from being cut into more shares than it can schedule.
        names.CAPACITY_SHARES: Capacity(str(names.SHARES_PER_DEVICE), default="1", valid_values=("1",)),
    }
