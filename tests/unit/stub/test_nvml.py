"""NVML and nvidia-smi of the stub driver, asked through pynvml and as people do."""

import re

from libvgpu.stub import inject_xid
from tests.unit.stub.conftest import MIB, SECOND_UUID, UUID, Machine, MakeMachine, wait_until

PYNVML = "import warnings; warnings.simplefilter('ignore'); from pynvml import *; nvmlInit();"


def test_pynvml_finds_the_cards_and_what_they_are(make_machine: MakeMachine) -> None:
    machine = make_machine(1024 * MIB, 2048 * MIB)
    said = machine.run(
        PYNVML
        + """
device = nvmlDeviceGetHandleByUUID("GPU-99999999-1111-4222-8333-444444444444")
say(count=nvmlDeviceGetCount(), driver=nvmlSystemGetDriverVersion(), cuda=nvmlSystemGetCudaDriverVersion(),
    name=nvmlDeviceGetName(device), uuid=nvmlDeviceGetUUID(device), index=nvmlDeviceGetIndex(device),
    minor=nvmlDeviceGetMinorNumber(device), memory=nvmlDeviceGetMemoryInfo(device).total,
    capability=nvmlDeviceGetCudaComputeCapability(device), hopper=nvmlDeviceGetArchitecture(device) == 9,
    bus=nvmlDeviceGetPciInfo(device).busId, mig=nvmlDeviceGetMigMode(device), numa=nvmlDeviceGetNumaNodeId(device))
nvmlShutdown()
"""
    )
    assert said == {
        "count": 2,
        "driver": "580.95.05",
        "cuda": 13000,
        "name": "Stub GPU 1",
        "uuid": SECOND_UUID,
        "index": 1,
        "minor": 1,
        "memory": 2048 * MIB,
        "capability": [9, 0],
        "hopper": True,
        "bus": "00000000:27:00.0",
        "mig": [0, 0],
        "numa": 0,
    }


def test_only_cards_whose_files_are_there_are_seen(make_machine: MakeMachine) -> None:
    machine = make_machine(1024 * MIB, 2048 * MIB)
    machine.card_file(0).unlink()
    said = machine.run(
        PYNVML
        + """
gpu = Driver()
device = nvmlDeviceGetHandleByIndex(0)
say(count=nvmlDeviceGetCount(), uuid=nvmlDeviceGetUUID(device), minor=nvmlDeviceGetMinorNumber(device),
    total=gpu.info()[1])
"""
    )
    assert said == {"count": 1, "uuid": SECOND_UUID, "minor": 1, "total": 2048 * MIB}


def test_memory_load_and_processes_are_what_the_card_counted(machine: Machine) -> None:
    worker = machine.start("""
        gpu = Driver()
        spin = gpu.kernel("spin")
        gpu.alloc(300 * MIB)
        gpu.launch(spin, 3_600_000_000_000)
        say(pid=os.getpid())
        wait_for_line()
    """)
    pid = worker.heard()["pid"]
    wait_until(lambda: machine.card().gpu_time_ns > 1_200_000_000)  # the load is that of the last second
    said = machine.run(
        PYNVML
        + """
device = nvmlDeviceGetHandleByIndex(0)
memory, newer = nvmlDeviceGetMemoryInfo(device), nvmlDeviceGetMemoryInfo(device, version=nvmlMemory_v2)
processes = nvmlDeviceGetComputeRunningProcesses(device)
loads = nvmlDeviceGetProcessUtilization(device, 0)
say(used=memory.used, free=memory.free, newer=newer.used, load=nvmlDeviceGetUtilizationRates(device).gpu,
    processes=[[one.pid, one.usedGpuMemory] for one in processes], loads=[[one.pid, one.smUtil] for one in loads],
    watts=nvmlDeviceGetPowerUsage(device) // 1000, celsius=nvmlDeviceGetTemperature(device, 0))
"""
    )
    assert said["used"] == said["newer"] == 300 * MIB
    assert said["free"] == 724 * MIB
    assert said["load"] > 50
    assert said["processes"] == [[pid, 300 * MIB]]
    ((busy, load),) = said["loads"]
    assert (busy, load > 50) == (pid, True)
    assert said["watts"] > 70
    assert said["celsius"] > 32
    worker.kill()
    said = machine.run(
        PYNVML
        + """
device = nvmlDeviceGetHandleByIndex(0)
say(used=nvmlDeviceGetMemoryInfo(device).used, processes=len(nvmlDeviceGetComputeRunningProcesses(device)))
"""
    )
    assert said == {"used": 0, "processes": 0}


def test_an_injected_xid_comes_out_of_the_event_set(machine: Machine) -> None:
    watcher = machine.start(
        PYNVML
        + """
device = nvmlDeviceGetHandleByIndex(0)
events = nvmlEventSetCreate()
nvmlDeviceRegisterEvents(device, nvmlEventTypeXidCriticalError, events)
say(watching=True)
event = nvmlEventSetWait_v2(events, 30000)
say(xid=event.eventData, type=event.eventType, uuid=nvmlDeviceGetUUID(event.device))
try:
    nvmlEventSetWait_v2(events, 50)
except NVMLError as error:
    say(error=str(error))
"""
    )
    watcher.heard()
    inject_xid(machine.card_file(), 79)
    assert watcher.finish() == [{"xid": 79, "type": 8, "uuid": UUID}, {"error": "Timeout"}]


def test_nvml_without_a_card_says_that_there_is_no_driver(machine: Machine) -> None:
    machine.card_file().unlink()
    said = machine.run("""
from pynvml import *
try:
    nvmlInit()
except NVMLError as error:
    say(error=str(error))
""")
    assert said == {"error": "Driver Not Loaded"}
    assert "couldn't communicate with the NVIDIA driver" in machine.program("nvidia-smi", expect=9)


# ---- nvidia-smi ----


def test_nvidia_smi_prints_the_table_that_people_know(machine: Machine) -> None:
    worker = machine.start("gpu = Driver(); gpu.alloc(300 * MIB); say(there=True); wait_for_line()")
    worker.heard()
    table = machine.program("nvidia-smi")
    lines = table.splitlines()
    assert {len(line) for line in lines if line} == {91}
    assert re.search(r"\| NVIDIA-SMI 580\.95\.05 +Driver Version: 580\.95\.05 +CUDA Version: 13\.0 +\|", table)
    assert re.search(r"\|   0  Stub GPU 0 +On  \|   00000000:17:00\.0 Off \|", table)
    assert re.search(r"\| +300MiB / 1024MiB \| +0% +Default \|", table)
    assert re.search(rf"\|    0   N/A  N/A +{worker.popen.pid}      C   .* 300MiB \|", table)


def test_nvidia_smi_lists_the_cards(make_machine: MakeMachine) -> None:
    machine = make_machine(1024 * MIB, 2048 * MIB)
    assert machine.program("nvidia-smi", "-L") == (
        f"GPU 0: Stub GPU 0 (UUID: {UUID})\nGPU 1: Stub GPU 1 (UUID: {SECOND_UUID})\n"
    )


def test_nvidia_smi_answers_queries_as_comma_separated_values(machine: Machine) -> None:
    fields = "--query-gpu=name,uuid,memory.total,memory.used,memory.free,utilization.gpu,driver_version"
    assert machine.program("nvidia-smi", fields, "--format=csv").splitlines() == [
        "name, uuid, memory.total [MiB], memory.used [MiB], memory.free [MiB], utilization.gpu [%], driver_version",
        f"Stub GPU 0, {UUID}, 1024 MiB, 0 MiB, 1024 MiB, 0 %, 580.95.05",
    ]
    plain = machine.program("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
    assert plain == "1024\n"


def test_nvidia_smi_refuses_a_field_that_it_does_not_know(machine: Machine) -> None:
    output = machine.program("nvidia-smi", "--query-gpu=memory.totals", "--format=csv", expect=2)
    assert output == 'Field "memory.totals" is not a valid field to query.\n\n'
