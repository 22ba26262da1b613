"""Code and programs as they come: every way to load a module, and a runtime that is linked statically."""

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from libvgpu.shares import read_books
from libvgpu.stub import change_settings, read_card
from tests.unit.libvgpu.conftest import FLAGS, INCLUDES, SANITIZE, SOURCES

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
LOADERS = {
    "cuModuleLoad": "cuda.cuModuleLoad(byref(handle), path)",
    "cuModuleLoadData": "cuda.cuModuleLoadData(byref(handle), image)",
    "cuModuleLoadDataEx": "cuda.cuModuleLoadDataEx(byref(handle), image, 0, None, None)",
    "cuModuleLoadFatBinary": "cuda.cuModuleLoadFatBinary(byref(handle), image)",
    "cuLibraryLoadData": "cuda.cuLibraryLoadData(byref(handle), image, None, None, 0, None, None, 0)",
    "cuLibraryLoadFromFile": "cuda.cuLibraryLoadFromFile(byref(handle), path, None, None, 0, None, None, 0)",
}


@pytest.mark.parametrize("function", LOADERS)
def test_code_is_charged_in_whatever_way_it_is_loaded_or_not_loaded(
    function: str, machine: "Machine", tmp_path: Path
) -> None:
    image = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry none() { ret; }\n"
    (tmp_path / "image.ptx").write_text(image, encoding="utf-8")
    change_settings(machine.card, module_bytes=40 * MIB)
    share = machine.share(100 * MIB)
    unload = "cuda.cuLibraryUnload" if "Library" in function else "cuda.cuModuleUnload"
    machine.run(f"""
        path, image = {str(tmp_path / "image.ptx")!r}.encode(), {image!r}.encode()
        start()
        def load():
            handle = c_void_p()
            return {LOADERS[function]}, handle
        (one, first), (two, _) = load(), load()
        assert (one, two) == (SUCCESS, SUCCESS)
        assert load()[0] == OUT_OF_MEMORY
        assert info()[0] == {20 * MIB}, info()
        check({unload}(first))
        assert info()[0] == {60 * MIB}, info()
    """)
    assert read_books(share).used_bytes == 0


@pytest.mark.no_sanitizer
def test_a_runtime_that_is_linked_statically_stays_within_the_share(machine: "Machine", tmp_path: Path) -> None:
    machine.share(20 * MIB)
    compile_ = ["cc", *FLAGS, *SANITIZE, *INCLUDES]
    part, archive, program = tmp_path / "runtime.o", tmp_path / "libruntime.a", tmp_path / "program"
    source = str(SOURCES / "static_runtime.c")
    subprocess.run([*compile_, "-fvisibility=hidden", "-c", "-o", str(part), source], check=True)
    subprocess.run(["ar", "rcs", str(archive), str(part)], check=True)
    whole = [str(SOURCES / "static_program.c"), str(archive), "-static-libgcc", "-ldl"]
    subprocess.run([*compile_, "-o", str(program), *whole], check=True)
    run = subprocess.run([program], env=machine.environment(), capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "20 2\n"
    assert read_card(machine.card).peak_bytes == 20 * MIB
