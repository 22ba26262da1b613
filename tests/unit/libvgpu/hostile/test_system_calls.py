"""A tenant who bends the library's system calls, or its process: filters, descriptors, mappings, children."""

import mmap
from typing import TYPE_CHECKING

import pytest

from libvgpu.shares import read_books
from libvgpu.stub import read_card

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
LIMIT = 64 * MIB

# x86-64 and aarch64 numbers (asm/unistd.h).
FILTER = """
import ctypes, os, platform, struct
NUMBERS = {
    "fcntl": (72, 25), "mmap": (9, 222), "madvise": (28, 233), "openat": (257, 56), "lseek": (8, 62),
    "futex": (202, 98), "clone": (56, 220), "clone3": (435, 435), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "sched_yield": (24, 124), "readlinkat": (267, 78), "readlink": (89, 78), "getdents64": (217, 61),
    "clock_gettime": (228, 113), "getpid": (39, 172),
}

def deny(names, errno):
    # A filter that answers these calls with errno; 0: says that they were done.
    column = platform.machine() == "aarch64"
    code = [struct.pack("HBBI", 0x20, 0, 0, 0)]  # load the number
    for name in names:
        code += [struct.pack("HBBI", 0x15, 0, 1, NUMBERS[name][column]), struct.pack("HBBI", 6, 0, 0, 0x50000 | errno)]
    code += [struct.pack("HBBI", 6, 0, 0, 0x7FFF0000)]
    program = ctypes.create_string_buffer(b"".join(code))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(program)))
    assert libc.prctl(22, 2, header) == 0, ctypes.get_errno()
"""
CALLS = {
    "locks": ["fcntl"],
    "mappings": ["mmap"],
    "advice": ["madvise"],
    "files": ["openat"],
    "sizes": ["lseek"],
    "threads": ["clone", "clone3"],
    "futexes": ["futex"],
    "sleep": ["clock_nanosleep", "nanosleep", "sched_yield"],
    "links and folders": ["readlink", "readlinkat", "getdents64"],
    "process ids": ["getpid"],
}


@pytest.mark.parametrize(
    ("calls", "errno"),
    # A thread that is said to be there and is not is waited for without end.
    [(calls, errno) for calls in CALLS for errno in (1, 0) if (calls, errno) != ("threads", 0)],
)
def test_no_filter_of_system_calls_opens_the_share(calls: str, errno: int, machine: "Machine") -> None:
    machine.share(LIMIT)
    # Two processes: each for itself would stay within the limit even if it could not see the other.
    code = f"""
deny({CALLS[calls]!r}, {errno})
try:
    start()
    say(grab())
except AssertionError:
    say("refused")
wait_for_line()
"""
    programs = [machine.start(FILTER + code) for _ in range(2)]
    try:
        for program in programs:
            assert program.stdout is not None
            program.stdout.readline()  # what it got, or nothing: it may not have lived to say so
        assert read_card(machine.card).peak_bytes <= LIMIT
    finally:
        for program in programs:
            program.kill()
            program.communicate()


def test_an_afterwards_filter_opens_nothing_either(machine: "Machine") -> None:
    machine.share(LIMIT)
    names = sorted({name for calls in CALLS.values() for name in calls} - {"mmap", "futex"})
    output = machine.run(FILTER + f"\nstart()\nalloc({40 * MIB})\ndeny({names!r}, 1)\nsay(grab())\nos._exit(0)")
    assert output == "24\n"
    assert read_card(machine.card).peak_bytes == LIMIT


PROCESS = {
    "all descriptors closed": "os.closerange(3, 1 << 16)",
    "all descriptors replaced": "[os.dup2(os.open('/dev/null', os.O_RDWR), n) for n in range(3, 64)]",
    "a name of its own": "libc.prctl(15, b'systemd', 0, 0, 0)",
    "a session of its own": "os.setsid()",
    "traced by its parent": "os.fork() and os._exit(0); libc.ptrace(0, 0, 0, 0)",
    "not dumpable": "libc.prctl(4, 0, 0, 0, 0)",
    "little memory": "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))",
    "no descriptors": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))",
    "books writable by nobody": "os.chmod(books, 0)",
}


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("change", PROCESS)
def test_no_change_to_the_process_opens_the_share(change: str, moment: str, machine: "Machine") -> None:
    share = machine.share(LIMIT)
    setup = f"import ctypes, os; libc = ctypes.CDLL(None); books = {str(share / 'books')!r}; "
    begin = f"start(); alloc({40 * MIB})"
    order = [begin, PROCESS[change]] if moment == "after" else [PROCESS[change], begin]
    with machine.start("\n".join([setup, *order, "grab()", "os._exit(0)"])) as program:
        program.communicate(timeout=60)
    assert read_card(machine.card).peak_bytes <= LIMIT


def test_memory_that_a_child_keeps_open_after_its_parent_died_stays_charged(machine: "Machine") -> None:
    # The driver gives memory back when the device files are closed, and a child has them too: no handler of fork closed
    # them here.
    share = machine.share(LIMIT)
    parent = machine.start(f"""
        import ctypes, os, platform
        start()
        alloc({40 * MIB})
        number = 220 if platform.machine() == "aarch64" else 56
        if ctypes.CDLL(None).syscall(number, 17, 0, 0, 0, 0) == 0:
            os.read(0, 1)
            check(ctypes.CDLL("libnvidia-ml.so.1").nvmlInit_v2())  # takes a slot of its own
            os.write(1, b"asked\\n")
            os.read(0, 1)
        os._exit(0)
    """)
    with parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.wait(timeout=60)
        for asks in (False, True):
            if asks:
                print(file=parent.stdin, flush=True)
                assert parent.stdout.readline() == "asked\n"
            assert read_card(machine.card).used_bytes == read_books(share).used_bytes == 40 * MIB
            assert machine.run("start(); say(grab())") == "24\n"
        parent.stdin.close()
        assert parent.stdout.read() == ""  # until the child has ended
        assert machine.run("start(); say(grab())") == "64\n"


def test_the_limits_cannot_be_made_writable_in_memory(machine: "Machine") -> None:
    machine.share(LIMIT)
    output = machine.run(f"""
        import ctypes, os
        start()
        libc = ctypes.CDLL(None, use_errno=True)
        line = [line for line in open("/proc/self/maps") if line.rstrip().endswith("/limits")][0]
        address = int(line.split("-")[0], 16)
        assert line.split()[1] == "r--s", line
        say(libc.mprotect(c_void_p(address), c_size_t({mmap.PAGESIZE}), 3), os.strerror(ctypes.get_errno()))
        try:
            memory = os.open("/proc/self/mem", os.O_RDWR)
            os.pwrite(memory, b"x", address + 24)
        except OSError as error:
            say(error.strerror)
        say(grab())
    """)
    assert output == "-1 Permission denied\nInput/output error\n64\n"
    assert read_card(machine.card).peak_bytes == LIMIT


def test_a_share_whose_limits_page_is_replaced_in_memory_shows_in_the_drivers_figures(machine: "Machine") -> None:
    # Who writes the memory of his own process writes the library's too: out of reach from inside.
    share = machine.share(LIMIT)
    machine.run("""
        import ctypes
        start()
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = c_void_p
        line = [line for line in open("/proc/self/maps") if line.rstrip().endswith("/limits")][0]
        address = int(line.split("-")[0], 16)
        page = bytearray(ctypes.string_at(address, 4096))
        page[24:32] = (1 << 40).to_bytes(8, "little")
        assert libc.mmap(c_void_p(address), c_size_t(4096), 3, 0x32, -1, c_size_t(0)) == address
        ctypes.memmove(address, bytes(page), 4096)
        assert grab() == 256
    """)
    assert read_card(machine.card).peak_bytes == 256 * MIB
    assert read_books(share).peak_bytes > LIMIT  # the books of this one even say so
