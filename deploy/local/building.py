"""Builds Kubernetes and its helper programs from the pinned Go modules in go/, into the cache.

Called by cluster.py. What is built is kept under a name made from its sources, so that a change of a version or of
go/kubernetes/*.go is a new build and everything else is found ready.
"""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector

from deploy.local.caching import build_once, cache_dir, digest
from deploy.local.errors import BuildError
from deploy.local.gotoolchain import go_program, needed_version
from deploy.local.versions import MODULES, build_tags, pinned, resolve

SOURCES = MODULES.parent
TOOLS = SOURCES / "tools"
KWOK = SOURCES / "kwok"
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl", "pki")
PROGRESS_S = 10.0


@dataclass(frozen=True)
class GoBuild:
    """One run of `go build`: packages of one module with one set of flags."""

    what: str
    module_file: Path
    packages: tuple[str, ...]
    tags: tuple[str, ...] = ()
    link_flags: str = "-s -w"
    cgo: bool = False


def kubernetes(version: str) -> Path:
    """Return the folder with a link per component of this Kubernetes, built if it is not there yet."""
    version = resolve(version)
    major, minor, _ = version.split(".")
    stamp = "k8s.io/component-base/version"
    build = GoBuild(
        what=f"Kubernetes {version}",
        module_file=pinned()[version],
        packages=(".",),
        tags=build_tags(version),
        # Without these the components take themselves for v0.0.0 and refuse each other.
        link_flags=f"-s -w -X {stamp}.gitVersion=v{version} -X {stamp}.gitMajor={major} -X {stamp}.gitMinor={minor}",
    )

    def make(target: Path) -> None:
        target.mkdir()
        go_build(build, target / "k8s")
        for component in COMPONENTS:
            (target / component).symlink_to("k8s")

    return build_once(_target(f"kubernetes-{version}", build), make)


def tools() -> Path:
    """Return the folder with containerd, its shim, ctr, runc, helm and the CNI plugins, built if not there yet."""
    module_file = TOOLS / "go.mod"
    packages = _tool_packages(module_file)
    # runc enters namespaces in C, and filters system calls through libseccomp: the only one that needs a C compiler.
    runc = tuple(package for package in packages if package.endswith("/runc"))
    others = tuple(package for package in packages if package not in runc)
    builds = [
        GoBuild(
            "containerd, helm and the CNI plugins", module_file, others, tags=("no_btrfs", "no_devmapper", "no_zfs")
        ),
        GoBuild("runc", module_file, runc, tags=("seccomp",), cgo=True),
    ]

    def make(target: Path) -> None:
        target.mkdir()
        for build in builds:
            go_build(build, target)

    return build_once(_target("tools", *builds), make)


def kwok() -> Path:
    """Return the folder with kwok, which plays the kubelets of nodes that do not exist; built if not there yet."""
    module_file = KWOK / "go.mod"
    build = GoBuild("kwok", module_file, tuple(_tool_packages(module_file)))

    def make(target: Path) -> None:
        target.mkdir()
        go_build(build, target)

    return build_once(_target("kwok", build), make)


def _tool_packages(module_file: Path) -> list[str]:
    # One alone stands on the line of its keyword, several in a block; only tools stand without a version.
    return re.findall(r"^(?:tool |\t)(\S+/\S+)$", module_file.read_text(), re.MULTILINE)


def _target(name: str, *builds: GoBuild) -> Path:
    module_file = builds[0].module_file
    sources = [module_file, module_file.with_suffix(".sum"), *sorted(module_file.parent.glob("*.go"))]
    content = [path.read_bytes() for path in sources] + [
        repr(build).replace(str(SOURCES), "").encode() for build in builds
    ]
    folder = cache_dir() / "programs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-{digest(content)}"


def go_build(build: GoBuild, output: Path) -> None:
    """Build the packages into `output`: a file, or a folder that is there; BuildError with the end of the output."""
    go = go_program(needed_version(build.module_file))
    command = ["nice", "-n", "5", str(go), "build", "-v", "-trimpath", "-buildvcs=false", "-mod=readonly"]
    command += ["-modfile", str(build.module_file), "-tags", ",".join(build.tags), "-ldflags", build.link_flags]
    # A folder is where to put several programs, under their own names.
    command += ["-o", f"{output}/" if output.is_dir() else str(output), *build.packages]
    environment = os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": "", "CGO_ENABLED": "1" if build.cgo else "0"}
    tail = _run_with_progress(command, build, environment)
    if tail:
        raise BuildError(f"building {build.what} failed:\n{tail}")


def _run_with_progress(command: list[str], build: GoBuild, environment: dict[str, str]) -> str:
    """Run a build, saying every few seconds how far it is; return the end of its output if it failed."""
    print(f"Building {build.what}: only the first time, it is kept in {cache_dir()}", flush=True)
    began = time.monotonic()
    said = began
    folder = build.module_file.parent
    lines: list[str] = []
    with (
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
        DefaultSelector() as selector,
    ):
        assert process.stdout is not None
        selector.register(process.stdout, EVENT_READ)
        pending = b""
        while True:
            if selector.select(timeout=PROGRESS_S):
                chunk = os.read(process.stdout.fileno(), 65536)
                if not chunk:
                    break
                *complete, pending = (pending + chunk).split(b"\n")
                lines += [line.decode(errors="replace") for line in complete]
            if time.monotonic() - said >= PROGRESS_S:
                said = time.monotonic()
                print(f"  {said - began:4.0f} s  {_progress(lines)}", flush=True)
    if process.returncode:
        return (
            "\n".join([*lines[-20:], pending.decode(errors="replace")]).strip() or f"exit status {process.returncode}"
        )
    print(f"  {time.monotonic() - began:4.0f} s  {build.what} is built", flush=True)
    return ""


def _progress(lines: list[str]) -> str:
    downloads = sum(line.startswith("go: downloading") for line in lines)
    packages = len(lines) - downloads
    if packages == 0:
        return f"{downloads} modules downloaded"
    return f"{packages} packages compiled, last {lines[-1][:60]}"


if __name__ == "__main__":
    print(kubernetes(sys.argv[1]), tools())
