"""The consumable offer mode: each GPU is one device that many claims share, each with the capacity that it asks for.

Source: KEP-5075 (DRAConsumableCapacity: alpha 1.34, on by default from 1.36). Its rules for a request policy with a
range: min <= default <= max <= value, default - min and max - min are multiples of step, min + step <= value; one
violation and the API server refuses the whole slice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from api import names
from api.quantities import format_bytes
from api.slices import Capacity, Device, Range
from controller.offers.forms import GPU, Amount, Division, Form, Kind, amount_of, total
from controller.offers.offering import SliceContent, fixed_device, gpu_attributes, pack

_MIN_MEMORY_BYTES = 2 * names.MEMORY_STEP_BYTES
"""Below this min + step would be above the value."""


@dataclass(frozen=True)
class ConsumableMode:
    """An OfferMode: `memory`, `cores` and `shares` of each GPU, consumed by claims."""

    name: str = "consumable"
    feature_gate: str = "DRAConsumableCapacity"

    def wanted(self, gpu: GPU) -> tuple[Form, ...]:
        """Return the GPU as a device that claims share."""
        return (Form(gpu.name, Kind.SHARED, gpu.room),)

    def divide(self, gpu: GPU) -> Division:
        """Return the GPU with what no device of another mode can hold, beside the devices of other modes in use."""
        slots = [Form(slot.name, Kind.SLOT, amount_of(slot)) for slot in gpu.held_slots()]
        devices = [(fixed_device(gpu, form), form) for form in slots if not gpu.counted_lately]
        # A claim that was given it without amounts, by a scheduler that knows none, holds it alone: schedulers keep all
        # others off it, shared or not. Who waits gets a share when that claim ends, and not all of it for himself.
        taken = Amount() if gpu.held_whole() and not gpu.counted_lately else gpu.taken
        left = (gpu.room - taken - total(gpu.booked(form.amount) for form in slots)).clamped()
        if left.memory_bytes >= _MIN_MEMORY_BYTES and (left.cores_percent or not gpu.exclusive):
            devices.insert(0, (_device(gpu, left), Form(gpu.name, Kind.SHARED, left)))
        return Division(tuple(devices))

    def pack(self, divisions: Sequence[tuple[GPU, Division]]) -> tuple[SliceContent, ...]:
        """Return the devices in the order of the GPUs."""
        return pack([device for _, division in divisions for device, _ in division.devices])

    def sample(self) -> tuple[SliceContent, ...]:
        """Return a slice with one device that has every field of the mode."""
        capacity = _capacity(Amount(_MIN_MEMORY_BYTES, names.CORES_PER_DEVICE), _MIN_MEMORY_BYTES, least_cores=0)
        return (SliceContent((Device(name="probe", capacity=capacity, allow_multiple=True),)),)


def _device(gpu: GPU, left: Amount) -> Device:
    least_cores = 0
    if gpu.exclusive:
        least_cores = names.CORES_OF_A_PLACE
        # Shares that took no core, since they were there before the rule: all cores must not be had beside them.
        idle = sum(holding.idle for holding in gpu.held if holding.name == gpu.name)
        left = replace(left, cores_percent=max(left.cores_percent - idle, 1))
    capacity = _capacity(left, gpu.facts.memory_bytes, least_cores)
    return Device(gpu.name, gpu_attributes(gpu), capacity, allow_multiple=True, taints=gpu.taints)


def _capacity(left: Amount, physical_bytes: int, least_cores: int) -> dict[str, Capacity]:
    step = format_bytes(names.MEMORY_STEP_BYTES)
    memory = format_bytes(left.memory_bytes)
    # Who does not say how much gets all of it: a claim for "a GPU" must not end up with the smallest step. All of it is
    # what is there, and not what is offered above that.
    whole = format_bytes(min(left.memory_bytes, physical_bytes - physical_bytes % names.MEMORY_STEP_BYTES))
    most = str(min(left.cores_percent, names.CORES_PER_DEVICE))
    least = str(least_cores)
    if left.cores_percent > least_cores:
        cores = Capacity(str(left.cores_percent), default=least, valid_range=Range(least, most, "1"))
    else:
        cores = Capacity(least, default=least, valid_values=(least,))
    return {
        names.CAPACITY_MEMORY: Capacity(memory, default=whole, valid_range=Range(step, memory, step)),
        # Who does not say how much gets no guaranteed time, only idle time: what a CPU request of 0 means. A core that
        # is booked for it all the same (see GPU.exclusive) guarantees nothing.
        names.CAPACITY_CORES: cores,
        # Every share takes one; the limit keeps a device from being cut into more shares than it can schedule.
        names.CAPACITY_SHARES: Capacity(str(names.SHARES_PER_DEVICE), default="1", valid_values=("1",)),
    }
