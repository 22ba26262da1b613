"""The cgroup under which all pods of a cluster live, in cgroup v1 and v2 alike. Called by nodes.py and teardown.py."""

import contextlib
import os
import signal
import time
from pathlib import Path

from deploy.local.errors import StartError

# What the kubelet limits pods by (cgroup v2; in v1 each is a hierarchy of its own).
NEEDED = {"cpu", "memory", "pids"}


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


def obstacle() -> str:
    """Return what keeps us from making cgroups for pods; empty if nothing does."""
    mounted = hierarchies()
    writable = [root for root, _ in mounted if os.access(root, os.W_OK) and not _is_read_only(root)]
    if not writable or len(writable) < len(mounted):
        return "no cgroup hierarchy is writable" if not writable else "not every cgroup hierarchy is writable"
    if any(kind == "cgroup" for _, kind in mounted):
        return ""
    return next((found for root in writable if (found := obstacle_to_delegation(root))), "")


def obstacle_to_delegation(root: Path) -> str:
    """Return why the controllers of a cgroup v2 hierarchy cannot be handed down; empty if they can.

    Only the true root of the hierarchy (it has no type) may hand them down and hold processes itself; what a
    container sees as the root usually holds the container's own processes.
    """
    if (missing := NEEDED - set((root / "cgroup.controllers").read_text().split())) != set():
        return f"{root} has no cgroup controller {', '.join(sorted(missing))}"
    handed_down = set((root / "cgroup.subtree_control").read_text().split()) >= NEEDED
    occupied = (root / "cgroup.type").exists() and (root / "cgroup.procs").read_text().strip() != ""
    return (
        f"{root} holds processes, so its cgroup controllers cannot be handed down"
        if occupied and not handed_down
        else ""
    )


def _is_read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


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
