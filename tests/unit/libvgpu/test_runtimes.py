"""What programs that are built on a runtime or a framework ask of the driver, the way these do."""

import re
from typing import TYPE_CHECKING

import pytest

from libvgpu.entrypoints import entry_points
from libvgpu.shares import read_books
from libvgpu.stub import change_settings
from tests.unit.libvgpu.conftest import ROOT

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
_ABI = ROOT / "libvgpu/include/abi/cuda_api.def"


def test_each_version_of_each_hooked_function_is_handed_out_by_its_name(machine: "Machine") -> None:
    """A runtime asks for all of them when it starts, each by the version of CUDA that brought it."""
    lines = re.findall(r"^CUDA_API\w*\((\w+), (\w+), (\d+),", _ABI.read_text(encoding="utf-8"), re.MULTILINE)
    hooked = {entry.symbol for entry in entry_points() if entry.effect != "passed"}
    bases = {base for symbol, base, _ in lines if symbol in hooked}
    asked = sorted({(base, int(since)) for _, base, since in lines if base in bases})
    assert ("cuCtxSynchronize", 13000) in asked
    machine.share(MIB)
    output, errors = machine.refused(f"""
        start()
        for name, version in {asked}:
            for flags in (0, 2):
                pointer, status = c_void_p(), c_int(-1)
                ways = c_ulonglong(flags), byref(status)
                check(cuda.cuGetProcAddress_v2(name.encode(), byref(pointer), version, *ways))
                if not pointer.value or status.value:
                    print(name, version, flags, status.value)
    """)
    assert (output, errors) == ("", "")


def test_who_waits_for_a_context_that_is_not_current_has_paid_its_work(machine: "Machine") -> None:
    share = machine.share(MIB)
    with machine.start("""
        context = start()
        launch(kernel(), 50_000_000)
        check(cuda.cuCtxSetCurrent(None))
        assert cuda.cuCtxSynchronize_v2(None) == 201
        check(cuda.cuCtxSynchronize_v2(context))
        say("waited")
        input()
    """) as program:
        assert program.stdout
        assert program.stdout.readline() == "waited\n"
        assert read_books(share).gpu_time_ns >= 50_000_000
        program.communicate("\n")
    assert program.returncode == 0


def test_a_tool_that_the_driver_loads_while_it_starts_may_start_it_too(machine: "Machine") -> None:
    machine.share(MIB)
    machine.run("""
        import faulthandler
        faulthandler.dump_traceback_later(50, exit=True)
        Action = ctypes.CFUNCTYPE(None)

        class Between(ctypes.Structure):
            _fields_ = [("function", ctypes.c_char_p), ("before", Action), ("after", Action)]

        def inject():
            between.function = None
            check(cuda.cuInit(0))

        between, action = Between.in_dll(cuda, "vgpu_stub_between"), Action(inject)
        between.after = action
        between.function = b"cuInit"
        start()
        assert grab() == 1
    """)


RUNTIME = "6bd5fb6c5bf4e74a8987d93912fd9df9"
"""The private table by which the CUDA runtime gets at primary contexts, without cuDevicePrimaryCtxRetain."""


@pytest.mark.parametrize("named", [True, False])
def test_a_context_that_the_runtime_makes_in_its_own_way_is_charged(
    machine: "Machine", monkeypatch: pytest.MonkeyPatch, *, named: bool
) -> None:
    change_settings(machine.card, context_bytes=30 * MIB, module_bytes=10 * MIB)
    if not named:
        monkeypatch.setenv("VGPU_STUB_NVML_NAMELESS", "1")
    share = machine.share(100 * MIB, context_bytes=30 * MIB)
    machine.run(f"""
        table, context = ctypes.POINTER(c_void_p)(), c_void_p()
        check(cuda.cuInit(0))
        check(cuda.cuGetExportTable(byref(table), bytes.fromhex("{RUNTIME}")))
        check(ctypes.CFUNCTYPE(c_int, c_void_p, c_int)(table[2])(ctypes.addressof(context), 0))
        check(cuda.cuCtxSetCurrent(context))
        assert info()[0] == {70 * MIB}, info()
        pointer = alloc({50 * MIB})
        assert try_alloc({30 * MIB})[0] == OUT_OF_MEMORY
        kernel()
        assert info()[0] == {10 * MIB if named else 20 * MIB}, info()
        check(cuda.cuDevicePrimaryCtxReset_v2(0))
        start()
        assert info()[0] == {70 * MIB}, info()
    """)
    assert read_books(share).used_bytes == 0
