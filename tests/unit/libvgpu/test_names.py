"""A name that looks like the driver's means what it means without the library, where it is not the driver's."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from libvgpu.stub import read_card
from tests.unit.libvgpu.conftest import FLAGS

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
PLUGIN = "int cuAllocateTable(void);\nint cuAllocateTable(void) { return 42; }\n"
GLOBAL = """
    c_library = ctypes.CDLL(None)
    c_library.dlsym.restype = ctypes.c_void_p
    c_library.dlsym.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    def anywhere(name, handle=None):  # RTLD_DEFAULT
        return c_library.dlsym(handle, name)
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """Compile a library of an application's own, with a function that could be a newer driver's."""
    source, library = tmp_path / "plugin.c", tmp_path / "libplugin.so"
    source.write_text(PLUGIN, encoding="utf-8")
    subprocess.run(["cc", *FLAGS, "-fPIC", "-shared", "-o", library, source], check=True, timeout=60)
    return library


def test_a_function_of_the_applications_own_is_its_own(machine: "Machine", plugin: Path) -> None:
    machine.share(MIB)
    machine.run(
        textwrap.dedent(GLOBAL)
        + f"""
assert ctypes.CDLL({str(plugin)!r}).cuAllocateTable() == 42
ctypes.CDLL({str(plugin)!r}, ctypes.RTLD_GLOBAL)
assert ctypes.CFUNCTYPE(c_int)(anywhere(b"cuAllocateTable"))() == 42
"""
    )


def test_a_function_of_the_drivers_that_the_library_does_not_know_is_refused_from_any_handle(
    machine: "Machine", tmp_path: Path
) -> None:
    machine.share(MIB)
    driver = machine.root / "usr/lib/x86_64-linux-gnu/libcuda.so.1"
    other = shutil.copy(driver, tmp_path / "libother.so")
    machine.run(
        textwrap.dedent(GLOBAL)
        + f"""
start()
ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)
next_one = -1
for handle in (None, next_one, cuda._handle, ctypes.CDLL({str(other)!r})._handle):
    function = ctypes.CFUNCTYPE(c_int, c_void_p, c_size_t)(anywhere(b"cuMemAllocTomorrow", handle))
    assert function(ctypes.addressof(Pointer()), {2 * MIB}) == NOT_SUPPORTED
"""
    )
    assert read_card(machine.card).peak_bytes == 0


def test_a_name_that_nobody_has_is_found_nowhere(machine: "Machine") -> None:
    machine.share(MIB)
    machine.run(
        textwrap.dedent(GLOBAL)
        + """
assert cuda and anywhere(b"cuMemAlloc_v2")
assert anywhere(b"cuMemAllocNever") is None
assert not hasattr(c_library, "cuMemAllocNever")
"""
    )


def test_where_there_is_no_driver_its_functions_are_not_found(machine: "Machine") -> None:
    machine.share(MIB)
    look = """
        import ctypes
        c_library = ctypes.CDLL(None)
        for name in ("cuInit", "cuMemAlloc_v2", "nvmlInit_v2"):
            try:
                found = getattr(c_library, name)
            except AttributeError as error:
                found = str(error).partition(": ")[2]
            print(found)
        ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)
        print(hasattr(c_library, "cuInit"))
    """
    command = [sys.executable, "-c", textwrap.dedent(look)]
    run = subprocess.run(command, env=machine.environment(), capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == (
        "undefined symbol: cuInit\nundefined symbol: cuMemAlloc_v2\nundefined symbol: nvmlInit_v2\nTrue\n"
    )
