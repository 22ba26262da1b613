"""The C programs that the tests of this folder run, compiled once per session for preloading."""

import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.local.caching import locked
from libvgpu.shares import Limits, Policy, create_share
from libvgpu.stub import StubGPU, create_driver_root, library_directory, stub_environment

ROOT = Path(__file__).parents[3]
SOURCES = Path(__file__).parent / "c"
FLAGS = ["-std=c11", "-O1", "-g", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror"]
INCLUDES = [f"-I{ROOT / 'libvgpu'}", f"-I{ROOT / 'libvgpu' / 'include'}", f"-I{SOURCES}"]


# ---- make sanitize: the library and its core with a sanitizer, whose runtime must come before all other libraries ----

SANITIZER = os.environ.get("VGPU_SANITIZE", "")
"""address, undefined or thread; none in other runs."""
BUILD = ROOT / "build" / (f"sanitized-{SANITIZER}" if SANITIZER else "")
SANITIZE = [f"-fsanitize={SANITIZER}", "-fno-sanitize-recover=all"] if SANITIZER else []
if SANITIZER == "thread":
    SANITIZE += ["-Wno-tsan"]  # it does not know the fence of a seqlock, whose writer is another process anyway
RUNTIMES = {"address": "libasan.so", "undefined": "libubsan.so", "thread": "libtsan.so"}
# Python leaks by design. Wrong sizes must fail as they do without a sanitizer, and children of threads must live.
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:handle_segv=0:handle_sigbus=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "die_after_fork=0:halt_on_error=1:handle_segv=0:handle_sigbus=0",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what cannot be tried beside a sanitizer."""
    skip = pytest.mark.skip(reason="cannot be tried beside a sanitizer")
    for item in items:
        if SANITIZER and item.get_closest_marker("no_sanitizer"):
            item.add_marker(skip)


def preloads(*libraries: Path) -> str:
    """Return LD_PRELOAD for libraries, with what a sanitizer needs."""
    if not SANITIZER:
        return ":".join(map(str, libraries))
    command = ["cc", f"-print-file-name={RUNTIMES[SANITIZER]}"]
    runtime = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()).resolve()
    return ":".join(map(str, (runtime, *libraries)))


def make_library(folder: Path, target: str, made: str, *options: str) -> Path:
    """Bring a target of the library's Makefile up to date, and return a copy of `made` in a folder of this session.

    All sessions and workers build in the same place: a busy machine takes minutes to compile everything.
    """
    with locked(BUILD / ".tests.lock"):
        subprocess.run(["make", "-s", "-C", str(ROOT / "libvgpu"), f"BUILD={BUILD}", *options, target], check=True)
        return Path(shutil.copy2(BUILD / made, folder / made))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of this session with the library, and the gate beside it."""
    folder = tmp_path_factory.mktemp("libvgpu")
    make_library(folder, "all", "libvgpu.so", f"SANITIZE={' '.join(SANITIZE)}")
    shutil.copytree(BUILD / "gate", folder / "gate")
    return folder


# ---- Programs inside a share, against the stub driver ----

GPU = StubGPU(name="Stub 10G", memory_bytes=10 << 30, uuid="GPU-00000000-0000-4000-8000-000000000001")
SECOND_GPU = StubGPU(name="Stub 6G", memory_bytes=6 << 30, uuid="GPU-00000000-0000-4000-8000-000000000002")


@dataclass(frozen=True)
class Machine:
    """A driver root with cards, and folders of shares: each stands for a container."""

    root: Path
    library: Path
    shares: Path

    @property
    def card(self) -> Path:
        """The file of the first card."""
        return self.root / "dev" / "nvidia0"

    def share(
        self, memory_bytes: int = 1 << 30, *, container: str = "main", name: str = "share", **limits: Any
    ) -> Path:
        """Create a share in a container; return its folder. A Fixed share of 100 % unless `limits` say otherwise."""
        values = {"device_uuid": GPU.uuid, "cores_percent": 100, "policy": Policy.FIXED, **limits}
        values.setdefault("ceiling_percent", values["cores_percent"])
        directory = self.shares / container / name
        create_share(directory, Limits(share=name, memory_bytes=memory_bytes, **values))
        return directory

    def environment(self, container: str = "main") -> dict[str, str]:
        """Return what a process in a container is started with."""
        return {
            **os.environ,
            **stub_environment(self.root),
            "VGPU_SHARES_DIR": str(self.shares / container),
            "LD_PRELOAD": preloads(self.library),
            **(SANITIZER_OPTIONS if SANITIZER else {}),
            "PYTHONPATH": str(Path(__file__).parent),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def remove_nvml(self) -> None:
        """Leave the driver without NVML, as in images that have none."""
        for library in self.root.glob("usr/lib/*/libnvidia-ml.so*"):
            library.unlink()

    def start(self, code: str, *, container: str = "main") -> "subprocess.Popen[str]":
        """Start a program in a container; it begins with `from gpu import *`. Its stderr is in the test's output."""
        command = [sys.executable, "-c", "from gpu import *\n" + textwrap.dedent(code)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self.environment(container), stdin=pipe, stdout=pipe, text=True)

    def run(self, code: str, *, container: str = "main") -> str:
        """Run a program in a container to its end; return what it printed."""
        return finish(self.start(code, container=container))

    def refused(self, code: str, *, container: str = "main") -> tuple[str, str]:
        """Run a program to its end; return what it printed and what was said on stderr."""
        command = [sys.executable, "-c", "from gpu import *\n" + textwrap.dedent(code)]
        run = subprocess.run(
            command, env=self.environment(container), capture_output=True, text=True, timeout=120, check=True
        )
        return run.stdout, run.stderr


READY = "say('ready'); wait_for_line()\n"
"""A program's first words, where the test says when it begins."""


def heard(program: "subprocess.Popen[str]") -> str:
    """Return the line that a program says next, "" at its end."""
    assert program.stdout is not None
    return program.stdout.readline().removesuffix("\n")


def go_on(program: "subprocess.Popen[str]") -> None:
    """Let a program go on behind wait_for_line()."""
    assert program.stdin is not None
    print(file=program.stdin, flush=True)


def finish(program: "subprocess.Popen[str]") -> str:
    """Wait until a program has ended well; return what it said until then."""
    with program:
        output, _ = program.communicate(timeout=500)  # the longest take ten seconds, and minutes on a busy machine
    assert program.returncode == 0
    return output


@pytest.fixture
def machine(tmp_path: Path, built: Path) -> Machine:
    """Return a machine with one card of 10 GiB and no share."""
    create_driver_root(tmp_path / "root", [GPU])
    (tmp_path / "shares").mkdir()
    return Machine(tmp_path / "root", built / "libvgpu.so", tmp_path / "shares")


def _compile_threads(built: Path, name: str) -> Path:
    program = built / name
    stub = [f"-L{library_directory()}", "-l:libcuda.so.1", "-lpthread"]
    source = SOURCES / f"{name}.c"
    subprocess.run(["cc", *FLAGS, *SANITIZE, *INCLUDES, "-o", str(program), str(source), *stub], check=True)
    return program


@pytest.fixture(scope="session")
def threads_program(built: Path) -> Path:
    """Compile the program with many threads."""
    return _compile_threads(built, "threads")


@pytest.fixture(scope="session")
def churn_program(built: Path) -> Path:
    """Compile the program whose threads make and destroy one of everything."""
    return _compile_threads(built, "churn")


@pytest.fixture(scope="session")
def reaching_program(built: Path) -> tuple[Path, Path]:
    """Compile a program that is linked with libcuda, and a library that looks for it with RTLD_NEXT."""
    program, library = built / "reach", built / "libnext.so"
    stub = [f"-L{library_directory()}", "-l:libcuda.so.1"]
    subprocess.run(["cc", *FLAGS, *INCLUDES, "-o", str(program), str(SOURCES / "reach.c"), *stub, "-ldl"], check=True)
    subprocess.run(
        ["cc", *FLAGS, *INCLUDES, "-fPIC", "-shared", "-o", str(library), str(SOURCES / "next.c"), *stub, "-ldl"],
        check=True,
    )
    script = built / "versioned.map"
    script.write_text("DRIVER_1 { global: *; };\n", encoding="utf-8")
    versioned = ["-fPIC", "-shared", f"-Wl,--version-script={script}", "-o", str(built / "libversioned.so")]
    subprocess.run(["cc", *FLAGS, *INCLUDES, *versioned, str(SOURCES / "versioned.c")], check=True)
    return program, library
