"""The core knows no vendor and no driver: what it includes, what it links, and who may know what."""

import re
import subprocess
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[4] / "libvgpu"
# A folder may include its own headers, and those of these.
LAYERS = {
    "core": {"vgpu"},
    "preload": {"core", "cuda", "nvml", "gate"},
    "cuda": {"core", "abi", "vgpu", "preload", "nvml"},
    "nvml": {"core", "abi", "vgpu", "preload", "cuda"},
}
# Between cuda/ and nvml/: the process's own figure there, the devices of the share here.
_INCLUDE = re.compile(r'^ *# *include "(\w+)/', re.MULTILINE)


@pytest.mark.parametrize("folder", LAYERS)
def test_a_folder_includes_only_what_lies_below_it(folder: str) -> None:
    files = [path for path in (LIBRARY / folder).iterdir() if path.suffix in (".c", ".h", ".S", ".def")]
    assert files
    found = {(path.name, other) for path in files for other in _INCLUDE.findall(path.read_text(encoding="utf-8"))}
    assert {(name, other) for name, other in found if other not in LAYERS[folder] | {folder}} == set()


def test_the_core_names_no_vendor() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (LIBRARY / "core").iterdir())
    assert re.findall(r"\bcu[A-Z]\w+|\bnvml\w*|\bCU[a-z]\w+|libcuda\S*", text) == []


@pytest.mark.no_emulator  # the same sources, and minutes of a cross linker
@pytest.mark.no_sanitizer  # its runtime would be missing too
def test_the_core_links_without_any_front_end(core_archive: Path) -> None:
    command = ["cc", "-shared", "-Wl,--no-undefined", "-o", str(core_archive.parent / "core-alone.so")]
    whole = ["-Wl,--whole-archive", str(core_archive), "-Wl,--no-whole-archive", "-lpthread"]
    run = subprocess.run([*command, *whole], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (0, "")
