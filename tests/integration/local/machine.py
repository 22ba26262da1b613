"""What a cluster could leave on a machine, looked at without the code that removes it."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from deploy.local.layout import Layout


def traces(layout: Layout) -> list[str]:
    """Return every process, mount, link, cgroup and folder on this machine that names the cluster."""
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(layout.state) in line]
    links = subprocess.run(["ip", "-oneline", "link"], capture_output=True, text=True, check=True).stdout.splitlines()
    # A walk passes over what goes meanwhile: cgroups of others.
    cgroups = [
        f"{folder}/{name}"
        for folder, folders, files in os.walk("/sys/fs/cgroup")
        for name in (*folders, *files)
        if layout.id in name
    ]
    folders = [str(layout.state)] if layout.state.exists() else []
    return [*_processes(layout), *mounts, *(link for link in links if layout.id in link), *cgroups, *folders]


def shared_state() -> Mapping[str, object]:
    """Return what of the machine everybody shares, and a cluster must leave as it was, also while it runs."""
    hard_coded = ["/var/lib/kubelet", "/var/lib/cni", "/run/containerd", "/run/netns", "/run/cdi", "/var/log/pods"]
    sysctls = ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward"]
    # Others may have disks of their own below this folder.
    temporary = tempfile.gettempdir() + "/"
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {temporary}" not in line]
    return {
        "hostname": Path("/proc/sys/kernel/hostname").read_text(),
        "folders": {path: sorted(map(str, Path(path).glob("*"))) for path in hard_coded},
        "mounts": sorted(mounts),
    } | {name: Path("/proc/sys", name).read_text() for name in sysctls}


def _processes(layout: Layout) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            command_line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            groups = (process / "cgroup").read_text()
            if str(layout.state) in command_line or layout.cgroup in groups:
                found.append(f"process {process.name} {command_line}")
    return found
