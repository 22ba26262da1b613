"""The core alone: built and linked without a front-end, run without a driver and with nothing preloaded."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.libvgpu.conftest import FLAGS, INCLUDES, ROOT, SANITIZE, SANITIZER_OPTIONS, make_library

SOURCES = Path(__file__).parent / "c"


# ---- make aarch64: the core built for another processor, each program run by an emulator within bounds ----

EMULATOR = os.environ.get("VGPU_EMULATOR", "")
"""The command that runs a program; none in other runs."""
COMPILER = os.environ.get("VGPU_CC", "cc").split()
# Emulators map what they like: a program that goes astray must not take the machine with it.
_BOUNDS = "ulimit -v 6000000; ulimit -t 300"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what cannot be tried in an emulator."""
    skip = pytest.mark.skip(reason="cannot be tried in an emulator")
    for item in items:
        if EMULATOR and item.get_closest_marker("no_emulator"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def core_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the core's objects, and nothing else."""
    folder = tmp_path_factory.mktemp("core")
    if not EMULATOR:
        return make_library(folder, "core", "libvgpu-core.a", f"SANITIZE={' '.join(SANITIZE)}")
    options = [f"BUILD={folder}", f"CC={' '.join(COMPILER)}"]
    subprocess.run(["make", "-s", "-C", str(ROOT / "libvgpu"), *options, "core"], check=True)
    return folder / "libvgpu-core.a"


@pytest.fixture(scope="session")
def core_program(core_archive: Path) -> Callable[[str], Path]:
    """Compile a C program of this folder with the core alone."""

    def compile_program(name: str) -> Path:
        program = core_archive.parent / name
        if not program.exists():
            built = core_archive.parent / "emulated" / name if EMULATOR else program
            built.parent.mkdir(exist_ok=True)
            command = [*COMPILER, *FLAGS, *SANITIZE, *INCLUDES, f"-I{SOURCES}", "-o", str(built)]
            sources = [str(SOURCES / f"{name}.c"), str(core_archive), "-lpthread"]
            subprocess.run([*command, *sources], check=True)
            if EMULATOR:
                program.write_text(f'#!/bin/bash\n{_BOUNDS}\nexec {EMULATOR} {built} "$@"\n', encoding="utf-8")
                program.chmod(0o755)
        return program

    return compile_program


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return what a process is started with whose shares lie in the test's folder."""
    inherited = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return {**inherited, **SANITIZER_OPTIONS, "VGPU_SHARES_DIR": str(tmp_path / "shares")}
