"""The C programs that the tests of this folder run, compiled once per session against the core or for preloading."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCES = Path(__file__).parent / "c"
FLAGS = ["-std=c11", "-O1", "-g", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror"]
INCLUDES = [f"-I{ROOT / 'libvgpu'}", f"-I{ROOT / 'libvgpu' / 'include'}", f"-I{SOURCES}"]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library and its core into a folder of this session."""
    folder = tmp_path_factory.mktemp("libvgpu")
    command = ["make", "-s", "-C", str(ROOT / "libvgpu"), f"BUILD={folder}", "all", "core"]
    subprocess.run(command, check=True, timeout=120)
    return folder


@pytest.fixture(scope="session")
def core_program(built: Path) -> Callable[[str], Path]:
    """Compile a C program of this folder with the core alone."""

    def compile_program(name: str) -> Path:
        program = built / name
        if not program.exists():
            source = str(SOURCES / f"{name}.c")
            command = ["cc", *FLAGS, *INCLUDES, "-o", str(program), source, str(built / "libvgpu-core.a"), "-lpthread"]
            subprocess.run(command, check=True, timeout=60)
        return program

    return compile_program
