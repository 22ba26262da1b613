"""The counters offer mode: a menu of sizes and the whole GPU, all drawing on the GPU's counters.

A claim takes one device and asks by CEL on its `memory` and `cores`; the scheduler takes the first for which the
counters have room, so the smallest come first. Source: KEP-4815 (DRAPartitionableDevices: alpha 1.33, on by default
from 1.36). Up to 1.34 the counters must stand in the slice of their devices, from 1.35 in slices of their own; an API
server refuses the other layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from api import names
from api.slices import MAX_ADVANCED_DEVICES, MAX_COUNTER_SETS, MAX_COUNTERS, Device
from controller.offers.forms import GPU, Amount, Division, Form, Kind, amount_of
from controller.offers.offering import SliceContent, counter_set, fixed_device, pack
from controller.offers.slots import smallest_first

_SAMPLE = Amount(1 << 20, 100)


@dataclass(frozen=True)
class CountersMode:
    """An OfferMode: slots of several sizes and the whole GPU on one counter set."""

    together: bool = False
    """Counters in the slice of their devices."""
    name: str = names.OFFER_MODE_COUNTERS
    feature_gate: str = "DRAPartitionableDevices"

    def wanted(self, gpu: GPU) -> tuple[Form, ...]:
        """Return the GPU's menu and the GPU itself."""
        slots = [Form(slot.name, Kind.COUNTED, amount_of(slot)) for slot in gpu.slots()]
        return (*slots, Form(gpu.name, Kind.COUNTED, gpu.room))

    def divide(self, gpu: GPU) -> Division:
        """Return the menu, the slots of other menus in use, and what all may draw on."""
        held = [Form(slot.name, Kind.COUNTED, amount_of(slot)) for slot in gpu.held_slots()]
        wanted = self.wanted(gpu)
        if gpu.held_shared():
            # Shares of the GPU made in another mode: its name cannot stand for something else until they end.
            wanted = wanted[:-1]
        forms = {form.name: form for form in held}
        # The whole GPU first: it is there however long the menu is.
        for form in sorted(wanted, key=lambda form: form.name != gpu.name):
            if len(forms) < MAX_ADVANCED_DEVICES or not self.together:
                forms.setdefault(form.name, form)
        devices = tuple((fixed_device(gpu, form), form) for form in forms.values())
        return Division(devices, counters=(gpu.room - gpu.taken).clamped())

    def pack(self, divisions: Sequence[tuple[GPU, Division]]) -> tuple[SliceContent, ...]:
        """Return the smallest first; with the counters before them, or GPU by GPU where they must stand together."""
        if self.together:
            return _together(divisions)
        # By name: the order of the devices is policy and changes with use, and where two slices change the pool is
        # incomplete for a moment.
        by_name = sorted(divisions, key=lambda entry: entry[0].name)
        sets = [counter_set(gpu.name, part.counters) for gpu, part in by_name if part.counters is not None]
        starts = range(0, len(sets), MAX_COUNTER_SETS)
        counters = tuple(SliceContent(counter_sets=tuple(sets[start : start + MAX_COUNTER_SETS])) for start in starts)
        return counters + pack(smallest_first(divisions))

    def sample(self) -> tuple[SliceContent, ...]:
        """Return a device and what it draws on."""
        counters = counter_set("probe", _SAMPLE)
        device = Device(name="probe", consumes=(counters,))
        if self.together:
            return (SliceContent((device,), (counters,)),)
        return (SliceContent(counter_sets=(counters,)), SliceContent((device,)))


def _together(divisions: Sequence[tuple[GPU, Division]]) -> tuple[SliceContent, ...]:
    """Return slices with as many whole GPUs in each as the API's limits allow."""
    slices: list[SliceContent] = []
    group: list[tuple[GPU, Division]] = []
    for entry in divisions:
        if group and not _fits([*group, entry]):
            slices.append(_slice(group))
            group = []
        group.append(entry)
    return (*slices, _slice(group))


def _fits(group: Sequence[tuple[GPU, Division]]) -> bool:
    devices = sum(len(division.devices) for _, division in group)
    return devices <= MAX_ADVANCED_DEVICES and 2 * len(group) <= MAX_COUNTERS


def _slice(group: Sequence[tuple[GPU, Division]]) -> SliceContent:
    sets = [counter_set(gpu.name, part.counters) for gpu, part in group if part.counters is not None]
    return SliceContent(tuple(smallest_first(group)), tuple(sets))
