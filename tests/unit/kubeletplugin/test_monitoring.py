"""Reading books: metrics of each share, and what Burst shares are granted."""

import ctypes
import errno
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from api.names import ClaimUID, DeviceName
from kubeletplugin.monitoring.bookreading import Monitor
from kubeletplugin.monitoring.metrics import NodeCollector, NodeFigures
from kubeletplugin.state.ledgers import Ledger
from kubeletplugin.state.preparedclaims import PreparedClaim, PreparedDevice
from libvgpu.layout import layout
from libvgpu.shares import Books, BooksReader, Limits, Policy, change_limits, create_share

GIB = 1 << 30
_XFS_BYTES = 320 << 20
"""Less is no file system, says mkfs.xfs; of it a few MiB are written."""


class Node:
    """A ledger with shares on one device."""

    def __init__(self, root: Path) -> None:
        self.shares_dir = root / "shares"
        self.ledger = Ledger(root / "checkpoint", lambda _uid: None)
        self.ledger.load()
        self.monitor = Monitor(self.ledger, self.shares_dir)

    def add(self, uid: str, cores: int, policy: Policy) -> Path:
        ceiling = cores if policy is Policy.FIXED else 100
        limits = Limits(f"{uid}-0", "GPU-1", 2 * GIB, cores, ceiling, policy)
        device = PreparedDevice(0, "gpu", "node-1", DeviceName("gpu-1"), limits=limits)
        self.ledger.add(PreparedClaim(ClaimUID(uid), "team-a", uid, (device,)))
        create_share(self.shares_dir / limits.share, limits)
        return self.shares_dir / limits.share


def use(share: Path, gpu_time_ns: int) -> None:
    """Write into the books what processes that ended have used."""
    with (share / "books").open("r+b") as file:
        raw = bytearray(file.read())
        layout().books(raw).ended_gpu_time_ns = gpu_time_ns
        file.seek(0)
        file.write(raw)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_metrics_name_the_claim_and_the_device_of_a_share(node: Node) -> None:
    use(node.add("train", 25, Policy.FIXED), 3_000_000_000)
    registry = CollectorRegistry()
    registry.register(NodeCollector(lambda: NodeFigures(readings=node.monitor.readings())))
    labels = {"share": "train-0", "namespace": "team-a", "claim": "train", "device": "GPU-1"}

    node.monitor.run_once()

    assert registry.get_sample_value("vgpu_share_memory_limit_bytes", labels) == 2 * GIB
    assert registry.get_sample_value("vgpu_share_memory_bytes", labels) == 0
    assert registry.get_sample_value("vgpu_share_gpu_seconds_total", labels) == 3.0
    assert registry.get_sample_value("vgpu_share_compute_guaranteed_ratio", labels) == 0.25


def test_a_share_that_is_gone_has_no_metrics(node: Node) -> None:
    node.add("train", 25, Policy.FIXED)
    node.monitor.run_once()

    node.ledger.remove(ClaimUID("train"))
    node.monitor.run_once()

    assert node.monitor.readings() == []


@pytest.mark.parametrize("damage", [b"", b"\xff" * 266240, b"short"])
def test_books_that_a_tenant_damaged_cost_that_share_its_figures_only(
    node: Node, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (node.add("bad", 20, Policy.FIXED) / "books").write_bytes(damage)
    node.add("good", 20, Policy.FIXED)

    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            node.monitor.run_once()

    assert [reading.limits.share for reading in node.monitor.readings()] == ["good-0"]
    assert [record.getMessage() for record in caplog.records] == [
        "share cannot be read: no figures of it, and no steering, until its pod is started anew"
    ]  # once, not five times


def test_what_a_container_writes_behind_the_end_of_its_books_is_taken_off_the_nodes_disk(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    share = node.add("greedy", 20, Policy.FIXED)
    use(share, 1_000_000_000)
    with (share / "books").open("ab") as file:
        file.write(bytes(1 << 20))

    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            node.monitor.run_once()

    assert (share / "books").stat().st_size == layout().constants.VGPU_BOOKS_FILE_BYTES
    assert [reading.books.gpu_time_ns for reading in node.monitor.readings()] == [1_000_000_000]
    assert [record.getMessage() for record in caplog.records] == [
        "a container wrote behind the end of its books; cut back"
    ]


_FALLOC_FL_KEEP_SIZE = 1  # linux/falloc.h


def test_room_that_a_container_takes_behind_the_end_of_its_books_without_a_length_is_given_back(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    share = node.add("greedy", 20, Policy.FIXED)
    use(share, 1_000_000_000)
    libc = ctypes.CDLL(None, use_errno=True)
    offsets = [ctypes.c_int64(value) for value in (0, 16 << 20)]
    with (share / "books").open("r+b") as file:
        assert libc.fallocate(file.fileno(), _FALLOC_FL_KEEP_SIZE, *offsets) == 0
    size = layout().constants.VGPU_BOOKS_FILE_BYTES
    assert ((share / "books").stat().st_size, (share / "books").stat().st_blocks * 512) >= (size, 16 << 20)

    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            node.monitor.run_once()

    assert (share / "books").stat().st_size == size
    assert (share / "books").stat().st_blocks * 512 < 2 * size
    assert [reading.books.gpu_time_ns for reading in node.monitor.readings()] == [1_000_000_000]
    assert [record.getMessage() for record in caplog.records] == [
        "a container wrote behind the end of its books; cut back"
    ]


def swell(path: Path, name: str, value: bytes) -> None:
    """Give a file an attribute; skips the test where its file system takes none (tmpfs, before Linux 6.6)."""
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        pytest.skip("this file system takes no attributes of users")


def test_attributes_of_books_are_taken_away(node: Node) -> None:
    """Who may write a file may give it attributes; XFS and btrfs take any number, of 64 KiB each."""
    share = node.add("swollen", 20, Policy.FIXED)
    for number in range(20):
        swell(share / "books", f"user.{number}", b"x" * 100)

    node.monitor.run_once()

    assert [name for name in os.listxattr(share / "books") if name.startswith("user.")] == []


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """A folder on an XFS of its own."""
    if os.geteuid() != 0 or shutil.which("mkfs.xfs") is None:
        pytest.skip("needs root and mkfs.xfs")
    image, folder = tmp_path / "image", tmp_path / "xfs"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(_XFS_BYTES)
    commands = [["mkfs.xfs", "-q", str(image)], ["mount", "-o", "loop", str(image), str(folder)]]
    if any(subprocess.run(command, check=False, capture_output=True).returncode for command in commands):
        pytest.skip("loop mounts of XFS are not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_attributes_of_books_that_are_too_many_to_be_listed_are_taken_away_on_xfs(
    xfs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(xfs)
    books = node.add("swollen", 20, Policy.FIXED) / "books"
    for number in range(1000):
        os.setxattr(books, f"user.{number:0200}", b"x" * 100)
    os.setxattr(books, "trusted.of-the-node", b"stays")
    with pytest.raises(OSError, match="Argument list too long"):
        os.listxattr(books)

    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            node.monitor.run_once()

    assert os.listxattr(books) == ["trusted.of-the-node"]
    assert caplog.records == []


def test_books_that_cannot_be_cut_back_are_told_of_once(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on XFS with attributes that are too many to be listed."""

    def too_many(_descriptor: int) -> list[str]:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))

    node.add("swollen", 20, Policy.FIXED)
    monkeypatch.setattr(os, "listxattr", too_many)
    with caplog.at_level(logging.WARNING):
        for _ in range(6):
            node.monitor.run_once()
    assert [record.getMessage() for record in caplog.records] == [
        "the books of a share fill the disk until its claim ends: end its pods"
    ]


def test_books_that_are_dear_to_look_at_are_left_alone_for_a_while_and_the_limits_are_not(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = node.add("dear", 20, Policy.FIXED)
    now_s, cpu_s = [1000.0], [0.0]
    usual, reads = BooksReader.read, []

    def read(reader: BooksReader) -> Books:
        cpu_s[0] += 0.03
        reads.append(now_s[0])
        return usual(reader)

    monkeypatch.setattr(BooksReader, "read", read)
    monkeypatch.setattr("kubeletplugin.monitoring.bookreading.time.monotonic", lambda: now_s[0])
    monkeypatch.setattr("kubeletplugin.monitoring.bookreading.time.thread_time", lambda: cpu_s[0])

    for _ in range(59):
        node.monitor.run_once()
        now_s[0] += 1.0
    change_limits(share, lambda limits: replace(limits, memory_bytes=GIB))
    swell(share / "books", "user.swollen", b"meanwhile")
    node.monitor.run_once()

    assert "user.swollen" not in os.listxattr(share / "books")
    assert len(reads) == 2  # 30 ms each: half a thousandth of a processor
    assert [reading.limits.memory_bytes for reading in node.monitor.readings()] == [GIB]
