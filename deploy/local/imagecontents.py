"""Collects from this machine what goes into an image: programs with their libraries, a shell, a Python, our program.

Called by the demo and the tests. An image made from what the machine runs on anyway needs no registry and no download.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement

from deploy.local.errors import BuildError
from deploy.local.images import Content, Image, Link

# As on every current distribution; what ldd names under /lib is put where this link leads.
MERGED = {f"/{name}": Link(f"usr/{name}") for name in ("bin", "sbin", "lib", "lib64")}
SHELL_PROGRAMS = (
    "sh",
    "cat",
    "echo",
    "env",
    "false",
    "grep",
    "ls",
    "mkdir",
    "mount",
    "ps",
    "rm",
    "sleep",
    "tee",
    "true",
)
# Parts of the standard library that no server needs, and which are more than half of it.
NOT_IN_IMAGES = {
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    "pydoc_data",
    "site-packages",
}
# The second, asynchronous client in the kubernetes package, a quarter of the whole image.
UNUSED = ("kubernetes/aio/",)
SITE_PACKAGES = "/usr/local/lib/dra-driver/site-packages"
SOURCES = "/usr/local/lib/dra-driver/sources"
# What a container gets from the driver of its node, and an image must not have.
INJECTED = {"libcuda.so.1", "libnvidia-ml.so.1"}
Files = dict[str, Content]
REPOSITORY = Path(__file__).parents[2]
OUR_PACKAGES = ("api", "controller", "dra_driver", "kubeletplugin", "libvgpu")
APPLICATION_IMAGE = "localhost/dra-driver-vgpu/dra-driver-vgpu"
WORKLOAD_IMAGE = "localhost/dra-driver-vgpu/workload"


def programs(mapping: Mapping[str, Path]) -> Files:
    """Return the files of these programs (path in the image to program), with the libraries that they load."""
    files: Files = dict(MERGED)
    files.update({_merged(path): program for path, program in mapping.items()})
    return files | libraries(mapping.values())


def shell() -> Files:
    """Return /bin/sh and a few programs for scripts, as far as this machine has them, with their libraries."""
    found = {f"/usr/bin/{name}": shutil.which(name) for name in SHELL_PROGRAMS}
    return programs({path: Path(program).resolve() for path, program in found.items() if program})


def libraries(binaries: Iterable[Path]) -> Files:
    """Return the shared libraries that these programs and libraries need, by their paths on this machine."""
    paths = sorted({str(path) for path in binaries})
    # Not an error: ldd says "not a dynamic executable" of a static one, and fails.
    done = subprocess.run(["ldd", *paths], capture_output=True, text=True, check=False)
    lacking = sorted(set(re.findall(r"^\s(\S+) => not found", done.stdout, re.MULTILINE)) - INJECTED)
    if lacking:
        raise BuildError(f"libraries that the image needs are not on this machine: {', '.join(lacking)}")
    found = re.findall(r"^\s(?:\S+ => )?(/\S+) \(0x", done.stdout, re.MULTILINE)
    return {_merged(path): Path(path).resolve() for path in found}


def python() -> Files:
    """Return the Python that runs this, at its own path and as /usr/bin/python3, without its site-packages."""
    executable = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]  # the one outside of the venv
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix}))
    files: Files = dict(MERGED)
    files |= tree(library, str(library), skip=NOT_IN_IMAGES)
    binaries = [executable, *(path for path in files.values() if isinstance(path, Path) and ".so" in path.suffixes)]
    files |= libraries(binaries)
    files[_merged(str(executable))] = executable
    if str(executable) != "/usr/bin/python3":
        files["/usr/bin/python3"] = Link(_merged(str(executable)))
    return files


def tree(folder: Path, target: str, skip: Iterable[str] = ()) -> Files:
    """Return all files below a folder, placed below `target`; folders named in `skip` are left out."""
    left_out = set(skip)
    files: Files = {}
    for top, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in left_out]  # os.walk goes into those that are left
        inside = f"{target}{top.removeprefix(str(folder))}"
        for name in names:
            path = Path(top, name)
            if not _is_build_leftover(path) and path.is_file():
                files[_merged(f"{inside}/{name}")] = path.resolve()
    return files


def distributions(lock_file: Path) -> Files:
    """Return the files of the installed packages that a lock file names, placed below SITE_PACKAGES."""
    files: Files = {}
    for requirement in _requirements(lock_file):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            distribution = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError as error:
            raise BuildError(f"{requirement.name} of {lock_file.name} is not installed: run `make build`") from error
        for entry in distribution.files or []:
            path = Path(str(distribution.locate_file(entry)))
            if not str(entry).startswith(("..", *UNUSED)) and path.is_file():
                files[f"{SITE_PACKAGES}/{entry}"] = path.resolve()
    return files


def _requirements(lock_file: Path) -> list[Requirement]:
    lines = re.findall(r"^([A-Za-z0-9].*?)\s*\\?$", lock_file.read_text(), re.MULTILINE)
    return [Requirement(line) for line in lines]


def application() -> Image:
    """Return the image of our own program: this Python, the locked packages, this checkout."""
    packages = distributions(REPOSITORY / "requirements" / "runtime.txt")
    extensions = [path for path in packages.values() if isinstance(path, Path) and ".so" in path.suffixes]
    files = python() | packages | libraries(extensions)
    for package in OUR_PACKAGES:
        files |= tree(REPOSITORY / package, f"{SOURCES}/{package}", skip={"stub"})
    built = ("libvgpu.so", "gate/libcuda.so.1", "gate/libnvidia-ml.so.1", "gate/merge")
    files |= {f"{SOURCES}/libvgpu/_native/{name}": REPOSITORY / "build" / name for name in built}
    # Says which version this is; the sources themselves come from the checkout.
    for entry in importlib.metadata.distribution("dra-driver-vgpu").files or []:
        if entry.name == "METADATA":
            files[f"{SITE_PACKAGES}/{entry}"] = Path(str(entry.locate()))
    files["/usr/local/bin/dra-driver"] = b'#!/bin/sh\nexec /usr/bin/python3 -m dra_driver "$@"\n'
    return Image(
        name=APPLICATION_IMAGE,
        files=files | shell(),
        entrypoint=["/usr/bin/python3", "-m", "dra_driver"],
        environment={"PYTHONPATH": f"{SOURCES}:{SITE_PACKAGES}", "PYTHONDONTWRITEBYTECODE": "1"},
    )


def workload(mapping: Mapping[str, Path], name: str = f"{WORKLOAD_IMAGE}:local") -> Image:
    """Return an image with a shell and these programs (path in the image to the program on this machine)."""
    return Image(name=name, files=shell() | programs(mapping))


def _merged(path: str) -> str:
    first = f"/{PurePosixPath(path).parts[1]}"
    return f"/usr{path}" if first in MERGED else path


def _is_build_leftover(path: Path) -> bool:
    return path.name.startswith("_tkinter.") or path.suffix in {".a", ".o", ".c", ".d"} or ".opt-" in path.name
