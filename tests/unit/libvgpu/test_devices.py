"""A process sees the cards that it has a share of and no other, in CUDA as in NVML, whatever else the machine has."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from libvgpu.stub import StubGPU, create_driver_root, read_card
from tests.unit.libvgpu.conftest import FLAGS, GPU, preloads

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
CARDS = [
    StubGPU(name=f"Stub {letter}", memory_bytes=1 << 30, uuid=f"GPU-00000000-0000-4000-8000-00000000000{letter}")
    for letter in "abcd"
]
LOOK = """
def cuda_devices():
    result, count = cuda.cuInit(0), c_int()
    if result != SUCCESS:
        return result
    check(cuda.cuDeviceGetCount(byref(count)))
    found = []
    for i in range(count.value):
        device, uuid = c_int(), (ctypes.c_ubyte * 16)()
        check(cuda.cuDeviceGet(byref(device), i))
        check(cuda.cuDeviceGetUuid_v2(uuid, device))
        found.append(f"{uuid[15]:x}")
    return "".join(found)

def nvml_devices():
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    check(nvml.nvmlInit_v2())
    count, found = c_uint(), []
    check(nvml.nvmlDeviceGetCount_v2(byref(count)))
    for i in range(count.value):
        handle, uuid = c_void_p(), ctypes.create_string_buffer(96)
        check(nvml.nvmlDeviceGetHandleByIndex_v2(i, byref(handle)))
        check(nvml.nvmlDeviceGetUUID(handle, uuid, 96))
        found.append(uuid.value.decode()[-1])
    return "".join(found)
"""


def _look(machine: "Machine", code: str = "print(cuda_devices(), nvml_devices())", **environment: str) -> str:
    """Run a program that looks for devices; return what it printed."""
    command = [sys.executable, "-c", "from gpu import *\n" + LOOK + textwrap.dedent(code)]
    variables = machine.environment() | environment
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


@pytest.fixture
def four_cards(machine: "Machine") -> "Machine":
    """Return a machine with four cards, and shares of the second and the last."""
    create_driver_root(machine.root, CARDS)
    machine.share(10 * MIB, name="last", device_uuid=CARDS[3].uuid)
    machine.share(30 * MIB, name="second", device_uuid=CARDS[1].uuid)
    return machine


def test_cuda_and_nvml_show_the_cards_with_a_share_in_one_order(four_cards: "Machine") -> None:
    assert _look(four_cards) == "bd bd"


def test_ordinals_mean_the_cards_with_a_share(four_cards: "Machine") -> None:
    four_cards.run(f"""
        start(0)
        assert info() == ({30 * MIB}, {30 * MIB}), info()
        alloc({30 * MIB})
        start(1)
        assert info() == ({10 * MIB}, {10 * MIB}), info()
        alloc({10 * MIB})
        assert cuda.cuDeviceGet(byref(c_int()), 2) == 101
        bus, device = ctypes.create_string_buffer(32), c_int(-1)
        check(cuda.cuDeviceGetPCIBusId(bus, 32, 1))
        check(cuda.cuDeviceGetByPCIBusId(byref(device), bus))
        assert device.value == 1
    """)
    peaks = [read_card(four_cards.root / "dev" / f"nvidia{i}").peak_bytes for i in range(4)]
    assert peaks == [0, 30 * MIB, 0, 10 * MIB]


@pytest.mark.parametrize(
    ("setting", "seen"),
    [
        ("0", "b"),
        ("1", "d"),
        ("1,0", "db"),
        ("1,2,0", "d"),
        ("2", "100"),
        ("", "100"),
        ("-1", "100"),
        (CARDS[3].uuid, "d"),
        (CARDS[0].uuid, "100"),
        (f"{CARDS[3].uuid.upper().replace('GPU', 'gpu')},{CARDS[1].uuid}", "db"),
    ],
)
def test_the_setting_of_the_application_chooses_among_its_own_cards(
    setting: str, seen: str, four_cards: "Machine"
) -> None:
    look = "import os; print(cuda_devices(), os.environ['CUDA_VISIBLE_DEVICES'] == SETTING)"
    output = _look(four_cards, look.replace("SETTING", repr(setting)), CUDA_VISIBLE_DEVICES=setting)
    assert output == f"{seen} True"


def test_the_environment_stays_as_it_is(four_cards: "Machine") -> None:
    output = _look(
        four_cards,
        """
        import subprocess
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_char_p
        check(cuda.cuInit(0))
        print(libc.getenv(b"CUDA_VISIBLE_DEVICES"), libc.getenv(b"VGPU_SHARES_DIR") is not None)
        print("CUDA_VISIBLE_DEVICES" in subprocess.run(["env"], capture_output=True, text=True).stdout)
        """,
    )
    assert output == "None True\nFalse"


@pytest.mark.parametrize("setting", [None, "0"])
def test_what_another_thread_sets_while_the_driver_starts_is_kept(
    setting: str | None, four_cards: "Machine", tmp_path: Path
) -> None:
    library = tmp_path / "libenvironment.so"
    source = Path(__file__).parent / "c" / "environment.c"
    subprocess.run(["cc", *FLAGS, "-fPIC", "-shared", "-o", library, source], check=True, timeout=60)
    own = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    output = _look(
        four_cards,
        """
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_char_p
        check(cuda.cuInit(0))
        print(libc.getenv(b"SET_MEANWHILE"), libc.getenv(b"CUDA_VISIBLE_DEVICES"))
        """,
        LD_PRELOAD=preloads(library, four_cards.library),
        **own,
    )
    assert output == f"b'yes' {setting and setting.encode()!r}"


def test_where_all_cards_have_a_share_the_drivers_own_reading_counts(machine: "Machine") -> None:
    create_driver_root(machine.root, CARDS[:2])
    machine.share(10 * MIB, name="a", device_uuid=CARDS[0].uuid)
    machine.share(10 * MIB, name="b", device_uuid=CARDS[1].uuid)
    assert _look(machine, "print(cuda_devices())", CUDA_VISIBLE_DEVICES="1,0") == "ba"


def test_nvml_finds_a_card_by_any_name_only_with_a_share(four_cards: "Machine") -> None:
    output = _look(
        four_cards,
        f"""
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        check(nvml.nvmlInit_v2())
        handle, found = c_void_p(), []
        for uuid in {[card.uuid for card in CARDS]}:
            found.append(nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), byref(handle)))
        for bus in (0x17, 0x27, 0x37, 0x47):
            name = b"00000000:%02x:00.0" % bus
            found.append(nvml.nvmlDeviceGetHandleByPciBusId_v2(name, byref(handle)))
            assert nvml.nvmlDeviceGetHandleByPciBusId(name, byref(handle)) == found[-1]
        check(nvml.nvmlDeviceGetHandleByIndex_v2(0, byref(handle)))
        for kind in (1, 2):  # of load
            found.append(nvml.nvmlDeviceGetSamples(handle, kind, c_ulonglong(0), None, None, None))
        print(*found)
        """,
    )
    assert output == "6 0 6 0 6 0 6 0 3 3"


def test_a_program_that_cleared_its_environment_has_none_after_the_drivers_start(four_cards: "Machine") -> None:
    code = """
        nvml_devices()
        c_library = ctypes.CDLL(None)
        c_library.getenv.restype = ctypes.c_char_p
        c_library.clearenv()
        cuda.cuInit(0)
        print(c_library.getenv(b"CUDA_VISIBLE_DEVICES"))
    """
    assert _look(four_cards, code) == "None"


PARENT = StubGPU("Stub 20G", 20 << 30, "GPU-00000000-0000-4000-8000-0000000000aa", mig=True)
PARTS = [
    StubGPU("Stub 20G MIG 1g.5gb", 5 << 30, f"MIG-00000000-0000-4000-8000-0000000000b{i}", parent_uuid=PARENT.uuid)
    for i in (1, 2)
]


def test_a_share_of_a_part_of_a_card_is_seen_as_the_part_and_its_card_and_no_other_part(machine: "Machine") -> None:
    create_driver_root(machine.root, [GPU, PARENT, *PARTS])
    machine.share(64 * MIB, device_uuid=PARTS[1].uuid)
    output = machine.run("""
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        check(nvml.nvmlInit_v2())
        count, index, card, part = c_uint(), c_uint(), c_void_p(), c_void_p()
        memory, uuid = (c_ulonglong * 3)(), ctypes.create_string_buffer(96)
        check(nvml.nvmlDeviceGetCount_v2(byref(count)))
        check(nvml.nvmlDeviceGetHandleByIndex_v2(0, byref(card)))
        check(nvml.nvmlDeviceGetIndex(card, byref(index)))
        print(count.value, index.value, nvml.nvmlDeviceGetMemoryInfo(card, memory))
        for number in range(3):
            result = nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, number, byref(part))
            if result == SUCCESS:
                check(nvml.nvmlDeviceGetUUID(part, uuid, 96))
                check(nvml.nvmlDeviceGetMemoryInfo(part, memory))
                result = uuid.value.decode(), memory[0]
            print(number, result)
        start()
        alloc(40 << 20)
        print(try_alloc(30 << 20)[0], info()[1])
        check(cuda.cuDeviceGetCount(byref(count)))
        check(nvml.nvmlDeviceGetMemoryInfo(part, memory) if part.value else 0)
        print(count.value)
    """)
    part = f"1 ('{PARTS[1].uuid}', {64 * MIB})"
    assert output == f"1 0 4\n0 6\n{part}\n2 6\n2 {64 * MIB}\n1\n"
    assert read_card(machine.root / "dev" / "nvidia3").peak_bytes == 40 * MIB
