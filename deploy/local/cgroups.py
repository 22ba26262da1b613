"""The cgroup under which all pods of a cluster live, in cgroup v1 and v2 alike. Called by nodes.py and teardown.py."""

import contextlib
import os
import signal
import time
from pathlib import Path

from deploy.local.errors import StartError


def hierarchies() -> list[tuple[Path, str]]:
    """Return the mounted cgroup hierarchies: mount point, and `cgroup` (v1) or `cgroup2`."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind = rest.split()[0]
        if kind in {"cgroup", "cgroup2"}:
            found.append((Path(fields.split()[4]), kind))
    return found


def create(name: str) -> None:
    """Make the cgroup `name` at the root of every hierarchy, ready to have processes below it."""
    mounted = hierarchies()
    if not mounted:
        raise StartError("no cgroup hierarchy is mounted on this machine")
    for root, kind in mounted:
        group = root / name
        group.mkdir(exist_ok=True)
        if kind == "cgroup2":
            _delegate(root)
            _delegate(group)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            # In v1 a new cpuset is empty and takes no process until it is given what its parent has.
            if kind == "cgroup" and (group / setting).exists() and not (group / setting).read_text().strip():
                (group / setting).write_text((root / setting).read_text())


def _delegate(group: Path) -> None:
    controllers = (group / "cgroup.controllers").read_text().split()
    for controller in controllers:
        # One that cannot be had (processes in the group itself, v1 holds it) shows when the kubelet needs it.
        with contextlib.suppress(OSError):
            (group / "cgroup.subtree_control").write_text(f"+{controller}")


def existing(name: str) -> list[Path]:
    """Return the cgroups `name` that are there."""
    return [root / name for root, _ in hierarchies() if (root / name).is_dir()]


def processes_in(name: str) -> set[int]:
    """Return the processes anywhere below the cgroup `name`."""
    found: set[int] = set()
    for top in existing(name):
        for folder, _, _ in os.walk(top):
            with contextlib.suppress(OSError):
                found.update(map(int, (Path(folder) / "cgroup.procs").read_text().split()))
    return found - {0}


def remove(name: str, timeout_s: float = 10.0) -> list[str]:
    """Kill what runs below the cgroup `name` and remove it; return what could not be removed."""
    deadline = time.monotonic() + timeout_s
    while left := existing(name):
        for pid in processes_in(name):
            # Membership of our own cgroup is the proof that it is ours.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for top in left:
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
        if time.monotonic() > deadline:
            return [f"cgroup {path}" for path in existing(name)]
        if existing(name):
            time.sleep(0.02)  # until the kernel has buried the dead
    return []
