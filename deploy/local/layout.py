"""Where everything of one cluster lies, and which addresses it uses. Plain data, used by all modules of the cluster."""

import contextlib
import hashlib
import json
import os
import secrets
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from deploy.local.caching import cache_dir
from deploy.local.errors import LocalClusterError

# A node shows its own content under these folders (nodes.py), so a state folder inside them could not be seen there.
UPGRADED = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")
"""The components that an upgrade changes, in the order in which Kubernetes wants it; etcd goes with the API server."""
HIDDEN_IN_NODES = (Path("/var/lib"), Path("/var/log"), Path("/var/run"), Path("/run"))


@dataclass(frozen=True)
class Addresses:
    """Where the control plane listens.

    With nodes it is a bridge of the machine, 10.<subnet>.0.0/16, that nobody else can reach, with the standard ports.
    The API server listens on the address that the service `kubernetes` has: pods reach it without any kube-proxy.
    Without nodes it is the loopback address with free ports, which takes no privileges.
    """

    host: str
    api_port: int
    etcd_port: int
    etcd_peer_port: int
    controller_manager_port: int
    scheduler_port: int
    subnet: int | None = None

    @classmethod
    def on_bridge(cls, subnet: int) -> "Addresses":
        """Return the addresses on a bridge with the network 10.<subnet>.0.0/16."""
        return cls(f"10.{subnet}.240.1", 443, 2379, 2380, 10257, 10259, subnet)

    @classmethod
    def on_loopback(cls) -> "Addresses":
        """Return ports of the loopback address that are free now.

        None of those that the kernel gives to connections: one of them could be gone when a server is restarted.
        """
        first_of_kernel = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        choices = range(max(first_of_kernel - 20_000, 1024), first_of_kernel) or range(1024, 65_536)
        sockets: list[socket.socket] = []
        with contextlib.ExitStack() as opened:
            while len(sockets) < 5:
                with contextlib.suppress(OSError):
                    server = socket.create_server(("127.0.0.1", secrets.choice(choices)))
                    sockets.append(opened.enter_context(server))
            return cls("127.0.0.1", *(server.getsockname()[1] for server in sockets))

    @property
    def service_range(self) -> str:
        """The range of service addresses; the API server gives its first one to the service `kubernetes`."""
        return f"10.{self.subnet}.240.0/24" if self.subnet is not None else "10.96.0.0/24"

    def node(self, index: int) -> str:
        """Return the address of a node."""
        return f"10.{self.subnet}.0.{10 + index}"

    def pods(self, index: int) -> str:
        """Return the range of the addresses of the pods on a node."""
        return f"10.{self.subnet}.{10 + index}.0/24"

    @property
    def gateway(self) -> str:
        """The machine's own address among the nodes."""
        return f"10.{self.subnet}.0.1"


@dataclass(frozen=True)
class Release:
    """What a component runs."""

    kubernetes: str
    feature_gates: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What was decided when the cluster was first started, or upgraded: everything else follows from it."""

    name: str
    kubernetes: str
    nodes: int
    addresses: Addresses
    feature_gates: dict[str, bool] = field(default_factory=dict)
    """What was chosen, beside what the version takes by itself."""
    others: dict[str, Release] = field(default_factory=dict)
    """Components that do not run the API server's release, as in the middle of an upgrade."""

    def release(self, component: str) -> Release:
        """Return what a component runs."""
        return self.others.get(component, Release(self.kubernetes, self.feature_gates))

    def with_release(self, release: Release, components: Iterable[str]) -> "Facts":
        """Return the facts once these of UPGRADED run a release, and the others what they ran before."""
        releases = {component: self.release(component) for component in UPGRADED}
        releases |= dict.fromkeys(components, release)
        server = releases["kube-apiserver"]
        others = {component: found for component, found in releases.items() if found != server}
        return replace(self, kubernetes=server.kubernetes, feature_gates=server.feature_gates, others=others)


@dataclass(frozen=True)
class NodePaths:
    """The folders of one node, as the machine sees them; the comments say where they are inside the node."""

    name: str
    index: int
    directory: Path

    @property
    def kubelet(self) -> Path:
        """/var/lib/kubelet in the node."""
        return self.directory / "kubelet"

    @property
    def agent(self) -> Path:
        """/var/lib/dra-driver-vgpu in the node: the node agent's own state."""
        return self.directory / "agent"

    @property
    def run(self) -> Path:
        """/run in the node: sockets, containerd's state, network namespaces."""
        return self.directory / "run"

    @property
    def cdi(self) -> Path:
        """/var/run/cdi in the node: the CDI specs that containerd reads."""
        return self.run / "cdi"

    @property
    def log(self) -> Path:
        """/var/log in the node: the output of pods."""
        return self.directory / "log"


@dataclass(frozen=True)
class Layout:
    """The folders and files of one cluster."""

    name: str
    state: Path

    @classmethod
    def of(cls, name: str, state_dir: Path | None = None) -> "Layout":
        """Return the layout of a cluster by its name, in the cache unless a folder is given."""
        state = (state_dir or cache_dir() / "clusters" / name).absolute()
        for hidden in HIDDEN_IN_NODES:
            if state.is_relative_to(hidden):
                raise LocalClusterError(
                    f"state folder {state} lies in {hidden}, where nodes have folders of their own: choose another "
                    "with --state-dir or VGPU_CACHE_DIR"
                )
        return cls(name, state)

    @property
    def id(self) -> str:
        """Eight hex digits for names that the whole machine shares: the bridge, cgroups."""
        return hashlib.sha256(os.fsencode(self.state)).hexdigest()[:8]

    @property
    def bridge(self) -> str:
        """The name of the bridge between the machine and its nodes."""
        return f"vgpu-{self.id}"

    @property
    def cgroup(self) -> str:
        """The name of the cgroup, in every hierarchy, that holds all pods."""
        return f"vgpu-{self.id}"

    @property
    def lock(self) -> Path:
        """The lock that `up` and `down` of this cluster hold."""
        return cache_dir() / "locks" / self.id

    @property
    def caller(self) -> Path:
        """The record of the process with which the cluster is to end; not there if it is to stay."""
        return self.state / "caller.json"

    @property
    def pki(self) -> Path:
        """Certificates, keys and tokens."""
        return self.state / "pki"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.state / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        """What pods asked of the API server: a JSON object a line."""
        return self.state / "logs" / "audit.log"

    def node(self, index: int) -> NodePaths:
        """Return the paths of one node, counted from 0."""
        return NodePaths(f"{self.name}-node-{index}", index, self.state / f"node-{index}")

    def read_facts(self) -> Facts | None:
        """Return what `up` decided, None if the cluster was never started."""
        try:
            stored = json.loads((self.state / "cluster.json").read_text())
        except FileNotFoundError:
            return None
        others = {component: Release(**release) for component, release in stored.get("others", {}).items()}
        return Facts(**stored | {"addresses": Addresses(**stored["addresses"]), "others": others})

    def write_facts(self, facts: Facts) -> None:
        """Keep what `up` decided."""
        scratch = self.state / ".cluster.json"
        scratch.write_text(json.dumps(asdict(facts), indent=2))
        scratch.rename(self.state / "cluster.json")
