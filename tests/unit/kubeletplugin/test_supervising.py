"""The driver's figures against the books: whose memory it is, what is overuse, and what becomes of it."""

from collections.abc import Sequence

import pytest

from api.names import ClaimUID, DeviceName
from kubeletplugin.comparing import Slack, attribute, overuse_bytes
from kubeletplugin.devices import DeviceFigures, DriverProcess
from kubeletplugin.monitoring import ShareReading
from kubeletplugin.owners import ProcessOwners
from kubeletplugin.preparedclaims import PreparedClaim, PreparedDevice
from kubeletplugin.supervising import Supervisor
from libvgpu.shares import Books, Limits, Policy

GIB = 1 << 30
A, B = "GPU-AAAA", "GPU-BBBB"


def limits_of(share: str, memory_bytes: int = GIB, uuid: str = A, *, kill: bool = False) -> Limits:
    return Limits(share, uuid, memory_bytes, 25, 25, Policy.FIXED, kill_overuse=kill)


def figures(*processes: tuple[int, int], uuid: str = A) -> DeviceFigures:
    return DeviceFigures(uuid, processes=tuple(DriverProcess(pid, size_bytes) for pid, size_bytes in processes))


def reading(limits: Limits, used_bytes: int = 0) -> ShareReading:
    device = PreparedDevice(0, "gpu", "node-1", DeviceName(limits.device_uuid.lower()), limits=limits)
    claim = PreparedClaim(ClaimUID(limits.share[:-2]), "team-a", "train", (device,))
    return ShareReading(claim, limits, Books(used_bytes, used_bytes, (), 0, 0, 0, 0))


class Owners(ProcessOwners):
    """Processes whose shares a test says."""

    def __init__(self, **shares: Sequence[str]) -> None:
        super().__init__(dict)
        self.shares = {int(pid.removeprefix("p")): frozenset(names) for pid, names in shares.items()}

    def shares_of(self, pid: int) -> frozenset[str]:
        return self.shares.get(pid, frozenset())


def test_memory_counts_for_the_share_of_the_process_and_else_for_nobody() -> None:
    owners = Owners(p1=["a-0"], p2=["a-0"], p3=["b-0"])

    found = attribute(
        [figures((1, 100), (2, 20), (9, 7)), figures((3, 5), (1, 1000), uuid=B)],
        [limits_of("a-0"), limits_of("b-0", uuid=B)],
        owners.shares_of,
    )

    assert {share: count.memory_bytes for share, count in found.by_share.items()} == {"a-0": 120, "b-0": 5}
    assert found.by_share["a-0"].pids == (1, 2)
    assert found.unattributed_bytes == {A: 7, B: 1000}  # process 1 has no share of B


def test_a_process_with_two_shares_of_a_device_counts_for_both_by_their_size() -> None:
    found = attribute(
        [figures((1, 300))], [limits_of("a-0", GIB), limits_of("b-0", 2 * GIB)], Owners(p1=["a-0", "b-0"]).shares_of
    )
    assert {share: count.memory_bytes for share, count in found.by_share.items()} == {"a-0": 100, "b-0": 200}


@pytest.mark.parametrize(
    ("limit_bytes", "driver_bytes", "expected"),
    [
        (GIB, GIB + (256 << 20), 0),
        (GIB, GIB + (257 << 20), 257 << 20),
        (100 * GIB, 105 * GIB, 0),
        (100 * GIB, 106 * GIB, 6 * GIB),
    ],
)
def test_overuse_begins_behind_the_slack(limit_bytes: int, driver_bytes: int, expected: int) -> None:
    assert overuse_bytes(limits_of("a-0", limit_bytes), driver_bytes) == expected


def test_an_operator_says_how_much_slack_there_is() -> None:
    slack = Slack(memory_bytes=0, percent=1)
    assert overuse_bytes(limits_of("a-0", 100 * GIB), 101 * GIB, slack) == 0
    assert overuse_bytes(limits_of("a-0", 100 * GIB), 102 * GIB, slack) == 2 * GIB
    assert overuse_bytes(limits_of("a-0", GIB), GIB + (1 << 20), Slack(memory_bytes=0, percent=0)) == 1 << 20


class Told:
    """What a supervisor told and ended."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str]] = []
        self.killed: list[int] = []
        self.owners = Owners(p1=["a-0"], p2=["a-0"], p3=["b-0"])
        self.supervisor = Supervisor(
            lambda _claim, reason, note: self.notes.append((reason, note)), self.owners, self.killed.append
        )


def test_overuse_that_lasts_is_told_once_and_counted() -> None:
    told = Told()
    shares = [reading(limits_of("a-0"), used_bytes=GIB // 2), reading(limits_of("b-0"))]

    for _ in range(5):
        told.supervisor.look([figures((1, GIB), (2, GIB), (3, GIB))], shares)

    assert told.notes == [
        (
            "VGPUOveruse",
            "share a-0 holds 2Gi of device memory by the driver's count, expected at most 1Gi; its books know of 512Mi",
        )
    ]
    assert told.supervisor.overuse_counts == {"a-0": 1}
    assert told.killed == []


def test_overuse_of_a_moment_is_nothing_and_one_that_comes_back_counts_again() -> None:
    told = Told()
    much, little = [figures((1, 2 * GIB))], [figures((1, 1))]
    for look in (much, little, much, much, little, much, much):
        told.supervisor.look(look, [reading(limits_of("a-0"))])
    assert told.supervisor.overuse_counts == {"a-0": 2}
    assert len(told.notes) == 1


def test_a_share_that_says_so_has_its_processes_ended_and_no_others() -> None:
    told = Told()
    shares = [reading(limits_of("a-0", kill=True)), reading(limits_of("b-0"))]

    told.supervisor.look([figures((1, 2 * GIB), (2, 1), (3, GIB))], shares)
    assert told.killed == []
    told.owners.shares.pop(2)  # it ends, and its id may be anybody's
    told.supervisor.look([figures((1, 2 * GIB), (2, 1), (3, GIB))], shares)

    assert told.killed == [1]
    assert told.notes[0][1].endswith("; its processes were ended, as the claim says")
