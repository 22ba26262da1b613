"""The local cluster as one object: start it, use it, remove it. Called by the command line, the demo and the tests.

with Cluster("try") as cluster:
    cluster.up(nodes=1)
    cluster.load_image(image.archive())
    print(cluster.kubectl("get", "nodes"))
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local import building, credentials, images, links, prerequisites, processes, teardown, versions
from deploy.local.apiclient import ApiClient, is_named, node_is_ready
from deploy.local.caching import cache_dir, locked
from deploy.local.controlplane import COMPONENTS, start_control_plane
from deploy.local.errors import LeftoversError, LocalClusterError, StartError
from deploy.local.layout import UPGRADED, Addresses, Facts, Layout, NodePaths, Release
from deploy.local.nodes import Node, Programs
from deploy.local.processes import Command, ProcessId
from deploy.local.versions import FeatureGates

NODE_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class ProcessStatus:
    """One process of a cluster."""

    name: str
    pid: int | None


class Cluster:
    """A Kubernetes on this machine, known by its name or its state folder; several can run side by side."""

    def __init__(
        self,
        name: str = "default",
        *,
        state_dir: Path | None = None,
        kubernetes: str | None = None,
        feature_gates: FeatureGates | None = None,
    ) -> None:
        """Describe a cluster; nothing is started.

        Args:
            name: several clusters can run side by side.
            state_dir: where everything of it lies; None: in the cache.
            kubernetes: the version, as versions.resolve() takes it; None: that of the cluster if it is there, else
                what the environment says (versions.chosen()).
            feature_gates: Kubernetes' own, for all components; None: as for the version.
        """
        self.layout = Layout.of(name, state_dir)
        self._kubernetes = None if kubernetes is None else versions.resolve(kubernetes)
        self._feature_gates = None if feature_gates is None else dict(feature_gates)
        self._dies_with_caller = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.layout.kubeconfig

    @property
    def token(self) -> str:
        """The administrator's bearer token."""
        return credentials.token(self.layout, credentials.ADMIN)

    @property
    def authority(self) -> Path:
        """The certificate (PEM) by which to verify the API server."""
        return self.layout.pki / "ca.crt"

    @property
    def server(self) -> str:
        """The API server's URL."""
        addresses = self._facts().addresses
        return f"https://{addresses.host}:{addresses.api_port}"

    def node(self, index: int = 0) -> NodePaths:
        """Return a node's name and its folders on this machine."""
        return self.layout.node(index)

    def build(self) -> None:
        """Build the programs that a cluster takes here, where they are not built yet; says what it builds."""
        nodes = 0 if prerequisites.reason_for_process_nodes() else 1
        prerequisites.check(nodes=nodes > 0, install=False)
        self._build(nodes)

    def up(self, nodes: int = 1, *, dies_with_caller: bool = False, install_packages: bool = False) -> None:
        """Start what does not run of the cluster, and return when it is ready: API server, nodes, default account.

        With `nodes=0` it is the control plane alone, on the loopback address, which takes no privileges.
        `dies_with_caller` has the kernel end everything when the calling thread ends, however that happens: also what
        start_process() starts later.
        """
        self._dies_with_caller = self._dies_with_caller or dies_with_caller
        prerequisites.check(nodes=nodes > 0, install=install_packages)
        kubernetes, programs = self._build(nodes)
        remove_abandoned()
        with locked(self.layout.lock):
            facts = self._decide(nodes)
            if dies_with_caller:
                processes.write_record(ProcessId.of(os.getpid()), self.layout.caller)
            credentials.create(self.layout, facts, kubernetes)
            started = [Node(self.layout, facts, index, programs) for index in range(nodes)]
            for node in started:
                node.start_runtime(dies_with_caller=dies_with_caller)
            client = start_control_plane(self.layout, facts, dies_with_caller=dies_with_caller)
            for node in started:
                node.wait_for_runtime()
                _import(node, images.pause_image().archive())
                node.start_kubelet()
            self._wait_until_usable(client, started)

    def upgrade(
        self, kubernetes: str, feature_gates: FeatureGates | None = None, *, only: Sequence[str] = UPGRADED
    ) -> None:
        """Change the version in place, or the feature gates, and return when all is ready again: containers go on.

        First the control plane, then the kubelets, as the skew policy of Kubernetes asks for. With `only` some of the
        components, while the others go on as they are: a cluster in the middle of an upgrade.
        """
        if unknown := set(only) - set(UPGRADED):
            raise LocalClusterError(
                f"components to upgrade: found {', '.join(sorted(unknown))}, expected some of {', '.join(UPGRADED)}"
            )
        release = Release(versions.resolve(kubernetes), dict(feature_gates or {}))
        with locked(self.layout.lock):
            before = self._facts()
            facts = before.with_release(release, only)
            building.kubernetes(release.kubernetes)  # the old version works until the new one is there
            # The API server always: what it serves depends on what the others run.
            for component in ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"):
                is_same = facts.release(component) == before.release(component)
                running = processes.running(processes.record_path(self.layout.state, component))
                if running and not (is_same and component in UPGRADED[1:]):
                    processes.stop(running, timeout_s=1.0)  # the watches of others would hold the API server for long
            self.layout.write_facts(facts)
            start_control_plane(self.layout, facts, dies_with_caller=self._dies_with_caller)
            if facts.release("kubelet") != before.release("kubelet"):
                for index in range(facts.nodes):
                    Node(self.layout, facts, index, self._node_programs()).stop_kubelet()
        self._kubernetes, self._feature_gates = facts.kubernetes, facts.feature_gates
        self.up(facts.nodes, dies_with_caller=self._dies_with_caller)

    def start_process(self, name: str, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a process that belongs to the cluster, unless it runs: `status` shows it, `down` ends it by SIGTERM.

        It starts in the state folder: through /proc/self/cwd, sockets keep to the 107 characters that they may have.
        """
        state = self.layout.state
        with locked(self.layout.lock):
            if not processes.running(processes.record_path(state, name)):
                processes.start(Command(name, argv, state, environment, self._dies_with_caller, state))

    def down(self) -> None:
        """Stop and remove everything of the cluster, whatever state it is in; LeftoversError if something stays."""
        with locked(self.layout.lock, remove=True):
            left = teardown.remove(self.layout)
        if left:
            raise LeftoversError(
                f"cluster {self.layout.name} could not be removed completely; this is left:\n" + "\n".join(left)
            )

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as administrator and return its output; LocalClusterError with its message if it fails."""
        return _run([str(self._kubernetes_programs() / "kubectl"), *arguments], self.environment(), stdin)

    def helm(self, *arguments: str) -> str:
        """Run helm as administrator and return its output; LocalClusterError with its message if it fails."""
        return _run([str(building.tools() / "helm"), *arguments], self.environment(), None)

    def program(self, name: str) -> Path:
        """Return the path of a program of this cluster: kubectl, helm, ctr, runc, kubelet, ..."""
        own = self._kubernetes_programs() / name
        return own if own.exists() else building.tools() / name

    def environment(self) -> dict[str, str]:
        """Return the environment in which kubectl, helm and clients of ours find this cluster."""
        helm = self.layout.state / "helm"
        homes = {f"HELM_{kind}_HOME": str(helm / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        return os.environ | {"KUBECONFIG": str(self.kubeconfig)} | homes

    def load_image(self, archive: Path) -> str:
        """Give every node the image in an archive of images.Image, where it has it not, and return its name."""
        facts = self._facts()
        for index in range(facts.nodes):
            _import(Node(self.layout, facts, index, self._node_programs()), archive)
        return images.image_of(archive)[0]

    def status(self) -> list[ProcessStatus]:
        """Return the cluster's processes; those without an id do not run. Empty if the cluster was never started."""
        facts = self.layout.read_facts()
        if facts is None:
            return []
        further = [record.stem for record in teardown.further_records(self.layout)]
        places = [(self.layout.state, process, process) for process in (*COMPONENTS, *further)]
        for index in range(facts.nodes):
            paths = self.layout.node(index)
            places += [
                (paths.directory, process, f"{process} of {paths.name}") for process in ("containerd", "kubelet")
            ]
        found = []
        for directory, process, label in places:
            identity = processes.running(processes.record_path(directory, process))
            found.append(ProcessStatus(label, identity.pid if identity else None))
        return found

    def _facts(self) -> Facts:
        facts = self.layout.read_facts()
        if facts is None:
            raise LocalClusterError(f"cluster {self.layout.name} is not up (no {self.layout.state / 'cluster.json'})")
        return facts

    def _decide(self, nodes: int) -> Facts:
        """Return the facts of the cluster, decided now if it is new; its bridge is there afterwards."""
        facts = self.layout.read_facts()
        if facts is None:
            self.layout.state.mkdir(parents=True, exist_ok=True)
            addresses = links.create_bridge(self.layout) if nodes else Addresses.on_loopback()
            version, gates = versions.chosen()
            if self._feature_gates is not None:
                gates = self._feature_gates
            facts = Facts(self.layout.name, self._kubernetes or version, nodes, addresses, gates)
            self.layout.write_facts(facts)
        if facts.nodes != nodes:
            raise StartError(
                f"cluster {self.layout.name} has {facts.nodes} nodes, but {nodes} were asked for: take it down first, "
                "or choose another name"
            )
        wanted = (self._kubernetes or facts.kubernetes, facts.feature_gates)
        if self._feature_gates is not None:
            wanted = (wanted[0], self._feature_gates)
        if (facts.kubernetes, facts.feature_gates) != wanted:
            raise StartError(
                f"cluster {self.layout.name} has {_describe(facts.kubernetes, facts.feature_gates)}, but "
                f"{_describe(*wanted)} was asked for: upgrade it, take it down first, or choose another name"
            )
        if facts.addresses.subnet is not None:
            links.ensure_bridge(self.layout, facts.addresses)
        return facts

    def _build(self, nodes: int) -> tuple[Path, Programs]:
        return self._kubernetes_programs(), self._node_programs() if nodes else Programs(Path(), Path())

    def _kubernetes_programs(self) -> Path:
        """Return the folder of the API server's version, built if it is not there yet."""
        facts = self.layout.read_facts()
        return building.kubernetes(facts.kubernetes if facts else self._kubernetes or versions.chosen()[0])

    @staticmethod
    def _node_programs() -> Programs:
        return Programs(building.tools(), images.pause_program())

    def _wait_until_usable(self, client: ApiClient, nodes: list[Node]) -> None:
        """Wait for what a pod needs: a ready node, and the account that pods have by default."""
        accounts = "/api/v1/namespaces/default/serviceaccounts"
        client.wait_for(accounts, is_named("default"), NODE_TIMEOUT_S, "the default service account")
        for node in nodes:
            name = node.paths.name
            try:
                client.wait_for("/api/v1/nodes", node_is_ready(name), NODE_TIMEOUT_S, f"node {name} in state Ready")
            except StartError as error:
                raise StartError(f"{error}; see {node.paths.directory / 'logs'}") from None


def remove_abandoned() -> None:
    """Remove what is left of clusters that ended with a caller that could not take them down, being killed itself."""
    for state in (cache_dir() / "clusters").glob("*"):
        layout = Layout.of(state.name)
        caller = processes.recorded(layout.caller)
        if caller is not None and not caller.alive():
            Cluster(layout.name).down()


def _describe(kubernetes: str, feature_gates: FeatureGates) -> str:
    gates = versions.format_gates(feature_gates)
    return f"Kubernetes {kubernetes} with {gates}" if gates else f"Kubernetes {kubernetes}"


def _import(node: Node, archive: Path) -> None:
    if images.image_of(archive) not in node.images():
        node.import_image(archive)


def _run(command: list[str], environment: dict[str, str], stdin: str | None) -> str:
    done = subprocess.run(command, env=environment, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LocalClusterError(f"{Path(command[0]).name} {' '.join(command[1:])}: {done.stderr.strip()}")
    return done.stdout
