"""The gate in the place of the driver's libraries: it enforces the share where nothing was preloaded, or fails."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from api import names
from libvgpu.entrypoints import entry_points
from libvgpu.stub import change_settings, read_card
from libvgpu.stub.roots import LIBRARY_FOLDER

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
_BUILT_FOR = "libvgpu-000000000000.so"
_GRAB = """
import ctypes
try:
    cuda, nvml = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libnvidia-ml.so.1")
except OSError as error:
    raise SystemExit(f"no driver: {error}")
device, context, total, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_uint64()
started = cuda.cuInit(0), cuda.cuDeviceGet(ctypes.byref(device), 0)
assert started == (0, 0), started
assert cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device) == 0
result = cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device)
assert result == 0, result
grabs = [cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(400 << 20)) for _ in range(2)]
print(total.value >> 20, *grabs, nvml.nvmlInit_v2(), nvml.nvmlErrorString is not None)
"""

_GRAB_ALL = """
import ctypes
cuda, device, context, pointer = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuInit(0) == cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
assert cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device) == 0
count = 0
while cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(10 << 20)) == 0:
    count += 10
print(count)
"""


class Gate:
    """A folder like a container's: the gate under the usual names, library and driver under private ones.

    The private paths are patched for paths of the same length: a test cannot write to /usr/lib.
    """

    def __init__(self, machine: "Machine", folder: Path) -> None:
        self.machine = machine
        self.folder = folder
        private, driver = f"{folder}/", f"{folder}/driver"
        assert len(private) == len(names.CONTAINER_LIBRARY_DIR) + 1
        assert len(driver) == len(names.CONTAINER_DRIVER_DIR)
        for place in ("driver", "usual"):
            (folder / place).mkdir()
        for name in names.GATED_LIBRARIES:
            shutil.copy(machine.root / LIBRARY_FOLDER / name, folder / "driver" / name)
            self._patch(machine.library.parent / "gate" / name, folder / "usual" / name)
        self._patch(machine.library, self.library)

    @property
    def library(self) -> Path:
        return self.folder / _BUILT_FOR

    def run(self, program: str = _GRAB, **environment: str) -> str:
        """Run a program in a share of 600 MiB, with nothing preloaded; return what it says."""
        there = self.machine.environment()
        there.pop("LD_PRELOAD", None)
        there["LD_LIBRARY_PATH"] = str(self.folder / "usual")
        done = subprocess.run(
            [sys.executable, "-c", program], env={**there, **environment}, capture_output=True, text=True, check=False
        )
        return (done.stdout + done.stderr).strip()

    def _patch(self, source: Path, target: Path) -> None:
        content = source.read_bytes()
        for before, after in (
            (names.CONTAINER_DRIVER_DIR, f"{self.folder}/driver"),
            (f"{names.CONTAINER_LIBRARY_DIR}/{_BUILT_FOR}", str(self.library)),
        ):
            content = content.replace(before.encode() + b"/", after.encode() + b"/").replace(
                before.encode() + b"\0", after.encode() + b"\0"
            )
        target.write_bytes(content)
        target.chmod(0o755)


@pytest.fixture
def gate(machine: "Machine") -> Iterator[Gate]:
    machine.share(600 * MIB)
    folder = Path(tempfile.mkdtemp(prefix="", dir="/tmp"))
    short = folder.with_name(folder.name[:8])
    folder.rename(short)
    yield Gate(machine, short)
    shutil.rmtree(short)


@pytest.mark.no_sanitizer  # nothing is preloaded, so no runtime can come first
def test_a_share_is_enforced_though_nothing_was_preloaded(gate: Gate) -> None:
    assert gate.run() == "600 0 2 0 True"
    assert read_card(gate.machine.card).peak_bytes <= 600 * MIB


@pytest.mark.no_sanitizer  # the same
def test_a_share_is_enforced_once_where_the_library_was_preloaded_too(gate: Gate) -> None:
    assert gate.run(LD_PRELOAD=str(gate.library)) == "600 0 2 0 True"


def test_without_the_library_there_is_no_driver(gate: Gate) -> None:
    gate.library.unlink()
    assert gate.run().startswith(f"no driver: {gate.library}: cannot open shared object file")
    assert read_card(gate.machine.card).peak_bytes == 0


def test_a_library_that_may_not_be_opened_is_no_driver_either(gate: Gate) -> None:
    gate.library.write_bytes(b"")  # what a loader gets where a label or a mode denies it: no library
    assert gate.run().startswith("no driver: ")


def test_without_the_drivers_own_library_there_is_no_driver_and_no_endless_loop(gate: Gate) -> None:
    (gate.folder / "driver" / "libcuda.so.1").unlink()
    assert gate.run().startswith("no driver: ")


def test_the_gate_has_every_function_that_is_known(built: Path) -> None:
    command = ["nm", "-D", "--defined-only", str(built / "gate/libcuda.so.1")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    functions = {line.split()[-1] for line in lines if line.split()[-2] == "T"}
    assert functions == {entry.symbol for entry in entry_points()}


@pytest.mark.parametrize("name", names.GATED_LIBRARIES)
def test_the_gate_needs_the_library_and_the_driver_under_their_private_paths_and_nothing_else(
    built: Path, name: str
) -> None:
    command = ["readelf", "-d", "-W", str(built / "gate" / name)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"\(NEEDED\).*\[(.*)\]", text) == [
        f"{names.CONTAINER_LIBRARY_DIR}/{_BUILT_FOR}",
        f"{names.CONTAINER_DRIVER_DIR}/{name}",
    ]
    assert re.findall(r"\(SONAME\).*\[(.*)\]", text) == [name]


def test_a_program_that_links_the_driver_links_the_gate(built: Path, tmp_path: Path) -> None:
    source, program = tmp_path / "main.c", tmp_path / "module.so"
    source.write_text("int cuInit(unsigned); int start(void) { return cuInit(0); }\n", encoding="utf-8")
    flags = ["-shared", "-fPIC", "-Wl,--as-needed", f"-L{built / 'gate'}", "-l:libcuda.so.1"]
    subprocess.run(["cc", "-o", program, source, *flags], check=True)
    text = subprocess.run(["readelf", "-d", program], capture_output=True, text=True, check=True).stdout
    assert "[libcuda.so.1]" in text


@pytest.mark.no_sanitizer  # the gate brings the library where the sanitizer's runtime is not
def test_the_driver_that_an_image_brings_for_an_older_kernel_module_is_the_one_and_only(gate: Gate) -> None:
    compat = gate.folder / "compat"
    compat.mkdir()
    shutil.copy(gate.folder / "driver" / "libcuda.so.1", compat)
    program = f"{_GRAB}\nprint(*sorted({{line.split()[-1] for line in open('/proc/self/maps') if 'libcuda' in line}}))"
    path = f"{compat}:{gate.folder / 'usual'}"
    said = gate.run(program, LD_PRELOAD=str(gate.library), LD_LIBRARY_PATH=path)
    assert said.splitlines() == ["600 0 2 0 True", str(compat / "libcuda.so.1")]
    assert read_card(gate.machine.card).peak_bytes <= 600 * MIB


# It lists the process once there is a context, as a process that holds nothing.
_LIAR = """
#include <string.h>
#include <unistd.h>
struct info { unsigned int pid; unsigned long long bytes; unsigned int gpu, compute; };
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) { *device = (void *)uuid; return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *count, struct info *infos) {
    static unsigned int asked;
    memset(infos, 0, sizeof *infos);
    infos->pid = getpid();
    *count = asked++ > 0;
    return 0;
}
"""


@pytest.mark.no_sanitizer  # the same
def test_what_contexts_take_is_asked_of_the_nodes_nvml_and_not_of_another_that_a_program_brings(gate: Gate) -> None:
    liar = gate.folder / "libnvidia-ml.so.1"
    flags = ["-shared", "-fPIC", f"-Wl,-soname,{liar.name}", "-x", "c", "-"]
    subprocess.run(["cc", "-o", liar, *flags], input=_LIAR, text=True, check=True)
    change_settings(gate.machine.card, context_bytes=100 * MIB)
    assert gate.run(_GRAB_ALL, LD_PRELOAD=f"{gate.library}:{liar}") == "500"
    assert read_card(gate.machine.card).peak_bytes == 600 * MIB


_HAS = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
names = "cuEventElapsedTime_v2", "cuCtxSynchronize_v2", "cuEventElapsedTime", "cuInit"
print(*(hasattr(cuda, name) for name in names))
try:
    cuda.cuCtxSynchronize_v2
except AttributeError as error:
    print(error)
"""


@pytest.mark.no_sanitizer  # the same
def test_what_an_older_driver_lacks_is_not_found_in_the_gate(gate: Gate) -> None:
    assert gate.run(_HAS, LD_PRELOAD=str(gate.library)) == "True True True True"
    driver = gate.folder / "driver" / "libcuda.so.1"
    content = driver.read_bytes()
    for newer in (b"\0cuEventElapsedTime_v2\0", b"\0cuCtxSynchronize_v2\0"):
        content = content.replace(newer, newer.replace(b"cu", b"xx"))
    driver.write_bytes(content)
    has, why = gate.run(_HAS, LD_PRELOAD=str(gate.library)).splitlines()
    assert has == "False False True True"
    assert why == f"{driver}: undefined symbol: cuCtxSynchronize_v2"


# A plug-in that asks the C library itself for the driver, whoever else is in the process.
_PLUGIN = """
#include <dlfcn.h>
typedef int (*function)();
int grab(void) {
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW), *context;
    unsigned long long pointer;
    int count = 0, device = 0;
    ((function)dlsym(cuda, "cuInit"))(0);
    ((function)dlsym(cuda, "cuCtxCreate_v2"))(&context, 0, device);
    while (((int (*)(void *, unsigned long))dlsym(cuda, "cuMemAlloc_v2"))(&pointer, 100ul << 20) == 0)
        count++;
    return count;
}
"""


@pytest.mark.no_sanitizer  # the same
def test_a_plug_in_finds_the_gate_though_the_program_has_opened_a_driver_of_its_own(gate: Gate) -> None:
    # As Julia does, with a driver that is newer than the node's.
    compat, plugin = gate.folder / "compat", gate.folder / "libplugin.so"
    compat.mkdir()
    shutil.copy(gate.folder / "driver" / "libcuda.so.1", compat)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", plugin, "-x", "c", "-", "-ldl"], input=_PLUGIN, text=True, check=True
    )
    program = f"""
import ctypes, os
cuda, count = ctypes.CDLL({str(compat / "libcuda.so.1")!r}, os.RTLD_DEEPBIND | os.RTLD_NOW), ctypes.c_int()
assert cuda.cuInit(0) == cuda.cuDeviceGetCount(ctypes.byref(count)) == cuda.cuDriverGetVersion(ctypes.byref(count)) == 0
print(ctypes.CDLL({str(plugin)!r}, os.RTLD_DEEPBIND | os.RTLD_NOW).grab())
"""
    assert gate.run(program, LD_PRELOAD=str(gate.library)) == "6"
    assert read_card(gate.machine.card).peak_bytes == 600 * MIB


@pytest.mark.no_sanitizer  # a sanitizer's runtime refuses RTLD_DEEPBIND
@pytest.mark.parametrize("preloaded", [False, True])
def test_a_plug_in_that_looks_names_up_past_the_preload_finds_the_gate(preloaded: bool, gate: Gate) -> None:
    plugin = gate.folder / "libplugin.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", plugin, "-x", "c", "-", "-ldl"], input=_PLUGIN, text=True, check=True
    )
    program = f"import ctypes, os; print(ctypes.CDLL({str(plugin)!r}, os.RTLD_DEEPBIND | os.RTLD_NOW).grab())"
    environment = {"LD_PRELOAD": str(gate.library)} if preloaded else {}
    assert gate.run(program, **environment) == "6"
    assert read_card(gate.machine.card).peak_bytes == 600 * MIB
