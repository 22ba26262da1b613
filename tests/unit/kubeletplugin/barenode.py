"""A node without sockets: its files, and an agent's state, preparer and unpreparer, started anew each time."""

from pathlib import Path

from api.kubefake import FakeKube
from api.names import ClaimUID
from kubeletplugin.claims.claimreading import ClaimReader, ClaimReference
from kubeletplugin.claims.preparing import Hooks, Preparer
from kubeletplugin.claims.unpreparing import Unpreparer
from kubeletplugin.hardware.devices import DeviceTable
from kubeletplugin.hardware.nodeviews import NodeView
from kubeletplugin.state.libraries import InstalledLibrary
from kubeletplugin.state.nodestates import NodePaths, NodeState
from kubeletplugin.state.restoring import restore
from libvgpu.shares import Limits, read_limits
from tests.unit.kubeletplugin.builders import CLAIMS, NODE, add_claim, gpu, result

A = gpu(0)


class BareNode:
    """A node's files, and an agent that is started anew each time."""

    def __init__(self, root: Path) -> None:
        self.client = FakeKube()
        ref = add_claim(self.client, "train", result(A, "2Gi", request="a"), result(A, "3Gi", request="b"))
        self.claim = ClaimReference(ref.namespace, ref.name, ClaimUID(ref.uid))
        self.paths = NodePaths(root / "state", root / "cdi")

    def start(self) -> tuple[NodeState, Preparer, Unpreparer]:
        library = InstalledLibrary(Path("/lib/libvgpu-1.so"), Path("/lib/libvgpu-1.so.preload"))
        state = NodeState(self.paths, "vgpu.dra-driver.io", NODE, library)
        restore(state)
        view = self.view()
        return state, Preparer(ClaimReader(self.client), state, lambda: view, self.hooks(state)), Unpreparer(state)

    def hooks(self, _state: NodeState) -> Hooks:
        """Return what others do; nothing, unless a test has more than files."""
        return Hooks()

    def view(self) -> NodeView:
        """Return the node with its one GPU."""
        return NodeView("vgpu.dra-driver.io", NODE, DeviceTable([A]))

    def prepare(self) -> list[list[str]]:
        state, preparer, _ = self.start()
        return [state.cdi_ids(device) for device in preparer.prepare(self.claim).devices]

    def reallocate(self, *results: dict[str, object]) -> None:
        """Give the claim another allocation, as a scheduler does to one that nobody uses."""
        stored = self.client.get(CLAIMS, "train", "default")
        stored["status"]["allocation"]["devices"]["results"] = list(results)
        self.client.replace(CLAIMS, stored, "status")

    def unprepare(self) -> None:
        self.start()[2].unprepare(self.claim.uid)

    def limits(self) -> list[Limits]:
        return [read_limits(self.paths.shares_dir / f"{self.claim.uid}-{index}") for index in (0, 1)]

    def files(self) -> list[Path]:
        return [
            path
            for folder in (self.paths.checkpoint_dir, self.paths.shares_dir, self.paths.cdi_dir)
            for path in folder.rglob("*")
        ]

    def check_that_no_share_is_unlimited(self) -> None:
        """A container can start as soon as there is a CDI spec: its limits must be whole by then."""
        if any(self.paths.cdi_dir.glob("*claim*.json")):
            self.limits()
