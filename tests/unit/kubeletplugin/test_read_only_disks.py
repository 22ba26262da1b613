"""A state folder on a disk that turns read-only, as ext4 does after an error; and a container runtime restarted."""

import contextlib
import ctypes
import gc
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.errors import StateError
from kubeletplugin.state.restoring import restore
from tests.unit.kubeletplugin.barenode import A, BareNode
from tests.unit.kubeletplugin.builders import result

_BYTES = 8 << 20


class Disk:
    """An ext4 of its own. It turns read-only under its users; it must be mended before it can be written again."""

    def __init__(self, image: Path, folder: Path) -> None:
        self.image, self.folder = image, folder

    def mount(self) -> bool:
        """Mount it; return whether that is permitted."""
        return not _run("mount", "-o", "loop,errors=remount-ro", str(self.image), str(self.folder))

    def fail(self) -> None:
        """Let the file system find an error; skips the test where that is not permitted."""
        device = self.folder.stat().st_dev
        name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        try:
            Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("1")
        except OSError:
            pytest.skip("errors of file systems cannot be made here")

    def mend(self) -> None:
        """Check and mount it again, as a reboot of the node does."""
        gc.collect()  # ends what the agents before had open
        subprocess.run(["umount", str(self.folder)], check=True)
        assert _run("e2fsck", "-p", "-f", str(self.image)) in {0, 1}
        assert self.mount()


_CLONE_NEWNS = 0x20000  # linux/sched.h


@contextlib.contextmanager
def _mounts_of_our_own() -> Iterator[None]:
    """Let this thread and its children mount where nobody else sees it.

    A container that is started meanwhile, by another test or by anybody, would keep the disk mounted with its own copy
    of the machine's mounts: it could be neither checked nor mounted anew.
    """
    libc, before = ctypes.CDLL(None, use_errno=True), Path.cwd()
    usual = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    try:
        if libc.unshare(_CLONE_NEWNS):
            pytest.skip("mount namespaces are not permitted here")
        try:
            if _run("mount", "--make-rprivate", "/"):
                pytest.skip("mounts are not permitted here")
            yield
        finally:
            assert libc.setns(usual, _CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
            os.chdir(before)
    finally:
        os.close(usual)


def _run(*command: str) -> int:
    return subprocess.run(command, check=False, capture_output=True).returncode


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs root and mkfs.ext4")
    disk = Disk(tmp_path / "image", tmp_path / "state")
    disk.folder.mkdir()
    with disk.image.open("wb") as file:
        file.truncate(_BYTES)
    with _mounts_of_our_own():
        if _run("mkfs.ext4", "-q", str(disk.image)) or not disk.mount():
            pytest.skip("loop mounts are not permitted here")
        try:
            yield disk
        finally:
            subprocess.run(["umount", "--lazy", str(disk.folder)], check=True)


@pytest.fixture
def node(tmp_path: Path, disk: Disk) -> BareNode:
    return BareNode(tmp_path)


def test_on_a_read_only_disk_claims_that_are_prepared_are_answered_and_new_ones_say_why(
    node: BareNode, disk: Disk
) -> None:
    def use() -> None:
        state, preparer, unpreparer = node.start()
        ids = [state.cdi_ids(device) for device in preparer.prepare(node.claim).devices]
        limits = node.limits()
        disk.fail()

        assert [state.cdi_ids(device) for device in preparer.prepare(node.claim).devices] == ids
        node.reallocate(result(A, "1Gi", request="a"), result(A, "4Gi", request="b"))
        with pytest.raises(OSError, match="Read-only file system"):
            preparer.prepare(node.claim)
        assert node.limits() == limits
        with pytest.raises(OSError, match="Read-only file system"):
            unpreparer.unprepare(node.claim.uid)
        assert node.claim.uid in state.ledger.prepared()

    use()
    disk.mend()
    _, preparer, unpreparer = node.start()
    preparer.prepare(node.claim)
    assert [one.memory_bytes >> 30 for one in node.limits()] == [1, 4]
    unpreparer.unprepare(node.claim.uid)
    assert node.files() == []


def test_an_agent_that_starts_on_a_read_only_disk_says_so_and_loses_nothing(node: BareNode, disk: Disk) -> None:
    node.prepare()
    disk.fail()

    with pytest.raises(StateError, match="Read-only file system"):
        node.start()

    disk.mend()
    state, _, _ = node.start()
    assert list(state.ledger.prepared()) == [node.claim.uid]
    assert len(node.limits()) == 2


def test_a_runtime_that_is_restarted_finds_all_that_it_had(tmp_path: Path) -> None:
    """It keeps no state of ours: it reads the CDI specs again, and mounts what they name."""
    node = BareNode(tmp_path)
    state, preparer, _ = node.start()
    preparer.prepare(node.claim)
    specs = {path: path.read_bytes() for path in node.paths.cdi_dir.iterdir()}

    preparer.prepare(node.claim)  # as the kubelet does for a pod whose sandbox it makes anew
    restore(state)

    assert {path: path.read_bytes() for path in node.paths.cdi_dir.iterdir()} == specs
    assert len(node.limits()) == 2
