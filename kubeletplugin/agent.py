"""The node agent as a whole: builds its parts, starts and stops them, says whether it is well.

Called by `dra-driver node-agent`, and by tests with a fake API server and fake devices.
"""

import importlib.metadata
import threading
from collections.abc import Callable
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry

from api.kube import KubeClient
from kubeletplugin.agentsettings import AgentSettings
from kubeletplugin.claims.claimfollowing import ClaimFollower
from kubeletplugin.claims.claimreading import ClaimReader
from kubeletplugin.claims.collecting import Collector
from kubeletplugin.claims.eventing import EventWriter
from kubeletplugin.claims.preparing import Hooks, Preparer
from kubeletplugin.claims.runtimes import RuntimeGuard
from kubeletplugin.claims.unpreparing import Unpreparer
from kubeletplugin.enduring import endure
from kubeletplugin.hardware.devices import DeviceTable, Discovery
from kubeletplugin.hardware.discovering import Discoverer, HeartbeatPace
from kubeletplugin.hardware.discovery import DiscoveryBackend
from kubeletplugin.hardware.driverroots import DriverRoot
from kubeletplugin.hardware.faultfiles import FAULTS_FILE
from kubeletplugin.hardware.holdingback import Filter
from kubeletplugin.hardware.inventory import OFFERS_FILE, InventoryWriter
from kubeletplugin.hardware.labels import label_for_containers
from kubeletplugin.hardware.nodeviews import NodeView
from kubeletplugin.hardware.nvidia import NvidiaDiscovery, NvidiaOptions
from kubeletplugin.hardware.openruntimes import tell_of_open_runtimes
from kubeletplugin.hardware.patienttimes import PatientTimes
from kubeletplugin.hardware.seendevices import SEEN_FILE
from kubeletplugin.kubelet.healths import HealthBoard
from kubeletplugin.kubelet.services import HealthSettings, dra_services
from kubeletplugin.kubelet.serving import PluginServer
from kubeletplugin.kubelet.sockets import SocketPaths
from kubeletplugin.monitoring.bookreading import Monitor
from kubeletplugin.monitoring.contextsizes import ContextSizes
from kubeletplugin.monitoring.observing import Intervals, Observer, Watchers
from kubeletplugin.monitoring.owners import ProcessOwners
from kubeletplugin.monitoring.steering import Steering, SteeringPace
from kubeletplugin.monitoring.strays import StrayWatch
from kubeletplugin.monitoring.supervising import Supervisor
from kubeletplugin.monitoring.unseenmemory import UnseenMemory
from kubeletplugin.state.cdi import gpu_spec
from kubeletplugin.state.ledgers import Ledger
from kubeletplugin.state.libraries import install_library
from kubeletplugin.state.nodestates import NodePaths, NodeState, take_state_dir
from kubeletplugin.state.preparedclaims import PreparedClaim
from kubeletplugin.state.restoring import restore
from libvgpu.paths import library_path

_STOP_S = 5.0


class NodeAgent:
    """Serves one node, from start() until stop()."""

    def __init__(
        self,
        client: KubeClient,
        settings: AgentSettings,
        backend: DiscoveryBackend | None = None,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        """Take what it works with.

        Args:
            client: the Kubernetes API.
            settings: of this node.
            backend: finds the devices; None: NVIDIA's, from the driver root.
            registry: where its metrics are served from.
        """
        settings = self._settings = settings.with_absolute_paths()
        root = settings.driver_root
        self._backend = backend or NvidiaDiscovery(
            DriverRoot(root, settings.driver_root_on_host or root),
            NvidiaOptions(
                hold_back=Filter.parse(settings.hold_back),
                ignored_xids=frozenset(settings.ignored_xids),
                cdi_dir=settings.cdi_dir,
                faults_file=settings.state_dir / FAULTS_FILE,
                seen_file=settings.state_dir / SEEN_FILE,
                uncounted_apis=settings.uncounted_apis,
            ),
        )
        self._sockets = SocketPaths.of(settings.kubelet_dir, settings.driver_name, settings.pod_uid)
        self._client = client
        self._reader = ClaimReader(client)
        self._events = EventWriter(client, settings.node_name)
        self._guard = RuntimeGuard(client, settings.refused_runtimes, self._events.tell_of_pod)
        self._registry = registry
        self._board = HealthBoard(lambda: self._state.held_devices() if self._state else ())
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._inventory = InventoryWriter(
            client, settings.node_name, settings.driver_name, _version(), settings.state_dir / OFFERS_FILE
        )
        self._discoverer = Discoverer(
            self._backend,
            self._inventory,
            NodeView(settings.driver_name, settings.node_name, DeviceTable(())),
            self._publish,
            HeartbeatPace(settings.heartbeat_s, settings.retry_s),
        )
        self._server: PluginServer | None = None
        self._state: NodeState | None = None
        self._observer: Observer | None = None
        self._follower: ClaimFollower | None = None
        self._times = PatientTimes(self._backend.gpu_times())

    def start(self) -> None:
        """Begin to serve.

        Raises:
            StateError: another instance has the sockets, or the node's state cannot be used.
        """
        settings = self._settings
        paths = NodePaths(settings.state_dir, settings.cdi_dir)
        take_state_dir(paths, settings.driver_name)
        library = install_library(settings.library or library_path(), paths.library_dir)
        contexts = ContextSizes(paths.contexts_file, settings.context_bytes)
        state = NodeState(paths, settings.driver_name, settings.node_name, library, contexts.bytes_of)
        collector = Collector(state, self._reader, settings.driver_name)
        unpreparer = Unpreparer(state)
        hooks = Hooks(self._guard, collector.make_room, unpreparer.is_undone_since, self._note_prepared)
        preparer = Preparer(self._reader, state, self._discoverer.view, hooks)
        follower = ClaimFollower(self._reader, state.ledger, paths.shares_dir, self._events.tell, self._guard.meet)
        strays = StrayWatch(self._events.tell_of_node, follower.look_now, settings.overuse_slack)
        unseen = UnseenMemory(lambda: _share_folders(state.ledger, paths.shares_dir))
        supervisor = Supervisor(
            self._events.tell,
            ProcessOwners(state.ledger.prepared, paths.shares_dir),
            observers=(contexts.observe, strays.observe, unseen.observe),
            slack=settings.overuse_slack,
        )
        observer = Observer(
            Watchers(
                Monitor(state.ledger, paths.shares_dir, self._stopping.wait), supervisor, strays, collector.leftovers
            ),
            self._backend,
            self._discoverer,
            Intervals(settings.monitor_interval_s, settings.driver_interval_s),
        )
        steering = Steering(
            lambda: _share_folders(state.ledger, paths.shares_dir),
            self._times,
            ProcessOwners(state.ledger.prepared, paths.shares_dir),
            pace=SteeringPace.of(settings.steering_interval_s),
        )
        services = dra_services(preparer, unpreparer, state, observer.durations)
        health = HealthSettings(self._board, settings.node_name, settings.health_interval_s)
        server = PluginServer(self._sockets, settings.driver_name, services, health)
        server.lock()  # before anything is read or changed: nobody else has these sockets
        try:
            restore(state)
            label_for_containers(paths.shares_dir, paths.library_dir)
            self._state, self._observer, self._follower = state, observer, follower
            server.start()
        except BaseException:
            server.stop()
            raise
        self._server = server
        tell_of_open_runtimes()
        observer.register(self._registry)
        self._events.start()
        bodies: dict[str, Callable[[], None]] = {
            "heartbeat": lambda: self._discoverer.run_until(self._stopping, lambda: self._refresh(follower)),
            "monitor": lambda: observer.watch_books_until(self._stopping),
            "driver": lambda: observer.watch_driver_until(self._stopping),
            "steering": lambda: steering.run(self._stopping),
            "collector": lambda: collector.run_until(self._stopping, settings.collect_interval_s),
            "events": lambda: self._discoverer.watch_until(self._stopping),
            "claims": lambda: follower.run_until(self._stopping, settings.annotation_interval_s),
            "sockets": lambda: server.watch_until(self._stopping),
        }
        for name, body in bodies.items():
            thread = threading.Thread(target=endure, args=(body, name, self._stopping), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End to serve; calls that run are answered first. Prepared claims stay prepared."""
        self._stopping.set()
        self._discoverer.stop()
        if self._follower is not None:
            self._follower.stop()
        self._board.close()
        if self._server is not None:
            self._server.stop()
        closing = threading.Thread(target=self._backend.close, name="closing", daemon=True)
        closing.start()
        for thread in (closing, *self._threads):
            thread.join(_STOP_S)  # one that waits for an API server or a driver that is away ends with the process
        self._times.close()
        self._events.stop(_STOP_S)
        if self._observer is not None:
            self._observer.unregister()

    def alive(self) -> str:
        """Return why a restart would help, empty if it would not.

        A driver that does not answer is no reason: a process inside a driver that hangs cannot even be killed, and this
        agent still undoes claims.
        """
        for thread in self._threads:
            if not thread.is_alive() and not self._stopping.is_set():
                return f"thread {thread.name} has ended"
        if self._server is not None and self._server.problem() and not self._stopping.is_set():
            return self._server.problem()
        silent_s = self._observer.silent_s() if self._observer else 0.0
        if silent_s > max(60.0, 10 * self._settings.monitor_interval_s):
            return f"the monitor has not finished a round for {silent_s:.0f} s"
        return ""

    def ready(self) -> str:
        """Return why the kubelet cannot call us, empty if it can.

        Devices do not count: a node without a GPU, or with a broken driver, must not hold up an update of all agents.
        What keeps them from being discovered is told by the NodeInventory's message and by the metrics.
        """
        return "starting" if self._server is None else self._server.registration_problem()

    def _note_prepared(self, claim: PreparedClaim) -> None:
        self._board.note_held(device.device for device in claim.devices)
        if self._follower is not None:
            self._follower.forget(claim.uid)

    def _refresh(self, follower: ClaimFollower) -> None:
        """Take over what the controller tells, and ask the API server anew for what no claim shall have to wait for."""
        follower.take_news(self._inventory.followed)
        self._reader.refresh()

    def _publish(self, found: Discovery) -> None:
        """Let the kubelet and the container runtime know of devices, before claims get them."""
        self._board.update(found.devices)
        assert self._state is not None
        self._state.specs.write_gpus(gpu_spec(self._settings.driver_name, found.devices, found.driver))


def _share_folders(ledger: Ledger, shares_dir: Path) -> dict[str, Path]:
    """Return the folders of all prepared shares, by name."""
    return {one.share: shares_dir / one.share for claim in ledger.prepared().values() for one in claim.shares()}


def _version() -> str:
    try:
        return importlib.metadata.version("dra-driver-vgpu")
    except importlib.metadata.PackageNotFoundError:
        return ""
