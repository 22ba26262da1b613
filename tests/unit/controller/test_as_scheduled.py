"""Explanations against a model of the scheduler, in all offer modes: they find room where it would, and only there."""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from api.claims import ClaimView
from api.nodeinventory import InventorySpec
from api.offerrules import OfferRule
from controller.offers.composing import Composer
from controller.offers.consumable import ConsumableMode
from controller.offers.counters import CountersMode
from controller.offers.counting import Ledger
from controller.offers.offering import OfferMode
from controller.offers.policies import NodeDevices, Policy
from controller.offers.publishing import Pool, render
from controller.offers.slots import SlotsMode
from controller.reasons.reasoning import explain
from controller.reasons.snapshots import DeviceIndex
from tests.unit.controller.builders import DRIVER, GI, claim, facts, status
from tests.unit.controller.simulating import chances

MODES: list[OfferMode] = [ConsumableMode(), CountersMode(), CountersMode(together=True), SlotsMode()]
UNITS = {"": 1, "k": 1000, "Mi": 1 << 20, "Gi": 1 << 30}
Json = dict[str, Any]


@dataclass(frozen=True)
class Ask:
    """One request of a claim."""

    device_class: str = "vgpu"
    capacity: tuple[tuple[str, str], ...] = ()
    least_gi: int = 0
    """By CEL."""
    count: int = 1
    """0: all."""
    admin: bool = False
    tolerant: bool = False

    def render(self, name: str) -> Json:
        exactly: Json = {"deviceClassName": self.device_class}
        if self.capacity:
            exactly["capacity"] = {"requests": dict(self.capacity)}
        if self.least_gi:
            cel = f'device.capacity["{DRIVER}"].memory.compareTo(quantity("{self.least_gi}Gi")) >= 0'
            exactly["selectors"] = [{"cel": {"expression": cel}}]
        exactly |= {"count": self.count} if self.count else {"allocationMode": "All"}
        if self.admin:
            exactly["adminAccess"] = True
        if self.tolerant:
            exactly["tolerations"] = [{"operator": "Exists"}]
        return {"name": name, "exactly": exactly}


@dataclass(frozen=True)
class Asked:
    """A claim."""

    asks: tuple[Ask, ...]
    constraint: str = ""
    """matchAttribute or distinctAttribute, of all its devices."""
    attribute: str = ""

    def render(self, name: str, results: list[Json] | None = None) -> Json:
        made = claim(name, requests=[ask.render(f"r{place}") for place, ask in enumerate(self.asks)], results=results)
        if self.constraint:
            made["spec"]["devices"]["constraints"] = [{self.constraint: self.attribute}]
        return made


def whole(quantity: Any) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w*)", quantity).groups()  # type: ignore[union-attr]
    return math.ceil(int(number) / 1000) if unit == "m" else int(number) * UNITS[unit]


def consumed(capacity: Json, asked: str | None) -> int | None:
    """What a request takes of one capacity; None: it is not to be had."""
    policy = capacity.get("requestPolicy") or {}
    value = whole(capacity["value"])
    if asked is None:
        return whole(policy.get("default") or capacity["value"])
    amount = whole(asked)
    if "validRange" in policy:
        least, most, step = (whole(policy["validRange"][key]) for key in ("min", "max", "step"))
        amount = least if amount < least else least + math.ceil((amount - least) / step) * step
        return amount if amount <= most else None
    if "validValues" in policy:
        return min((whole(one) for one in policy["validValues"] if whole(one) >= amount), default=None)
    return amount if amount <= value else None


@dataclass
class Scheduler:
    """All choices in their order, over slices as JSON: the allocator of Kubernetes from 1.36 on."""

    slices: list[Json]
    held: list[Json] = field(default_factory=list)
    """Results of allocations."""

    def allocate(self, claims: Sequence[Asked]) -> list[list[Json]] | None:
        """Return the results for each claim; None: they cannot be had together."""
        steps = [(place, asked, number) for place, asked in enumerate(claims) for number in range(len(asked.asks))]
        for choice in self._choices(steps, []):
            return [[result for place, result in choice if place == wanted] for wanted in range(len(claims))]
        return None

    def _devices(self) -> list[Json]:
        return [device for obj in self.slices for device in obj["spec"].get("devices") or []]

    def _choices(
        self, steps: list[tuple[int, Asked, int]], given: list[tuple[int, Json]]
    ) -> Iterator[list[tuple[int, Json]]]:
        if not steps:
            yield given
            return
        (place, asked, number), *rest = steps
        ask = asked.asks[number]
        if ask.count:
            groups: Iterator[tuple[Json, ...]] = itertools.combinations(self._devices(), ask.count)
        else:
            all_of_them = tuple(device for device in self._devices() if self._could_serve(ask, device))
            groups = iter([all_of_them] if all_of_them else [])
        for group in groups:
            taken = list(given)
            for device in group:
                result = self._give(place, asked, number, device, taken)
                if result is None:
                    break
                taken.append((place, result))
            else:
                yield from self._choices(rest, taken)

    def _could_serve(self, ask: Ask, device: Json) -> bool:
        names = dict(ask.capacity)
        vendor = device["attributes"]["vendor"]["string"]
        if ask.device_class not in {"vgpu", f"vgpu-{vendor}"} or not names.keys() <= device["capacity"].keys():
            return False
        if whole(device["capacity"]["memory"]["value"]) < ask.least_gi * GI:
            return False
        amounts = [(consumed(entry, names.get(name)), entry) for name, entry in device["capacity"].items()]
        return all(amount is not None and amount <= whole(entry["value"]) for amount, entry in amounts)

    def _give(self, place: int, asked: Asked, number: int, device: Json, given: list[tuple[int, Json]]) -> Json | None:
        ask, name, shared = asked.asks[number], device["name"], device.get("allowMultipleAllocations", False)
        mine = [result for of, result in given if of == place]
        held = [result for result in self.held if not result.get("adminAccess")]
        here = [result for result in [*held, *(result for _, result in given)] if result["device"] == name]
        has_it = any(result["device"] == name for result in mine)
        is_taken = any("consumedCapacity" not in result for result in here)
        amounts = {key: consumed(entry, dict(ask.capacity).get(key)) for key, entry in device["capacity"].items()}
        if (
            not self._could_serve(ask, device)
            or (has_it and not shared if ask.admin else is_taken)
            or (device.get("taints") and not ask.tolerant)
            or not all(self._has(device, key, amount, here) for key, amount in amounts.items())
            or not self._counters_have(device, held, given)
            or not self._is_constrained(asked, device, mine)
        ):
            return None
        result: Json = {"request": f"r{number}", "driver": DRIVER, "pool": "n1", "device": name}
        if ask.admin:
            result["adminAccess"] = True
        if shared:
            result["consumedCapacity"] = {key: str(amount) for key, amount in amounts.items()}
        return result

    def _has(self, device: Json, name: str, amount: int | None, here: list[Json]) -> bool:
        before = sum(whole(result.get("consumedCapacity", {}).get(name, "0")) for result in here)
        return amount is not None and before + amount <= whole(device["capacity"][name]["value"])

    def _counters_have(self, device: Json, held: list[Json], given: list[tuple[int, Json]]) -> bool:
        drawn: dict[tuple[str, str], int] = {}
        by_name = {one["name"]: one for one in self._devices()}
        held_names = {result["device"] for result in held} & by_name.keys()
        for name in [*held_names, *(result["device"] for _, result in given), device["name"]]:
            for entry in by_name[name].get("consumesCounters") or []:
                for counter, value in entry["counters"].items():
                    key = entry["counterSet"], counter
                    drawn[key] = drawn.get(key, 0) + whole(value["value"])
        sets = [one for obj in self.slices for one in obj["spec"].get("sharedCounters") or []]
        rooms = {
            (one["name"], counter): whole(value["value"]) for one in sets for counter, value in one["counters"].items()
        }
        return all(amount <= rooms[key] for key, amount in drawn.items())

    def _is_constrained(self, asked: Asked, device: Json, mine: list[Json]) -> bool:
        if not asked.constraint:
            return True
        attributes = {one["name"]: one["attributes"] for one in self._devices()}
        values = [
            found.get(asked.attribute, found.get(asked.attribute.removeprefix(f"{DRIVER}/")))
            for found in (attributes[name] for name in [device["name"], *(result["device"] for result in mine)])
        ]
        if None in values:
            return False
        return (
            values[0] not in values[1:]
            if asked.constraint == "distinctAttribute"
            else values.count(values[0]) == len(values)
        )


AMOUNTS = {
    "memory": ["0", "1500k", "1Gi", "1Gi", "2Gi", "4Gi", "10Gi", "11Gi", "20Gi"],
    "cores": ["0", "1500m", "10", "25", "100", "150"],
    "shares": ["1", "1", "2"],
    f"{DRIVER}/memory": ["1Gi"],
    "other.example/memory": ["1Gi"],
}
NAMES = ["memory"] * 12 + ["cores"] * 6 + ["shares"] * 2 + [f"{DRIVER}/memory", "other.example/memory"]
ASKS = st.builds(
    Ask,
    device_class=st.sampled_from(["vgpu"] * 4 + ["vgpu-nvidia"] * 2 + ["vgpu-amd"]),
    capacity=st.lists(st.sampled_from(NAMES), max_size=2, unique=True).flatmap(
        lambda keys: st.tuples(*(st.tuples(st.just(key), st.sampled_from(AMOUNTS[key])) for key in keys))
    ),
    least_gi=st.sampled_from([0] * 6 + [4, 8, 12]),
    count=st.sampled_from([1] * 8 + [2, 2, 3, 0]),
    admin=st.sampled_from([False] * 7 + [True]),
    tolerant=st.booleans(),
)
CLAIMS = st.builds(
    Asked,
    asks=st.lists(ASKS, min_size=1, max_size=2).map(tuple),
    constraint=st.sampled_from([""] * 4 + ["matchAttribute", "distinctAttribute"]),
    attribute=st.sampled_from(["resource.kubernetes.io/numaNode", f"{DRIVER}/uuid", f"{DRIVER}/linkIsland"]),
)
RULES: list[Json] = [{}, {"exclusive": True}, {"coresScaling": 2.0, "memoryScaling": 1.5}]


@st.composite
def nodes(draw: st.DrawFn) -> tuple[list[Json], DeviceIndex]:
    """The slices of a node, and what is made of them for explanations."""
    devices = [
        facts(number, memory_bytes=draw(st.sampled_from([4, 10, 16])) * GI, numa_node=number % 2, healthy=healthy)
        for number, healthy in enumerate(draw(st.lists(st.sampled_from([True] * 4 + [False]), min_size=1, max_size=3)))
    ]
    mode = draw(st.sampled_from(MODES))
    policy = Policy(
        (OfferRule.model_validate(draw(st.sampled_from(RULES))),), draw(st.booleans()), mode.name == "counters"
    )
    spec = InventorySpec(cordoned_devices=draw(st.sampled_from([[], [], [], [devices[0].name]])))
    offer = Composer().compose("n1", NodeDevices(status(*devices), spec), mode, policy, [])
    slices = list(render(Pool(DRIVER, "n1", "uid", offer.slices, "v1"), 1))
    index = DeviceIndex()
    for obj in slices:
        index.note_slice(obj["metadata"]["name"], obj)
    index.note_withheld("n1", offer.withheld)
    return slices, index


@chances(60)
@given(nodes(), st.lists(st.lists(CLAIMS, min_size=1, max_size=2), min_size=1, max_size=4))
def test_an_explanation_finds_room_exactly_where_the_scheduler_does(
    node: tuple[list[Json], DeviceIndex], pods: list[list[Asked]]
) -> None:
    slices, index = node
    scheduler, ledger = Scheduler(slices), Ledger(DRIVER)
    for number, pod in enumerate(pods):
        views = [ClaimView.from_object(asked.render(f"{number}-{place}")) for place, asked in enumerate(pod)]
        found = explain(views, index.devices(), ledger.usage())
        allocated = scheduler.allocate(pod)
        assert {explanation.fits_on for explanation in found} == {("n1",) if allocated else ()}
        assert any(explanation.findings for explanation in found) == (allocated is None)
        for place, results in enumerate(allocated or []):
            scheduler.held += results
            view = ClaimView.from_object(pod[place].render(f"{number}-{place}", results))
            ledger.note(view.uid, view.allocation)
