"""A tenant who wants more than his share: programs that try one way around it, and containers to try it in."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from libvgpu.shares import Limits, Policy, create_share
from libvgpu.stub import StubGPU, create_driver_root, library_directory, read_card

GPU = StubGPU(name="Stub 10G", memory_bytes=10 << 30, uuid="GPU-00000000-0000-4000-8000-000000000001")
MIB = 1 << 20
LIMIT = 64 * MIB
SOURCES = Path(__file__).parent / "c"
PREAMBLE = (
    f"""
import ctypes, json, os, sys, traceback
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from gpu import *
MIB, LIMIT = {MIB}, {LIMIT}
libc = ctypes.CDLL(None, use_errno=True)
SHARE = "/run/vgpu/shares/claim-0"

def forge(folder):
    # A share of a TiB.
    os.makedirs(folder, exist_ok=True)
    limits = bytearray(open(SHARE + "/limits", "rb").read())
    limits[24:32] = (1 << 40).to_bytes(8, "little")
    books = open(SHARE + "/books", "rb").read(64)
    for name, content in (("limits", limits), ("books", books)):
        open(folder + "/" + name, "wb").write(content)
    os.truncate(folder + "/books", 266240)

def mount(source, target, kind=None, flags=0):
    names = [name and os.fsencode(name) for name in (source, target, kind)]
    if libc.mount(*names, ctypes.c_ulong(flags), None) != 0:
        raise OSError(ctypes.get_errno(), "mount")

BIND, REMOUNT_READ_ONLY = 4096, 4096 | 32 | 1

def attempt(code):
    """
    "'Run one program in a child that sees the share; return how it ended, what it printed, who it was.'"
    """
    pipes = os.pipe(), os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        for descriptor, (_, write) in enumerate(pipes, 1):
            os.dup2(write, descriptor)
        status = 1
        try:
            assert libc.unshare(0x20000) == 0
            mount("none", "/mnt", "tmpfs")
            mount("none", "/run", "tmpfs")
            os.makedirs(SHARE)
            for name in ("limits", "books"):
                open(SHARE + "/" + name, "w").close()
                mount(STATE + "/shares/claim-0/" + name, SHARE + "/" + name, flags=BIND)
            mount(None, SHARE + "/limits", flags=REMOUNT_READ_ONLY)
            exec(code, globals())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    for _, write in pipes:
        os.close(write)
    said = [open(read).read() for read, _ in pipes]
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), *said, pid]
"""
)

# What a container runtime does by the CDI specs of a claim and of a GPU, in a mount namespace of its own.
_MOUNTS = """
set -e
mount -t tmpfs none /mnt
mkdir -p /mnt/lib /mnt/libw /mnt/etc /mnt/etcw /mnt/dev
mount -t overlay -o lowerdir=/usr/lib,upperdir=/mnt/lib,workdir=/mnt/libw overlay /usr/lib
mount -t overlay -o lowerdir=/etc,upperdir=/mnt/etc,workdir=/mnt/etcw overlay /etc
mount -t tmpfs none /run
mount --rbind /dev /mnt/dev
mount -t tmpfs none /dev
bind() { mkdir -p "${2%/*}"; touch "$2"; mount --bind "$1" "$2"; test -z "$3" || mount -o "remount,bind,$3" "$2"; }
for name in null zero urandom random full; do bind /mnt/dev/$name /dev/$name; done
cp "$STUB"/lib*.so.1 /usr/lib/x86_64-linux-gnu/
bind "$STATE/lib/libvgpu-test.so" /usr/lib/vgpu/libvgpu-test.so ro
bind "$CARD" /dev/nvidia0
bind "$STATE/preload" /etc/ld.so.preload ro
exec env -i PATH="$PATH" "$@"
"""


def _overlays(scratch: Path) -> bool:
    """Tell whether containers can be made here: root, and a kernel that lets us mount."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    script = (
        f"mount -t tmpfs none {scratch} && cd {scratch} && mkdir u w && "
        "mount -t overlay -o lowerdir=/etc,upperdir=u,workdir=w overlay /etc"
    )
    return subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, check=False).returncode == 0


@dataclass(frozen=True)
class Attempt:
    """How a tenant's program ended."""

    returncode: int
    stdout: str
    stderr: str
    peak_bytes: int
    """The most that it ever had of the card, by the card's own count."""


@dataclass(frozen=True)
class Container:
    """A container with a share of 64 MiB of a card of 10 GiB, and the mounts that the node agent asks for."""

    state: Path
    """The node agent's folder."""
    card: Path

    def attempts(self, programs: dict[str, str]) -> dict[str, Attempt]:
        """Run programs in the container, one after the other and each with mounts of its own.

        They run as root, with every right that the node's root has: more than a tenant should get. They start with the
        driver's functions (gpu.py) and nothing in the environment.
        """
        ways = {name: textwrap.dedent(program) for name, program in programs.items()}
        given = f"STATE, WAYS = {str(self.state)!r}, {ways!r}"
        code = f"{PREAMBLE}\n{given}\nprint(json.dumps({{name: attempt(WAYS[name]) for name in WAYS}}))"
        command = ["unshare", "-m", "--propagation", "private", "sh", "-c", _MOUNTS, "sh", sys.executable, "-c", code]
        environment = {**os.environ, "STATE": str(self.state), "CARD": str(self.card), "STUB": str(library_directory())}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
        peaks = {process.pid: process.peak_bytes for process in read_card(self.card).processes}
        return {
            name: Attempt(returncode, stdout, stderr, peaks.get(pid, 0))
            for name, (returncode, stdout, stderr, pid) in json.loads(run.stdout).items()
        }


@pytest.fixture(scope="module")
def container(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Container:
    """Return a container."""
    folder = tmp_path_factory.mktemp("container")
    (folder / "scratch").mkdir()
    if not _overlays(folder / "scratch"):
        pytest.skip("needs root and a kernel that mounts overlays in a namespace")
    create_driver_root(folder / "root", [GPU])
    state = folder / "state"
    create_share(state / "shares" / "claim-0", Limits("claim-0", GPU.uuid, LIMIT, 100, 100, Policy.FIXED))
    (state / "lib").mkdir()
    shutil.copy(built / "libvgpu.so", state / "lib" / "libvgpu-test.so")
    (state / "preload").write_text("/usr/lib/vgpu/libvgpu-test.so\n", encoding="utf-8")
    return Container(state, folder / "root" / "dev" / "nvidia0")


@pytest.fixture(scope="session")
def hostile_program(built: Path) -> Callable[..., Path]:
    """Compile a C program of this folder."""

    def compile_program(name: str, *flags: str) -> Path:
        program = built / f"hostile-{name}{''.join(flags).replace('/', '_')[:40]}"
        if not program.exists():
            headers = f"-I{SOURCES.parents[4] / 'libvgpu' / 'include'}"
            command = ["cc", "-O1", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", headers, "-o", str(program)]
            subprocess.run([*command, str(SOURCES / f"{name}.c"), *flags, "-ldl"], check=True)
        return program

    return compile_program
