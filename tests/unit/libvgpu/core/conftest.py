"""The core alone: built and linked without a front-end, run without a driver and with nothing preloaded."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.libvgpu.conftest import FLAGS, INCLUDES, ROOT, SANITIZE, SANITIZER_OPTIONS

SOURCES = Path(__file__).parent / "c"


@pytest.fixture(scope="session")
def core_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the core's objects, and nothing else."""
    folder = tmp_path_factory.mktemp("core")
    command = ["make", "-s", "-C", str(ROOT / "libvgpu"), f"BUILD={folder}", f"SANITIZE={' '.join(SANITIZE)}", "core"]
    subprocess.run(command, check=True, timeout=120)
    return folder / "libvgpu-core.a"


@pytest.fixture(scope="session")
def core_program(core_archive: Path) -> Callable[[str], Path]:
    """Compile a C program of this folder with the core alone."""

    def compile_program(name: str) -> Path:
        program = core_archive.parent / name
        if not program.exists():
            command = ["cc", *FLAGS, *SANITIZE, *INCLUDES, f"-I{SOURCES}", "-o", str(program)]
            sources = [str(SOURCES / f"{name}.c"), str(core_archive), "-lpthread"]
            subprocess.run([*command, *sources], check=True, timeout=60)
        return program

    return compile_program


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return what a process is started with whose shares lie in the test's folder."""
    inherited = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return {**inherited, **SANITIZER_OPTIONS, "VGPU_SHARES_DIR": str(tmp_path / "shares")}
