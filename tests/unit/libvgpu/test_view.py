"""What a tenant sees of the GPU: the share in the place of the card, in CUDA, in NVML and in nvidia-smi."""

import subprocess
from typing import TYPE_CHECKING

from libvgpu import nvmlpoints
from libvgpu.stub import read_card

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20

NVML = """
nvml = ctypes.CDLL("libnvidia-ml.so.1")
check(nvml.nvmlInit_v2())
handle = c_void_p()
check(nvml.nvmlDeviceGetHandleByIndex_v2(0, byref(handle)))

def memory():
    values = (c_ulonglong * 3)()
    check(nvml.nvmlDeviceGetMemoryInfo(handle, values))
    return tuple(values)

def memory_v2():
    values = (c_ulonglong * 5)(2 << 24 | 40)
    check(nvml.nvmlDeviceGetMemoryInfo_v2(handle, values))
    return tuple(values)[1:]

def processes():
    count, infos = c_uint(64), (c_ulonglong * (64 * 3))()
    check(nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle, byref(count), infos))
    return [(infos[3 * i] & 0xFFFFFFFF, infos[3 * i + 1]) for i in range(count.value)]

def utilisation():
    values = (c_uint * 2)()
    check(nvml.nvmlDeviceGetUtilizationRates(handle, values))
    assert values[1] == 0  # of the memory bus: it is the whole card's
    return values[0]
"""


def test_cuda_shows_the_share_as_the_card(machine: "Machine") -> None:
    machine.share(100 * MIB)
    machine.run(f"""
        start()
        total, old = c_size_t(), c_uint()
        check(cuda.cuDeviceTotalMem_v2(byref(total), 0))
        check(cuda.cuDeviceTotalMem(byref(old), 0))
        assert (total.value, old.value) == ({100 * MIB}, {100 * MIB})
        alloc({30 * MIB})
        assert info() == ({70 * MIB}, {100 * MIB})
    """)


def test_nvml_shows_the_share_as_the_card_and_only_its_own_processes(machine: "Machine") -> None:
    machine.share(100 * MIB, container="mine")
    machine.share(200 * MIB, container="other")
    other = machine.start(f"start(); alloc({150 * MIB}); say('holding'); wait_for_line()", container="other")
    mine = machine.start(f"start(); alloc({30 * MIB}); say('holding'); wait_for_line()", container="mine")
    with other, mine:
        for program in (other, mine):
            assert program.stdout is not None
            assert program.stdout.readline() == "holding\n"
        output = machine.run(NVML + "print(memory(), memory_v2(), processes())", container="mine")
        assert output == (
            f"({100 * MIB}, {70 * MIB}, {30 * MIB}) ({100 * MIB}, 0, {70 * MIB}, {30 * MIB}) "
            f"[({mine.pid}, {30 * MIB})]\n"
        )
        mine.kill()
        mine.wait()
        output = machine.run(NVML + "print(memory(), processes())", container="mine")
        assert output == f"({100 * MIB}, {100 * MIB}, 0) []\n"
        other.communicate("\n", timeout=60)
    assert read_card(machine.card).peak_bytes == 180 * MIB


def test_utilisation_is_the_part_of_its_own_allowance_that_the_share_used(machine: "Machine") -> None:
    machine.share(100 * MIB, cores_percent=40)
    output = machine.run(
        NVML
        + """
import time
start()
function = kernel()
assert utilisation() == 0
for pause in (0.005, 0):  # about half of what the share may have, and all of it
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        launch(function, 1_000_000)
        time.sleep(pause)
    print(utilisation())
"""
    )
    half, whole = map(int, output.split())
    assert 0 < half <= 60
    assert whole > 60  # it has 40 % of the card


def test_nvidia_smi_shows_the_share(machine: "Machine") -> None:
    machine.share(100 * MIB)
    program = machine.start(f"start(); alloc({30 * MIB}); say('holding'); wait_for_line()")
    with program:
        assert program.stdout is not None
        assert program.stdout.readline() == "holding\n"
        table = subprocess.run(
            [machine.root / "usr/bin/nvidia-smi"],
            env=machine.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        program.communicate("\n", timeout=60)
    assert "30MiB / 100MiB" in " ".join(table.split())
    assert str(program.pid) in table


def test_nvml_is_refused_without_a_share(machine: "Machine") -> None:
    (machine.shares / "main").mkdir()
    output, errors = machine.refused(
        "nvml = ctypes.CDLL('libnvidia-ml.so.1'); print(nvml.nvmlInit(), nvml.nvmlInit_v2(), nvml.nvmlInitWithFlags(0))"
    )
    assert output == "4 4 4\n"
    assert errors == f"libvgpu: {machine.shares}/main: found no share, expected at least one; the GPU is refused\n"


def test_looking_by_nvml_takes_no_memory_of_the_share(machine: "Machine") -> None:
    machine.share(MIB)
    assert machine.run(NVML + "print(memory())") == f"({MIB}, {MIB}, 0)\n"
    assert read_card(machine.card).used_bytes == 0


def test_nvml_does_not_show_what_the_neighbours_do(machine: "Machine") -> None:
    machine.share(100 * MIB)
    output = machine.run(
        NVML
        + """
by_name = ctypes.CDLL(None)  # as a program that is linked with NVML finds it
value, numbers = c_uint(), (c_ulonglong * 64)()
for library in (nvml, by_name):
    assert library.nvmlDeviceGetEncoderUtilization(handle, byref(value), byref(value)) == 3
    assert library.nvmlDeviceGetDecoderUtilization(handle, byref(value), byref(value)) == 3
    assert library.nvmlDeviceGetBAR1MemoryInfo(handle, numbers) == 3
for kind in (1, 2):
    assert nvml.nvmlDeviceGetSamples(handle, kind, c_ulonglong(0), byref(value), byref(value), None) == 3
fields = (c_uint * 80)()  # two of 40 bytes: NVLink throughput, and what the driver asks for
fields[0], fields[10] = 138, 230
check(nvml.nvmlDeviceGetFieldValues(handle, 2, fields))
print(fields[7], fields[17])
for running in ("Graphics", "MPSCompute"):
    for version in ("", "_v2", "_v3"):
        value.value = 5
        check(getattr(nvml, f"nvmlDeviceGet{running}RunningProcesses{version}")(handle, byref(value), numbers))
        assert value.value == 0, running
"""
    )
    assert output == "3 0\n"


def test_what_nvml_refuses_cannot_be_had_by_looking_it_up(machine: "Machine") -> None:
    machine.share(100 * MIB)
    names = nvmlpoints.nvml_entry_points()
    refused = next(symbols for what, symbols in names.items() if what.startswith("Refused"))
    there = [name for name in refused if name in ("nvmlDeviceGetEncoderUtilization", "nvmlDeviceGetBAR1MemoryInfo")]
    assert len(there) == 2
    machine.run(
        NVML
        + f"""
library = ctypes.CDLL(None)
library.dlsym.restype = c_void_p
for name in {there}:
    found = library.dlsym(c_void_p(nvml._handle), name.encode())
    assert ctypes.CFUNCTYPE(c_int, c_void_p)(found)(None) == 3, name
"""
    )
