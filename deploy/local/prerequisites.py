"""Checks what the local cluster needs of the machine before anything is built. Called by cluster.py and __main__.py."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from deploy.local import cgroups
from deploy.local.errors import LocalClusterError, MissingPackagesError

NODES_VARIABLE = "VGPU_NODES"


@dataclass(frozen=True)
class Need:
    """Something that a Debian package brings, and how to see whether it is there."""

    what: str
    package: str
    there: Callable[[], bool]


def _program(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") is not None


def _seccomp_headers() -> bool:
    command = ["pkg-config", "--exists", "libseccomp"]
    return bool(_program("pkg-config")()) and subprocess.run(command, check=False).returncode == 0


# The control plane is Go without C; everything else is for nodes.
CONTROL_PLANE = (Need("setpriv", "util-linux", _program("setpriv")),)
NODES = (
    Need("a C compiler (cc)", "build-essential", _program("cc")),
    Need("pkg-config", "pkg-config", _program("pkg-config")),
    Need("the headers of libseccomp", "libseccomp-dev", _seccomp_headers),
    Need("ip", "iproute2", _program("ip")),
    Need("unshare and nsenter", "util-linux", _program("nsenter")),
    Need("mount", "mount", _program("mount")),
)


def missing(needs: tuple[Need, ...]) -> list[Need]:
    """Return those needs that the machine does not meet."""
    return [need for need in needs if not need.there()]


def check(*, nodes: bool, install: bool = False) -> None:
    """Raise MissingPackagesError, naming everything that is missing, unless `install` is set and could install it."""
    needs = CONTROL_PLANE + (NODES if nodes else ())
    lacking = missing(needs)
    if lacking and install:
        _install(sorted({need.package for need in lacking}))
        lacking = missing(needs)
    if lacking:
        what = ", ".join(need.what for need in lacking)
        packages = " ".join(sorted({need.package for need in lacking}))
        raise MissingPackagesError(
            f"this machine lacks {what}. On Debian or Ubuntu:\n  apt-get install -y --no-install-recommends {packages}"
        )


def _install(packages: list[str]) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    print(f"Installing {' '.join(packages)}", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    for command in (["apt-get", "update", "-qq"], install):
        subprocess.run(command, check=False, env=environment, stdout=subprocess.DEVNULL)


def reason_for_process_nodes() -> str:
    """Return why nodes are processes here, for the person who starts them; empty: they run containers.

    `VGPU_NODES=processes` or `VGPU_NODES=containers` decides; otherwise what the machine lets us do.
    """
    chosen = os.environ.get(NODES_VARIABLE, "")
    if chosen not in {"", "processes", "containers"}:
        raise LocalClusterError(f"{NODES_VARIABLE}: found {chosen!r}, expected processes or containers")
    if chosen == "processes":
        return f"{NODES_VARIABLE}=processes"
    return "" if chosen == "containers" else obstacle_to_containers()


def obstacle_to_containers() -> str:
    """Return what keeps us from running nodes with containers: no root, namespaces, mounts, links or cgroups.

    Empty where nothing does. Where something does (an unprivileged container, for example), the control plane still
    runs.
    """
    if os.geteuid() != 0:
        return "not started as root"
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return ""  # nothing is known to forbid it: prerequisites.check names the packages
    script = "mount -t tmpfs tmpfs /mnt && mount --make-rshared / && ip link add vgpu-probe type bridge"
    script += " && ip link add vgpu-probe0 type veth peer name vgpu-probe1"
    namespaces = ["--fork", "--pid", "--mount", "--net", "--mount-proc", "--propagation", "private"]
    command = ["unshare", *namespaces, "--", "sh", "-c", script]
    probe = subprocess.run(command, check=False, capture_output=True, text=True)
    if probe.returncode:
        return (probe.stderr.strip().splitlines() or ["namespaces cannot be made"])[-1]
    return cgroups.obstacle()
