"""What libvgpu takes the interfaces of a driver to be, looked at without it; the figures are printed at the end."""

import json
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from libvgpu.entrypoints import entry_points

if TYPE_CHECKING:
    from tests.gpu.conftest import Card, Figures

pytestmark = pytest.mark.gpu

MIB = 1 << 20
OF_THE_STUB = {"cuMemAlloc_v99", "cuMemAllocTomorrow"}
"""It has them to be refused."""


def _ask(card: "Card", code: str, *before: str, **environment: str) -> Any:
    return json.loads(card.bare("import json, os\n" + code, *before, **environment))


def _base(symbol: str) -> str:
    return symbol.removesuffix("_ptsz").removesuffix("_ptds").partition("_v")[0]


def test_functions_of_this_driver_that_take_memory_or_start_work_are_in_a_table(
    card: "Card", figures: "Figures"
) -> None:
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    code = "say(json.dumps([l.split()[-1] for l in open('/proc/self/maps') if 'libcuda.so' in l][0]))"
    command = ["nm", "-D", "--defined-only", _ask(card, code)]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    exported = {line.split()[-1].partition("@")[0] for line in lines}
    entries = entry_points()
    unknown = {name for name in exported if name.startswith("cu")} - {entry.symbol for entry in entries} - OF_THE_STUB
    hooked = {_base(entry.symbol) for entry in entries if entry.effect != "passed"}
    refused = {name for name in unknown if "Alloc" in name or "Launch" in name or _base(name) in hooked}
    figures.add("functions of this driver in no table", "none", ", ".join(sorted(unknown)) or "none")
    figures.add("of these refused", "none", ", ".join(sorted(refused)) or "none")
    assert refused == set()


def test_look_ups_give_what_the_driver_exports(card: "Card", figures: "Figures") -> None:
    symbols = [entry.symbol for entry in entry_points() if entry.effect not in ("passed", "refused")]
    version, strange = _ask(
        card,
        f"""
check(cuda.cuInit(0))
version, known, strange = c_int(), set(), []
check(cuda.cuDriverGetVersion(byref(version)))
for symbol in {symbols}:
    if hasattr(cuda, symbol):
        known.add(ctypes.cast(getattr(cuda, symbol), c_void_p).value)
for name in {sorted({_base(symbol) for symbol in symbols})}:
    for flags in (0, 2):
        found, status = c_void_p(), c_int()
        check(cuda.cuGetProcAddress_v2(name.encode(), byref(found), version, c_ulonglong(flags), byref(status)))
        if found.value is not None and found.value not in known:
            strange.append(name + (" per thread" if flags == 2 else ""))
say(json.dumps([version.value, strange]))
""",
    )
    figures.add("CUDA of the driver", "11.2 to 13", f"{version // 1000}.{version % 1000 // 10}")
    figures.add("looked up and exported by no name that is known", "none", ", ".join(strange) or "none")
    assert strange == []


def test_visible_devices_are_read_when_the_driver_starts(card: "Card", figures: "Figures") -> None:
    result = _ask(card, "os.putenv('CUDA_VISIBLE_DEVICES', '-1'); say(json.dumps(cuda.cuInit(0)))")
    figures.add("CUDA_VISIBLE_DEVICES set before cuInit hides", "100: no device", result)
    assert result == 100


def test_the_versions_of_nvmls_structures(card: "Card", figures: "Figures") -> None:
    found = _ask(
        card,
        """
start()
alloc(64 << 20)
class Memory2(ctypes.Structure):
    _fields_ = [("version", c_uint)] + [(name, c_ulonglong) for name in ("total", "reserved", "free", "used")]
handle, memory, old = card(), Memory2(version=ctypes.sizeof(Memory2) | 2 << 24), Memory()
result = nvml.nvmlDeviceGetMemoryInfo_v2(handle, byref(memory))
check(nvml.nvmlDeviceGetMemoryInfo(handle, byref(old)))
say(json.dumps({
    "v2": result, "totals": [memory.total, old.total], "reserved": memory.reserved, "used": [memory.used, old.used],
    "lists": [listed(f"nvmlDeviceGetComputeRunningProcesses_v{n}") == listed() for n in (2, 3)],
    "load": nvml.nvmlDeviceGetProcessUtilization(handle, None, byref(c_uint()), c_ulonglong(0)),
}))
""",
    )
    figures.add("nvmlDeviceGetMemoryInfo_v2, and what the driver reserves", "0", f"{found['v2']}, {found['reserved']}")
    figures.add("used bytes of nvmlMemory_v2 and v1", "v1 holds what is reserved too", found["used"])
    figures.add("lists of processes _v2 and _v3 are the same", "yes", found["lists"])
    figures.add("nvmlDeviceGetProcessUtilization", "0, 6 or 7 (to be asked with room)", found["load"])
    assert found["v2"] == 0
    assert found["totals"][0] == found["totals"][1]
    assert found["lists"] == [True, True]


def test_what_nvml_lists_in_a_pid_namespace(card: "Card", figures: "Figures") -> None:
    before = ("unshare", "--pid", "--fork", "--mount-proc")
    if shutil.which("unshare") is None or subprocess.run([*before, "true"], check=False, timeout=60).returncode != 0:
        pytest.skip("no pid namespace can be made here (root?)")
    early, own, pids = _ask(
        card,
        "early = own_bytes(); start(); alloc(64 << 20); say(json.dumps([early, own_bytes(), list(listed())]))",
        *before,
    )
    names = "itself" if own >= 0 else f"others: {pids}" if pids else "nobody"
    figures.add("in a pid namespace NVML names to a process", "itself, or nobody", names)
    assert early == -1
    assert own == -1 or own >= 64 * MIB


def test_memory_stays_as_long_as_a_child_has_the_driver_open(card: "Card", figures: "Figures") -> None:
    before = card.look()["used"]
    with card.start_bare("""
        import os
        start()
        alloc(512 << 20)
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.close(writing)
            os.read(reading, 1)  # until the parent has ended
            say(cuda.cuCtxSynchronize())
            wait_for_line()
            os._exit(0)
        say(os.getpid())
        os.read(reading, 1)
    """) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, signal.SIGKILL)
        result = int(parent.stdout.readline())
        kept = card.look()["used"] - before >= 512 * MIB
        parent.communicate("\n", timeout=60)
    figures.add("a call in a fork's child", "3: not initialized", result)
    figures.add("memory of a killed parent whose child lives is kept", "yes", "yes" if kept else "no")
    assert result != 0
    assert card.look()["used"] - before < 512 * MIB


def test_memory_that_another_process_has_opened(card: "Card", figures: "Figures") -> None:
    before = card.look()["used"]
    with card.start_bare("""
        start()
        handle = (ctypes.c_ubyte * 64)()
        check(cuda.cuIpcGetMemHandle(handle, alloc(512 << 20)))
        say(bytes(handle).hex())
        wait_for_line()
    """) as maker:
        assert maker.stdout is not None
        name = maker.stdout.readline().strip()
        with card.start_bare(f"""
            class Handle(ctypes.Structure):
                _fields_ = [("bytes", ctypes.c_ubyte * 64)]
            start()
            pointer, handle = Pointer(), Handle.from_buffer_copy(bytes.fromhex("{name}"))
            with Growth() as growth:
                check(cuda.cuIpcOpenMemHandle_v2(byref(pointer), handle, 1))
            say(json.dumps([growth.used, growth.own]))
            wait_for_line()
            say(json.dumps([used_bytes(), own_bytes()]))
            wait_for_line()
        """) as opener:
            assert opener.stdin is not None
            assert opener.stdout is not None
            used, own = json.loads(opener.stdout.readline())
            maker.communicate("\n", timeout=60)
            print(file=opener.stdin, flush=True)
            left, left_own = json.loads(opener.stdout.readline())
            opener.communicate("\n", timeout=60)
    kept = left - before >= 512 * MIB
    figures.add("opening 512 MiB of another process's adds on the card, in its own figure", "0, 0 or all", [used, own])
    figures.add("when its maker has ended it is kept, and who has it is charged", "yes, all", [kept, left_own])
    assert used <= 2 * MIB


def test_parts_of_a_card_have_names_of_their_own(card: "Card", figures: "Figures") -> None:
    names = _ask(
        card,
        """
import pynvml
pynvml.nvmlInit()
names = []
for index in range(pynvml.nvmlDeviceGetCount()):
    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
    try:
        parts = pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu) if pynvml.nvmlDeviceGetMigMode(gpu)[0] else 0
        names += [pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, n)) for n in range(parts)]
    except pynvml.NVMLError:
        pass
say(json.dumps(names))
""",
    )
    if not names:
        pytest.skip("no card in MIG mode")
    seen = _ask(
        card,
        """
check(cuda.cuInit(0))
raw, count = (ctypes.c_ubyte * 16)(), c_int()
check(cuda.cuDeviceGetCount(byref(count)))
check(cuda.cuDeviceGetUuid_v2(raw, 0))
say(json.dumps([count.value, bytes(raw).hex()]))
""",
        CUDA_VISIBLE_DEVICES=names[0],
    )
    figures.add("names of MIG parts", "MIG-, and what cuDeviceGetUuid_v2 says", [names[0], seen])
    assert seen == [1, names[0].removeprefix("MIG-").replace("-", "")]
