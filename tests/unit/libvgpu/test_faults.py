"""Every driver call fails once, at each place where the library makes one: the books still say what the card holds.

A fault on "*" counts all calls of the driver, the library's own questions among them. So each hook is driven through
the failure of every call that it makes, one after the other, until there is no further call to fail.
"""

from typing import TYPE_CHECKING

import pytest

from libvgpu.entrypoints import entry_points
from libvgpu.shares import read_books
from libvgpu.stub import change_settings
from tests.unit.libvgpu.faultscenarios import HELPERS, SCENARIOS, named

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20

DRIVE = """
import os, pathlib
from libvgpu.stub import clear_faults, inject_fault, read_card
from libvgpu.shares import read_books
CARD, SHARE = pathlib.Path("CARD_PATH"), pathlib.Path("SHARE_PATH")
held = []

def take(release, function, *arguments):
    # Returns whether it worked; what worked will be released.
    worked = function(*arguments) == SUCCESS
    if worked and release is not None:
        held.append(release)
    return worked

def exact():
    check(cuda.cuCtxSetCurrent(context))
    synchronize()
    info()  # pools that were synchronised give back
    used = read_books(SHARE).used_bytes
    mine = [process for process in read_card(CARD).processes if process.pid == os.getpid()]
    assert used == sum(process.memory_bytes for process in mine), (where, used, mine)
    if not held:
        assert read_books(SHARE).host_bytes == sum(process.host_bytes for process in mine) == 0, where
    return used

def release_all():
    # The first attempt may meet the fault; the second does not.
    while held:
        release = held.pop()
        if release() != SUCCESS:
            assert release() == SUCCESS, where

def failed():
    # Whether a call has met the fault.
    return clear_faults(CARD) == 0

def drive(v):
    global where
    for nth in range(1, 100):
        where, met = (v, nth, "taking"), False
        inject_fault(CARD, "*", nth, 999)
        use(v)
        met |= failed()
        exact()
        release_all()
        after()
        assert exact() == at_rest, (where, exact(), at_rest)
        where = v, nth, "releasing"
        use(v)
        inject_fault(CARD, "*", nth, 999)
        release_all()
        met |= failed()
        after()
        assert exact() == at_rest, (where, exact(), at_rest)
        if not met:
            return
    raise AssertionError((v, "makes more than 100 calls of the driver"))

where = "start"
"""


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_books_are_exact_whichever_call_of_the_driver_fails(name: str, machine: "Machine") -> None:
    scenario = SCENARIOS[name]
    share = machine.share(128 * MIB, **scenario.limits)
    change_settings(machine.card, context_bytes=10 * MIB, module_bytes=MIB)
    use = "\n".join(f"    {line}" for line in scenario.use.strip().splitlines())
    functions = f"MIB = {MIB}\ndef use(v):\n{use}\ndef after():\n    {scenario.after}\n"
    drive = DRIVE.replace("CARD_PATH", str(machine.card)).replace("SHARE_PATH", str(share))
    begin = f"{scenario.setup}\nuse({scenario.variants[0]!r})\nrelease_all()\nafter()\nat_rest = exact()\n"
    machine.run(
        "\n".join((drive, HELPERS, functions, begin, *(f"drive({variant!r})" for variant in scenario.variants)))
    )
    assert (read_books(share).used_bytes, read_books(share).host_bytes) == (0, 0)


def test_every_hook_that_charges_is_driven_through_failures() -> None:
    driven = named(HELPERS).union(*(scenario.functions for scenario in SCENARIOS.values()))
    hooked = {entry.symbol for entry in entry_points() if entry.effect in ("charged", "launched", "followed")}
    assert hooked - driven == set()
