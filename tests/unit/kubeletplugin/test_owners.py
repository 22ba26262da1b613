"""Whose processes are whose, whatever a tenant does to its own view of the node."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from api.names import ClaimUID, DeviceName
from kubeletplugin.monitoring import mounts, owners
from kubeletplugin.monitoring.mounts import Origin
from kubeletplugin.monitoring.owners import ProcessOwners
from kubeletplugin.state.ledgers import Prepared
from kubeletplugin.state.preparedclaims import PreparedClaim, PreparedDevice
from libvgpu.shares import Limits, Policy

POD, OTHER_POD = "5f0c3a52-8a0e-4c55-9e8c-0c7b4f9a1d11", "5f0c3a52-8a0e-4c55-9e8c-0c7b4f9a1d22"
IN_SYSTEMD = "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice/cri-containerd-{}.scope\n"
IN_CGROUPFS = "12:pids:/kubepods/burstable/pod{0}/{1}\n11:memory:/kubepods/burstable/pod{0}/{1}\n0::/\n"
FROM_A_POD = "0::/../../kubepods-burstable-pod{}.slice/crio-{}.scope\n"


SHARES_DIR = Path("/var/lib/dra-driver-vgpu/shares")


def mount(share: str, source: str = "", device: str = "254:1", at: str = "") -> str:
    root = source or f"{SHARES_DIR}/{share}/limits"
    at = at or f"/run/vgpu/shares/{share}/limits"
    return f"712 700 {device} {root} {at} ro,nosuid,nodev - ext4 /dev/vda1 rw\n"


class Node:
    """A node's processes and claims."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.claims: Prepared = {}
        self.now_s = 0.0
        self.owners = ProcessOwners(lambda: self.claims, SHARES_DIR, proc, lambda: self.now_s)
        self.mount_state()

    def mount_state(self, mounts: str = "1 0 254:1 / / rw - ext4 /dev/vda1 rw\n") -> None:
        """Say what the agent itself has mounted."""
        folder = self.proc / "self"
        folder.mkdir(exist_ok=True)
        (folder / "mountinfo").write_text(mounts)

    def run(self, pid: int, mounts: str = "", cgroup: str = "0::/user.slice\n", started: int = 22) -> None:
        folder = self.proc / str(pid)
        folder.mkdir(exist_ok=True)
        fields = [*range(4, 22), started, *range(23, 53)]
        (folder / "stat").write_text(f"{pid} (a) b) S " + " ".join(str(field) for field in fields))
        (folder / "mountinfo").write_text(mounts)
        (folder / "cgroup").write_text(cgroup)

    def prepare(self, share: str, *pods: str) -> None:
        limits = Limits(share, "GPU-A", 1 << 30, 25, 25, Policy.FIXED)
        device = PreparedDevice(0, "gpu", "node-1", DeviceName("gpu-a"), limits=limits)
        claim = PreparedClaim(ClaimUID(share[:-2]), "team-a", "train", (device,), pods=pods)
        self.claims = {**self.claims, claim.uid: claim}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_process_belongs_to_the_shares_whose_limits_are_mounted_into_its_container(node: Node) -> None:
    node.run(
        4711, "1 0 254:1 / / rw - ext4 /dev/vda1 rw\n" + mount("claim-a-0") + mount("claim-b-0", "/home/me/limits")
    )

    assert node.owners.shares_of(4711) == {"claim-a-0"}
    assert node.owners.shares_of(4712) == frozenset()
    node.run(4711, started=23)
    assert node.owners.shares_of(4711) == frozenset()  # another process by now


@pytest.mark.parametrize(
    "forged",
    [
        mount("claim-b-0", "/home/me/limits"),
        mount("claim-b-0", f"{SHARES_DIR}/claim-b-0/limits", device="0:57"),  # the same path on a tmpfs of its own
        mount("claim-b-0", "/shares/claim-b-0/limits", device="0:57"),
        mount("claim-b-0", f"/srv{SHARES_DIR}/claim-b-0/limits"),
        mount("claim-b-0", f"{SHARES_DIR}/claim-a-0/limits"),  # its own share under another's name
        mount("claim-b-0", f"{SHARES_DIR}/claim-b-0/books"),
        mount("claim-b-0", "/x", at=f"/x\r1\r254:1\r{SHARES_DIR}/claim-b-0/limits\r/y\rro"),
    ],
)
def test_who_may_mount_cannot_make_its_processes_anothers(node: Node, forged: str) -> None:
    node.prepare("claim-a-0", POD)
    node.prepare("claim-b-0", OTHER_POD)
    node.run(1, mount("claim-a-0") + forged, IN_SYSTEMD.format(POD.replace("-", "_"), "c1"))
    node.run(2, forged.replace("claim-a-0", "claim-c-0"), IN_SYSTEMD.format(POD.replace("-", "_"), "c2"))

    assert node.owners.shares_of(1) == {"claim-a-0"}
    assert "claim-b-0" not in node.owners.shares_of(2)


@pytest.mark.parametrize(
    "hidden",
    [
        mount("claim-a-0", at="/tmp/.x"),
        mount("claim-a-0", f"{SHARES_DIR}/claim-a-0/limits//deleted"),  # mended on the node since it was mounted
    ],
)
def test_a_share_is_known_wherever_its_limits_are_mounted_and_whatever_became_of_them(node: Node, hidden: str) -> None:
    node.run(1, hidden)

    assert node.owners.shares_of(1) == {"claim-a-0"}


def test_the_agent_may_have_its_state_mounted_from_elsewhere(node: Node) -> None:
    node.mount_state(
        "1 0 0:30 / / rw - overlay overlay rw\n"
        "2 1 254:9 /of\\040mine/vgpu /var/lib/dra-driver-vgpu rw - ext4 /dev/vdb rw\n"
    )
    node.run(1, mount("claim-a-0", "/of\\040mine/vgpu/shares/claim-a-0/limits", device="254:9"))
    node.run(2, mount("claim-a-0"))

    assert node.owners.shares_of(1) == {"claim-a-0"}
    assert node.owners.shares_of(2) == frozenset()


def test_names_that_are_no_text_make_no_trouble(node: Node) -> None:
    node.run(1, mount("claim-a-0"))
    folder = node.proc / "1"
    (folder / "stat").write_bytes((folder / "stat").read_bytes().replace(b"(a) b)", b"(\xff\xfe) R 1)"))
    (folder / "mountinfo").write_bytes(b"9 1 0:9 / /tmp/\xff rw - tmpfs \xff rw\n" + mount("claim-a-0").encode())
    (folder / "cgroup").write_bytes(b"0::/user.slice/\xff\n")

    assert node.owners.shares_of(1) == {"claim-a-0"}


@pytest.mark.parametrize("cgroup", [IN_SYSTEMD, IN_CGROUPFS, FROM_A_POD])
def test_a_process_that_changed_its_root_has_the_shares_of_its_container(node: Node, cgroup: str) -> None:
    uid = POD if cgroup is IN_CGROUPFS else POD.replace("-", "_")
    node.run(1, mount("claim-a-0"), cgroup.format(uid, "c1"))
    node.run(2, mount("claim-b-0"), cgroup.format(uid, "c2"))
    node.run(3, "", cgroup.format(uid, "c1"))

    assert node.owners.shares_of(3) == {"claim-a-0"}


def test_a_container_that_hides_all_its_mounts_counts_for_the_claims_of_its_pod(node: Node) -> None:
    node.prepare("claim-a-0", OTHER_POD)
    node.prepare("claim-b-0", OTHER_POD, POD)
    node.run(3, "", IN_SYSTEMD.format(POD.replace("-", "_"), "c1") + "sub")

    assert node.owners.shares_of(3) == {"claim-b-0"}


def test_a_name_of_another_pod_below_its_own_cgroup_makes_no_process_anothers(node: Node) -> None:
    node.prepare("claim-a-0", OTHER_POD)
    node.prepare("claim-b-0", POD)
    node.run(3, "", f"0::/kubepods/pod{POD}/c1/kubepods/pod{OTHER_POD}/c9\n")

    assert node.owners.shares_of(3) == {"claim-b-0"}


def test_a_process_without_a_share_is_asked_again_when_its_pod_may_have_come_to_one(node: Node) -> None:
    node.run(3, "", IN_CGROUPFS.format(POD, "c1"))
    assert node.owners.shares_of(3) == frozenset()
    node.prepare("claim-a-0", POD)

    node.now_s = 30.0

    assert node.owners.shares_of(3) == {"claim-a-0"}


def test_a_tenant_with_very_many_mounts_and_processes_makes_little_work_and_stays_known(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.prepare("claim-a-0", POD)
    many = "".join(f"{number} 1 0:9 / /tmp/{number} rw - tmpfs tmpfs rw\n" for number in range(20_000))
    node.run(1, many + mount("claim-a-0"), IN_CGROUPFS.format(POD, "c1"))
    for pid in range(2, 100):
        node.run(pid, "1 0 0:9 / / rw - tmpfs tmpfs rw\n", IN_CGROUPFS.format(POD, "c1"))
    read: list[int] = []

    def count(mountinfo: str) -> Iterator[Origin]:
        read.append(len(mountinfo))
        return mounts.origins(mountinfo)

    monkeypatch.setattr(owners, "origins", count)

    assert {node.owners.shares_of(pid) for pid in range(1, 100)} == {frozenset({"claim-a-0"})}
    assert len(read) <= 99 + 32  # each by itself, and some once more for all
    assert sum(read) <= 2 * (1 << 18) + 200 * 100


def test_a_process_is_known_as_soon_as_its_pod_is_known_to_have_come_to_a_claim(node: Node) -> None:
    node.prepare("claim-a-0", OTHER_POD)
    node.run(3, "", IN_CGROUPFS.format(POD, "c1"))
    assert (node.owners.shares_of(3), node.owners.pod_of(3)) == (frozenset(), POD)

    node.prepare("claim-a-0", OTHER_POD, POD)

    assert node.owners.shares_of(3) == {"claim-a-0"}


def test_a_pod_that_may_observe_is_no_stray(node: Node) -> None:
    node.run(3, "", IN_CGROUPFS.format(POD, "c1"))
    observed = PreparedDevice(0, "gpu", "node-1", DeviceName("gpu-a"))
    node.claims = {ClaimUID("claim-o"): PreparedClaim(ClaimUID("claim-o"), "ops", "look", (observed,), pods=(POD,))}

    assert (node.owners.shares_of(3), node.owners.pod_of(3)) == (frozenset(), "")


def test_a_process_of_the_node_has_no_share_beside_others_of_the_node(node: Node) -> None:
    node.prepare("claim-a-0", POD)
    node.run(1, mount("claim-a-0"), "0::/user.slice\n")
    node.run(2, "", "0::/user.slice\n")

    assert node.owners.shares_of(2) == frozenset()
