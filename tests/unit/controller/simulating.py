"""What a scheduler makes of slices, for the tests that let anything happen in any order. The GPUs have 16 GiB."""

import os
from collections.abc import Iterable, Iterator, Mapping

from hypothesis import settings

from api import names
from api.claims import Object
from api.slots import gpu_of, parse_slot
from controller.offers.counting import Usage
from controller.offers.forms import Amount, Form, Kind, amount_of, total
from controller.offers.migrating import Published, read_published
from tests.unit.controller.builders import GI

Claims = dict[str, tuple[str, Amount | None]]
"""Device and amount by claim; None: the device as it is."""

ROOM = Amount(16 * GI, names.CORES_PER_DEVICE)


def chances(examples: int) -> settings:
    """How long a state machine is tried: always the same examples; with VGPU_CHANCES=10, ten times as many others.

    A failure prints the steps that lead to it, as the code of a test.
    """
    factor = int(os.environ.get("VGPU_CHANCES", "0"))
    return settings(
        max_examples=examples * max(factor, 1),
        stateful_step_count=30,
        deadline=None,
        derandomize=not factor,
        print_blob=True,
    )


def usage(claims: Claims) -> dict[str, Usage]:
    """What the claims hold of each device."""
    found: dict[str, Usage] = {}
    for device, amount in claims.values():
        before = found.get(device, Usage())
        taken = amount or Amount()
        found[device] = Usage(
            before.memory_bytes + taken.memory_bytes,
            before.cores_percent + taken.cores_percent,
            before.shares + (amount is not None),
            before.claims + 1,
            before.whole + (amount is None),
            before.idle + (amount is not None and not amount.cores_percent),
        )
    return found


def schedule(claim: str, slices: Iterable[Object], claims: Claims, choice: int, *, all_of_it: bool) -> None:
    """Give a claim one of the devices that it could get, if there is any: all that is left of it, or a small share."""
    possible = list(_schedulable(slices, claims))
    if possible:
        name, amount = possible[choice % len(possible)]
        if amount is not None and not all_of_it:
            amount = Amount(min(amount.memory_bytes, GI), min(amount.cores_percent, 10))
        claims[claim] = (name, amount)


def fill(slices: Iterable[Object], claims: Claims) -> None:
    """Give claims all that a scheduler that knows these slices can give."""
    published = _known(slices)
    for form in published.forms.values():
        found = _free(form, published, claims)
        if found is not None:
            claims[f"filled-{len(claims)}"] = found


def _schedulable(slices: Iterable[Object], claims: Claims) -> Iterator[tuple[str, Amount | None]]:
    """Yield what a scheduler that knows these slices and all claims could allocate, and what is left of it."""
    published = _known(slices)
    for form in published.forms.values():
        found = _free(form, published, claims)
        if found is not None:
            yield found


def _known(slices: Iterable[Object]) -> Published:
    """Return what a scheduler makes of slices.

    It takes the newest generation of a pool, if that is complete by what its first slice says of it.
    """
    slices = list(slices)
    newest = max((obj["spec"]["pool"]["generation"] for obj in slices), default=0)
    pool = [obj for obj in slices if obj["spec"]["pool"]["generation"] == newest]
    pool.sort(key=lambda obj: str(obj["metadata"]["name"]))
    if not pool or len(pool) != pool[0]["spec"]["pool"]["resourceSliceCount"]:
        return Published()
    return read_published(pool)


def _free(form: Form, published: Published, claims: Claims) -> tuple[str, Amount | None] | None:
    """Return a device with what a claim can have of it (None: the device as it is); None: nothing."""
    held = [amount for device, amount in claims.values() if device == form.name]
    if form.kind is Kind.SHARED:
        left = form.amount - total(amount for amount in held if amount)
        is_free = None not in held and left.memory_bytes > 0 and left.cores_percent >= 0
        return (form.name, left) if is_free else None
    is_free = not held and (form.kind is not Kind.COUNTED or _counters_fit(form, published, claims))
    return (form.name, None) if is_free else None


def _counters_fit(form: Form, published: Published, claims: Claims) -> bool:
    taken = {device for device, _ in claims.values()}
    gpu = gpu_of(form.name)
    drawn = [
        other.amount
        for other in published.forms.values()
        if other.kind is Kind.COUNTED and gpu_of(other.name) == gpu and other.name in taken
    ]
    # Without its counter set a scheduler takes a pool for broken.
    return gpu in published.counters and (form.amount + total(drawn)).fits(published.counters[gpu])


def held_by_gpu(claims: Claims) -> Mapping[str, Amount]:
    """What the claims hold of each GPU."""
    found: dict[str, Amount] = {}
    for device, amount in claims.values():
        slot = parse_slot(device)
        taken = amount_of(slot) if slot else amount or ROOM
        found[gpu_of(device)] = found.get(gpu_of(device), Amount()) + taken
    return found


def assert_nothing_is_given_twice(claims: Claims) -> None:
    """Fail if claims hold more of a GPU than it has."""
    for gpu, taken in held_by_gpu(claims).items():
        assert taken.fits(ROOM), f"{gpu}: {taken}"
