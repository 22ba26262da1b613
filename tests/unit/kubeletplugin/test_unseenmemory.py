"""Memory that only the driver sees counts against its share."""

from dataclasses import replace
from pathlib import Path

from api.names import ClaimUID
from kubeletplugin.monitoring.bookreading import ShareReading
from kubeletplugin.monitoring.comparing import Attribution, DriverCount
from kubeletplugin.monitoring.unseenmemory import UnseenMemory
from kubeletplugin.state.preparedclaims import PreparedClaim
from libvgpu.shares import Limits, Policy, create_share, read_books, read_limits

MIB = 1 << 20
UUID = "GPU-0a1b2c3d-0000-4000-8000-00000000000a"


def _share(folder: Path, name: str) -> Path:
    create_share(folder / name, Limits(name, UUID, 1 << 30, 100, 100, Policy.FIXED), durable=False)
    return folder / name


def _look(unseen: UnseenMemory, counts: dict[str, DriverCount], shares: dict[str, Path], used_bytes: int) -> list[int]:
    """One look; return what the limits of the shares say then."""
    claim = PreparedClaim(ClaimUID("uid"), "team", "train", ())
    readings = [
        ShareReading(claim, read_limits(share), replace(read_books(share), used_bytes=used_bytes))
        for share in shares.values()
    ]
    unseen.observe(Attribution(counts), readings)
    return [read_limits(share).unseen_bytes for share in shares.values()]


def test_what_two_looks_in_a_row_find_beyond_the_books_is_taken_off_the_room_of_the_share(tmp_path: Path) -> None:
    shares = {"a": _share(tmp_path, "a")}
    unseen = UnseenMemory(lambda: shares)
    said = [
        _look(unseen, {"a": DriverCount(held * MIB, (7,))}, shares, 100 * MIB)
        for held in (900, 100, 400, 300, 300, 90, 90)
    ]
    assert said == [[0], [0], [0], [200 * MIB], [200 * MIB], [0], [0]]


def test_nothing_is_said_of_processes_that_have_several_shares_of_a_device(tmp_path: Path) -> None:
    shares = {name: _share(tmp_path, name) for name in "ab"}
    unseen = UnseenMemory(lambda: shares)
    counts = {name: DriverCount(400 * MIB, (7,)) for name in shares}
    for _ in range(3):
        assert _look(unseen, counts, shares, 100 * MIB) == [0, 0]


def test_a_share_that_is_gone_is_passed_over(tmp_path: Path) -> None:
    shares = {"a": _share(tmp_path, "a")}
    unseen = UnseenMemory(lambda: {"a": tmp_path / "gone"})
    for _ in range(3):
        assert _look(unseen, {"a": DriverCount(400 * MIB, (7,))}, shares, 0) == [0]
