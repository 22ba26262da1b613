"""Removes everything of a cluster, whatever state it is in, and tells what is left. Called by cluster.py.

Nothing here relies on the cluster having been started completely, on its programs, or on its API server.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from deploy.local import cgroups, links, processes
from deploy.local.caching import cache_dir
from deploy.local.controlplane import COMPONENTS
from deploy.local.errors import StartError
from deploy.local.layout import Layout
from deploy.local.processes import ProcessId

GONE_TIMEOUT_S = 60.0


def remove(layout: Layout) -> list[str]:
    """Stop and remove everything of the cluster; return what is left of it, in words, empty if nothing is."""
    for record in _records(layout):
        if identity := processes.running(record):
            # What was started on top may have something of its own to end. The API server would wait for the watches of
            # others; the first process of a pid namespace ignores all but SIGKILL, and takes its whole node with it.
            first = signal.SIGTERM if record in further_records(layout) else signal.SIGKILL
            processes.stop(identity, first=first)
    for identity in strays(layout):
        processes.stop(identity, first=signal.SIGKILL)
    cgroups.remove(layout.cgroup)
    for link in _links(layout):
        with contextlib.suppress(StartError):  # a node's link also goes with its namespace, perhaps just now
            links.run_ip("link", "del", link)
    for mount in mounts(layout):
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
    if not mounts(layout):  # never delete through a mount
        shutil.rmtree(layout.state, ignore_errors=True)
    return _wait_until_gone(layout)


def leftovers(layout: Layout) -> list[str]:
    """Return what there is of the cluster on this machine, one line each."""
    found = [f"process {identity.pid} ({_command_line(identity.pid)})" for identity in strays(layout)]
    found += [f"link {link}" for link in _links(layout)]
    found += [f"mount {mount}" for mount in mounts(layout)]
    found += [f"cgroup {path}" for path in cgroups.existing(layout.cgroup)]
    found += [f"folder {layout.state}"] if layout.state.exists() else []
    return found


def strays(layout: Layout) -> list[ProcessId]:
    """Return the processes that belong to the cluster by what they are, recorded or not.

    They are those that run one of our programs on the cluster's state folder, and those in the cluster's cgroups.
    """
    found = []
    pids = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    for pid in pids - {os.getpid()}:
        if _belongs(layout, pid):
            with contextlib.suppress(ProcessLookupError):
                found.append(ProcessId.of(pid))
    known = {identity.pid for identity in found}
    for pid in cgroups.processes_in(layout.cgroup) - known:
        with contextlib.suppress(ProcessLookupError):
            found.append(ProcessId.of(pid))
    return found


def mounts(layout: Layout) -> list[str]:
    """Return the mount points in the state folder that this process sees, the innermost first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    decoded = [point.encode().decode("unicode_escape") for point in points]
    return sorted((point for point in decoded if Path(point).is_relative_to(layout.state)), reverse=True)


def _belongs(layout: Layout, pid: int) -> bool:
    """Tell whether a process runs a program of ours (or holds a node), with the state folder in its arguments."""
    try:
        program = Path(f"/proc/{pid}/exe").readlink()
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    ours = program.is_relative_to(cache_dir()) or program.name in {"unshare", "nsenter"}
    # "/state/" and not "/state": another cluster's folder may begin alike.
    inside = os.fsencode(layout.state) + b"/"
    return ours and any(inside in argument + b"/" for argument in arguments)


def further_records(layout: Layout) -> list[Path]:
    """Return the records of what was started on top of the control plane (Cluster.start_process)."""
    folder = processes.record_path(layout.state, "any").parent
    return sorted(record for record in folder.glob("*.json") if record.stem not in COMPONENTS)


def _records(layout: Layout) -> list[Path]:
    """Return the records of all processes: kubelets and their nodes first, etcd last."""
    nodes = sorted(layout.state.glob("node-*/processes/*.json"))
    control_plane = [processes.record_path(layout.state, component) for component in reversed(COMPONENTS)]
    return nodes + further_records(layout) + control_plane


def _links(layout: Layout) -> list[str]:
    try:
        return links.links_of(layout)
    except (StartError, FileNotFoundError):
        return []  # no `ip`, no links: the cluster had no nodes


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:80].strip()
    return "ended"


def _wait_until_gone(layout: Layout) -> list[str]:
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while (left := leftovers(layout)) and time.monotonic() < deadline:
        time.sleep(0.05)  # the kernel removes the links of a dead network namespace a little later
    return left
