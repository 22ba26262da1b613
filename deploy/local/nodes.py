"""One node: containerd and kubelet in namespaces of their own. Called by cluster.py.

A process with the id 1 of a new pid namespace holds the node's mount, network, ipc and uts namespaces. When it is
killed, the kernel kills everything in the node, and every mount, link and network namespace goes with it: that is
what makes `down` complete even after a crash. The node's files lie in the cluster's state folder (layout.NodePaths).
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from deploy.local import building, cgroups, credentials, links, nodeconfig, processes, versions
from deploy.local.controlplane import log_tail
from deploy.local.errors import StartError
from deploy.local.layout import Facts, Layout, NodePaths
from deploy.local.nodeconfig import CONTAINERD_SOCKET, NodeSettings
from deploy.local.processes import Command, ProcessId, record_path, running

CONTAINERD_TIMEOUT_S = 120.0
NAMESPACES_SCRIPT = Path(__file__).parent / "node-namespaces.sh"
NAMESPACES = ("--pid", "--mount", "--net", "--ipc", "--uts")


@dataclass(frozen=True)
class Programs:
    """Where the programs that a node runs lie."""

    tools: Path
    pause: Path


class Node:
    """Starts one node and runs programs inside of it."""

    def __init__(self, layout: Layout, facts: Facts, index: int, programs: Programs) -> None:
        self.paths: NodePaths = layout.node(index)
        self._layout = layout
        self._facts = facts
        self._programs = programs

    def start_runtime(self, *, dies_with_caller: bool = False) -> None:
        """Make the namespaces and start containerd in them, where they do not run."""
        if not self._running("namespaces"):
            self._make_namespaces(dies_with_caller=dies_with_caller)
        if not self._running("containerd"):  # its containers went on without it: each has a shim of its own
            config = self.paths.directory / "containerd.toml"
            self._start("containerd", str(self._programs.tools / "containerd"), "--config", str(config))

    def wait_for_runtime(self) -> None:
        """Wait until containerd answers."""
        deadline = time.monotonic() + CONTAINERD_TIMEOUT_S
        while True:
            try:
                self.ctr("version")
                return
            except StartError:
                tail = log_tail(self.paths.directory / "logs" / "containerd.log")
                if not self._running("containerd"):
                    raise StartError(f"containerd of {self.paths.name} ended while it started:\n{tail}") from None
                if time.monotonic() > deadline:
                    raise StartError(f"containerd of {self.paths.name} does not answer:\n{tail}") from None
                time.sleep(0.05)  # a socket that does not exist yet cannot be awaited

    def start_kubelet(self) -> None:
        """Start the kubelet, where it does not run. The API server must be up."""
        if self._running("kubelet"):
            return
        # Not with the node's other files: an upgrade changes it while the node goes on.
        config = self.paths.directory / "kubelet.json"
        config.write_text(json.dumps(nodeconfig.kubelet(self._settings()), indent=2))
        kubeconfig = credentials.write_kubeconfig(
            self.paths.directory / "kubeconfig", self._layout, self._facts, self.paths.name
        )
        self._start(
            "kubelet",
            str(building.kubernetes(self._facts.release("kubelet").kubernetes) / "kubelet"),
            f"--config={config}",
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={self.paths.name}",
            f"--node-ip={self._facts.addresses.node(self.paths.index)}",
        )

    def stop_kubelet(self) -> None:
        """End the kubelet; what runs on the node goes on."""
        if kubelet := self._running("kubelet"):
            processes.stop(kubelet)

    def run(self, *argv: str) -> str:
        """Run a program to its end inside the node and return its output; StartError with its message if it fails."""
        holder = self._running("namespaces")
        if holder is None:
            raise StartError(f"node {self.paths.name} is not running")
        command = [*self._enter(holder), *argv]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self._environment())
        if done.returncode:
            raise StartError(f"{Path(argv[0]).name} in {self.paths.name} failed: {done.stderr.strip()}")
        return done.stdout

    def ctr(self, *arguments: str) -> str:
        """Run containerd's `ctr` in the namespace of the pods' images."""
        ctr = str(self._programs.tools / "ctr")
        return self.run(ctr, "--address", CONTAINERD_SOCKET, "--namespace", "k8s.io", *arguments)

    def images(self) -> set[tuple[str, str]]:
        """Return the names and digests of the images that the node has."""
        rows = self.ctr("images", "list").splitlines()[1:]  # REF TYPE DIGEST SIZE ...
        return {(name, digest) for name, _, digest, *_ in map(str.split, rows)}

    def import_image(self, archive: Path) -> None:
        """Import the images in a docker or OCI archive."""
        self.ctr("images", "import", "--local", "--snapshotter", self._settings().snapshotter, str(archive))

    def _running(self, process: str) -> ProcessId | None:
        return running(record_path(self.paths.directory, process))

    def _enter(self, holder: ProcessId) -> list[str]:
        return ["nsenter", "--target", str(holder.pid), *NAMESPACES, "--"]

    def _environment(self) -> dict[str, str]:
        return {"PATH": f"{self._programs.tools}:{os.defpath}:/usr/sbin:/sbin"}

    def _start(self, process: str, *argv: str) -> None:
        """Start a program in the node and record the program itself, not the nsenter that waits for it."""
        holder = self._running("namespaces")
        assert holder is not None
        command = Command(process, [*self._enter(holder), *argv], self.paths.directory, self._environment())
        try:
            processes.wait_for_child(processes.start(command), command.record)
        except StartError as error:
            raise StartError(f"{process} of {self.paths.name} did not start:\n{log_tail(command.log)}") from error

    def _make_namespaces(self, *, dies_with_caller: bool) -> None:
        cgroups.create(self._layout.cgroup)
        self._write_files()
        script = [str(NAMESPACES_SCRIPT), str(self.paths.directory), self.paths.name, str(self._programs.pause)]
        unshare = ["unshare", "--fork", "--kill-child", *NAMESPACES, "--mount-proc", "--propagation", "private", "--"]
        prefix = ["setpriv", "--pdeathsig", "KILL", "--"] if dies_with_caller else []
        child = subprocess.Popen(
            [*prefix, *unshare, "sh", *script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment(),
            start_new_session=True,
        )
        assert child.stdout is not None
        assert child.stderr is not None
        parent = processes.adopt(child, record_path(self.paths.directory, "unshare"))
        with child.stdout, child.stderr:
            ready = child.stdout.readline() == b"ready\n"
            message = "" if ready else child.stderr.read().decode(errors="replace").strip()
        if not ready:
            raise StartError(f"the namespaces of {self.paths.name} could not be made: {message}")
        holder_pid = processes.wait_for_child(parent, record_path(self.paths.directory, "namespaces")).pid
        links.connect_node(self._layout, self._facts.addresses, self.paths.index, self._facts.nodes, holder_pid)

    def _write_files(self) -> None:
        for record in ("containerd", "kubelet"):
            record_path(self.paths.directory, record).unlink(missing_ok=True)
        shutil.rmtree(self.paths.run, ignore_errors=True)  # as after a reboot
        folders = [self.paths.kubelet, self.paths.agent, self.paths.run, self.paths.cdi, self.paths.log]
        folders += [self.paths.directory / name for name in ("overlay", "cni")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        settings = self._settings()
        directory = self.paths.directory
        (directory / "containerd.toml").write_text(nodeconfig.containerd(settings))
        (directory / "cni" / "pods.conflist").write_text(json.dumps(nodeconfig.network(settings), indent=2))
        # The machine's own may be a link into its /run, which the node does not see.
        machine = Path("/etc/resolv.conf")
        (directory / "resolv.conf").write_bytes(machine.read_bytes() if machine.exists() else b"")

    def _settings(self) -> NodeSettings:
        release = self._facts.release("kubelet")
        return NodeSettings(
            name=self.paths.name,
            address=self._facts.addresses.node(self.paths.index),
            pods=self._facts.addresses.pods(self.paths.index),
            directory=self.paths.directory,
            pki=self._layout.pki,
            tools=self._programs.tools,
            cgroup=self._layout.cgroup,
            snapshotter="overlayfs" if overlay_works(self.paths.directory) else "native",
            feature_gates=versions.feature_gates(release.kubernetes, release.feature_gates),
        )


def overlay_works(directory: Path) -> bool:
    """Tell whether an overlay can be mounted with its upper layer in `directory` (not so on an overlay itself)."""
    with tempfile.TemporaryDirectory(dir=directory, prefix=".overlay-probe-") as scratch:
        for name in ("lower", "upper", "work", "merged"):
            (Path(scratch) / name).mkdir()
        script = 'cd "$1" && mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay merged'
        command = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script, "sh", scratch]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
