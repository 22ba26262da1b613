"""What `make release` has built: for both processors, for old C libraries, and the same on every machine."""

import hashlib
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ZIG = os.environ.get("VGPU_ZIG", "")
MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine of elf.h

pytestmark = pytest.mark.skipif(not ZIG, reason="make release runs these")


def _library(architecture: str) -> Path:
    return ROOT / "build" / "release" / architecture / "libvgpu.so"


def _symbols(path: Path, which: str) -> list[str]:
    text = subprocess.run(["nm", "-D", which, path], capture_output=True, text=True, check=True).stdout
    return sorted(line.split()[-1] for line in text.splitlines())


@pytest.mark.parametrize("architecture", MACHINES)
def test_the_library_is_for_its_processor_and_for_every_c_library_since_2_17(architecture: str) -> None:
    library = _library(architecture)
    header = library.read_bytes()[:20]
    assert (header[:4], int.from_bytes(header[18:20], "little")) == (b"\x7fELF", MACHINES[architecture])
    wanted = re.findall(r"@GLIBC_([\d.]+)", "\n".join(_symbols(library, "--undefined-only")))
    assert max(tuple(map(int, version.split("."))) for version in wanted) <= (2, 17)
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
    assert [name for name in needed if not name.startswith(("libc.so.", "libdl.so.", "ld-linux-"))] == []


def test_both_export_the_same_as_the_library_of_a_checkout() -> None:
    exported = [_symbols(_library(architecture), "--defined-only") for architecture in MACHINES]
    assert exported[0] == exported[1] == _symbols(ROOT / "build" / "libvgpu.so", "--defined-only")


@pytest.mark.parametrize("architecture", MACHINES)
def test_another_folder_builds_the_same_file(architecture: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "libvgpu", tmp_path / "elsewhere", ignore=shutil.ignore_patterns("__pycache__", "stub"))
    compiler = f"CC={ZIG} -target {architecture}-linux-gnu.2.17"
    command: list[str | Path] = [
        "make",
        "--silent",
        "-C",
        tmp_path / "elsewhere",
        compiler,
        "CFLAGS=-O2 -g0",
        f"BUILD={tmp_path}/out",
        "all",
    ]
    subprocess.run(command, check=True, timeout=250)
    hashes = {
        hashlib.sha256(path.read_bytes()).hexdigest() for path in (_library(architecture), tmp_path / "out/libvgpu.so")
    }
    assert len(hashes) == 1


@pytest.mark.parametrize("architecture", MACHINES)
def test_a_wheel_says_where_it_runs_and_holds_the_library(architecture: str) -> None:
    (wheel,) = (ROOT / "dist").glob(f"dra_driver_vgpu-*-py3-none-manylinux_2_17_{architecture}.whl")
    held = zipfile.ZipFile(wheel).read("libvgpu/_native/libvgpu.so")
    assert held == _library(architecture).read_bytes()
