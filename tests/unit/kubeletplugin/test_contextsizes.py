"""What a context takes, learned from the driver's count: real processes against the simulated card, and lies."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from api.names import ClaimUID
from kubeletplugin.hardware.driverroots import DriverRoot
from kubeletplugin.hardware.nvidia import NvidiaDiscovery, NvidiaOptions
from kubeletplugin.monitoring.bookreading import ShareReading
from kubeletplugin.monitoring.comparing import Attribution, DriverCount, attribute
from kubeletplugin.monitoring.contextsizes import ContextSizes
from kubeletplugin.monitoring.owners import BookOwners
from kubeletplugin.state.preparedclaims import Held, PreparedClaim
from kubeletplugin.state.sharefolders import ShareFolders
from libvgpu.paths import library_path
from libvgpu.shares import Books, Limits, Policy, ProcessUsage, read_books, read_limits
from libvgpu.stub import StubGPU, StubSettings, create_driver_root, read_card, stub_environment

MIB = 1 << 20
UUID = "GPU-0a1b2c3d-0000-4000-8000-00000000000a"
LIMITS = Limits("claim-0", UUID, 1 << 30, 100, 100, Policy.FIXED)
HOLDER = """
import ctypes
cuda, context, pointer = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuInit(0) == 0
assert cuda.cuCtxCreate_v2(ctypes.byref(context), 0, 0) == 0
assert cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(50 << 20)) == 0
print("holding", flush=True)
input()
"""


class Node:
    """A simulated card whose contexts take 300 MiB, in containers where NVML names no process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        settings = StubSettings(context_bytes=300 * MIB)
        create_driver_root(root / "driver", [StubGPU("Simulated", 10 << 30, UUID, settings=settings)])
        self.contexts = ContextSizes(root / "contexts.json")
        self.shares = ShareFolders(root / "shares", "node-1", self.contexts.bytes_of)

    def share(self, number: int) -> Path:
        """Make a share as the agent does."""
        limits = replace(LIMITS, share=f"claim-{number}")
        self.shares.put(limits, Held(limits.memory_bytes, limits.cores_percent))
        return self.shares.folder / limits.share

    @contextmanager
    def holder(self, share: Path) -> Iterator[None]:
        """Let a process in a share hold a context and 50 MiB."""
        inside = self.root / "containers" / share.name
        inside.mkdir(parents=True)
        (inside / share.name).symlink_to(share)
        environment = {
            **os.environ,
            **stub_environment(self.root / "driver"),
            "LD_PRELOAD": str(library_path()),
            "VGPU_SHARES_DIR": str(inside),
            "VGPU_STUB_NVML_NAMELESS": "1",
        }
        pipe = subprocess.PIPE
        with subprocess.Popen([sys.executable, "-c", HOLDER], env=environment, stdin=pipe, stdout=pipe) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"holding\n"
            yield
            process.communicate(b"\n", timeout=60)

    def look(self, *shares: Path) -> None:
        """Look at driver and books once, as the monitor does."""
        discovery = NvidiaDiscovery(DriverRoot(self.root / "driver", self.root / "driver"), NvidiaOptions())
        try:
            discovery.discover()
            readings = [reading(read_limits(share), read_books(share)) for share in shares]
            owners = BookOwners(lambda: {share.name: share for share in shares})
            found = attribute(discovery.figures(), (one.limits for one in readings), owners)
        finally:
            discovery.close()
        self.contexts.observe(found, readings)


def reading(limits: Limits, books: Books, namespace: str = "") -> ShareReading:
    """Return what is seen of a share, of a tenant of its own if no namespace is given."""
    return ShareReading(PreparedClaim(ClaimUID(limits.share), namespace or limits.share, "", ()), limits, books)


def test_contexts_that_nvml_does_not_name_are_charged_once_the_agent_has_seen_those_of_two_tenants(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path)
    for share in node.share(0), node.share(1):
        assert node.contexts.bytes_of(UUID) == 0  # one tenant proves nothing
        with node.holder(share):
            assert read_books(share).used_bytes == 50 * MIB  # nobody could tell the library
            node.look(share)
            assert node.contexts.bytes_of(UUID) == 0  # nor does one look
            node.look(share)
    third = node.share(2)
    assert read_limits(third).context_bytes == 300 * MIB
    with node.holder(third):
        assert read_books(third).used_bytes == read_card(tmp_path / "driver/dev/nvidia0").used_bytes == 350 * MIB
        node.look(third)
        node.look(third)
    assert node.contexts.bytes_of(UUID) == 300 * MIB  # what is charged already is no news
    assert ContextSizes(tmp_path / "contexts.json").bytes_of(UUID) == 300 * MIB  # after a restart


def test_preparing_a_claim_again_keeps_what_its_share_was_told(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.contexts = ContextSizes(tmp_path / "contexts.json", 200 * MIB)
    node.shares = ShareFolders(tmp_path / "shares", "node-1", node.contexts.bytes_of)
    share = node.share(0)
    node.shares = ShareFolders(tmp_path / "shares", "node-1")
    assert not node.shares.put(replace(LIMITS, share="claim-0"), Held(LIMITS.memory_bytes, 100))
    assert read_limits(share).context_bytes == 200 * MIB


def process(number: int) -> ProcessUsage:
    return ProcessUsage(number, 1, 1, 0, 0, 0, 0, 0)


def observe(sizes: ContextSizes, *shares: tuple[int, int], processes: int = 1, times: int = 2) -> None:
    """Let shares be seen with (driver's bytes, bytes in the books), each with so many processes in its books."""
    readings = [
        reading(
            replace(LIMITS, share=f"claim-{index}"),
            Books(used, used, tuple(map(process, range(processes))), 0, 0, 0, 0),
        )
        for index, (_, used) in enumerate(shares)
    ]
    counts = {f"claim-{index}": DriverCount(held, (index,)) for index, (held, _) in enumerate(shares)}
    for _ in range(times):
        sizes.observe(Attribution(counts), readings)


@pytest.mark.parametrize(
    ("held", "used"),
    [(2000 * MIB, 100 * MIB), (100 * MIB, 101 * MIB), (101 * MIB, 100 * MIB)],
    ids=["more than any context", "less than nothing", "measured by the library"],
)
def test_what_no_context_can_be_is_not_learned(held: int, used: int, tmp_path: Path) -> None:
    sizes = ContextSizes(tmp_path / "contexts.json")
    observe(sizes, (held, used), (held, used))
    assert sizes.bytes_of(UUID) == 0


def test_one_tenant_who_lies_in_his_books_is_outvoted(tmp_path: Path) -> None:
    sizes = ContextSizes(tmp_path / "contexts.json")
    observe(sizes, (350 * MIB, 50 * MIB), (900 * MIB, 0), (310 * MIB, 0))
    assert sizes.bytes_of(UUID) == 310 * MIB


def test_what_a_full_disk_does_not_take_is_known_and_keeps_no_look_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kubeletplugin.monitoring.contextsizes.write_atomically", refuse)
    sizes = ContextSizes(tmp_path / "contexts.json")
    observe(sizes, (310 * MIB, 0), (310 * MIB, 0))
    assert sizes.bytes_of(UUID) == 310 * MIB


def test_one_tenant_alone_does_not_set_what_its_neighbours_pay(tmp_path: Path) -> None:
    sizes = ContextSizes(tmp_path / "contexts.json")
    observe(sizes, (1000 * MIB, 0), times=10)
    assert sizes.bytes_of(UUID) == 0
    observe(sizes, (1000 * MIB, 0), (310 * MIB, 0))
    assert sizes.bytes_of(UUID) == 0
    observe(sizes, (1000 * MIB, 0), (310 * MIB, 0), (300 * MIB, 0))
    assert sizes.bytes_of(UUID) == 310 * MIB


def test_however_many_claims_a_tenant_has_it_has_one_vote(tmp_path: Path) -> None:
    sizes = ContextSizes(tmp_path / "contexts.json")
    observe(sizes, (310 * MIB, 0), (300 * MIB, 0))
    assert sizes.bytes_of(UUID) == 300 * MIB

    for number in range(20):
        limits = replace(LIMITS, share=f"evil-{number}")
        seen = reading(limits, Books(0, 0, (process(1),), 0, 0, 0, 0), namespace="evil")
        for _ in range(2):
            sizes.observe(Attribution({limits.share: DriverCount(1000 * MIB, (1,))}), [seen])

    assert sizes.bytes_of(UUID) == 300 * MIB  # the median of three is hardly another


def test_a_share_whose_processes_the_driver_does_not_all_name_has_no_vote(tmp_path: Path) -> None:
    sizes = ContextSizes(tmp_path / "contexts.json")
    observe(sizes, (350 * MIB, 50 * MIB), (350 * MIB, 50 * MIB), processes=2)
    assert sizes.bytes_of(UUID) == 0


def test_figures_that_change_from_look_to_look_are_not_believed(tmp_path: Path) -> None:
    sizes = ContextSizes(tmp_path / "contexts.json")
    for held in (350, 450, 550, 650):
        observe(sizes, (held * MIB, 50 * MIB), (held * MIB, 50 * MIB), times=1)
    assert sizes.bytes_of(UUID) == 0


def test_what_an_operator_says_counts_more_than_what_was_learned(tmp_path: Path) -> None:
    sizes = ContextSizes(tmp_path / "contexts.json", 400 * MIB)
    observe(sizes, (350 * MIB, 50 * MIB), (350 * MIB, 50 * MIB))
    assert sizes.bytes_of(UUID) == 400 * MIB


@pytest.mark.parametrize("content", ["", "[]", "{", '{"gpu": "much"}', '{"gpu": null}'])
def test_a_damaged_file_is_learned_again(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "contexts.json"
    path.write_text(content)
    sizes = ContextSizes(path)
    observe(sizes, (350 * MIB, 50 * MIB), (350 * MIB, 50 * MIB))
    assert ContextSizes(path).bytes_of(UUID) == 300 * MIB
    assert ("sizes of contexts are learned again" in caplog.text) == (content != "")
