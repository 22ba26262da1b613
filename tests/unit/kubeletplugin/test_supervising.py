"""The driver's figures against the books: whose memory it is, what is overuse, and what becomes of it."""

from collections.abc import Iterable, Sequence

import pytest

from api.kube import EVENTS
from api.kubefake import FakeKube
from api.names import ClaimUID, DeviceName
from kubeletplugin.claims.eventing import EventWriter
from kubeletplugin.hardware.devices import DeviceFigures, DriverProcess
from kubeletplugin.monitoring.bookreading import ShareReading
from kubeletplugin.monitoring.comparing import Slack, attribute, overuse_bytes
from kubeletplugin.monitoring.strays import StrayFigures, StrayWatch
from kubeletplugin.monitoring.supervising import Supervisor
from kubeletplugin.state.preparedclaims import PreparedClaim, PreparedDevice
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


class Owners:
    """Processes whose shares a test says; those from 1000 on are in the pod of their thousand."""

    def __init__(self, **shares: Sequence[str]) -> None:
        self.shares = {int(pid.removeprefix("p")): frozenset(names) for pid, names in shares.items()}

    def shares_of(self, pid: int) -> frozenset[str]:
        return self.shares.get(pid, frozenset())

    def pod_of(self, pid: int) -> str:
        return f"pod-{pid // 1000}" if pid >= 1000 else ""

    def keep(self, pids: Iterable[int]) -> None:
        pass


def test_memory_counts_for_the_share_of_the_process_and_else_for_nobody() -> None:
    owners = Owners(p1=["a-0"], p2=["a-0"], p3=["b-0"])

    found = attribute(
        [figures((1, 100), (2, 20), (9, 7)), figures((3, 5), (1, 1000), uuid=B)],
        [limits_of("a-0"), limits_of("b-0", uuid=B)],
        owners,
    )

    assert {share: count.memory_bytes for share, count in found.by_share.items()} == {"a-0": 120, "b-0": 5}
    assert found.by_share["a-0"].pids == (1, 2)
    assert found.unattributed_bytes == {A: 7, B: 1000}  # process 1 has no share of B


def test_a_process_with_two_shares_of_a_device_counts_for_both_by_their_size() -> None:
    found = attribute(
        [figures((1, 300))], [limits_of("a-0", GIB), limits_of("b-0", 2 * GIB)], Owners(p1=["a-0", "b-0"])
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


class Watched:
    """What a watch over strays told and asked."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str]] = []
        self.asked: list[float] = []
        self.now_s = 0.0
        self.watch = StrayWatch(
            lambda reason, note: self.notes.append((reason, note)),
            lambda: self.asked.append(self.now_s),
            clock=lambda: self.now_s,
        )
        self.supervisor = Supervisor(lambda *_: None, Owners(p1=["a-0"]), observers=(self.watch.observe,))

    def look(self, *processes: tuple[int, int], uuid: str = A) -> None:
        self.now_s += 5
        self.supervisor.look([figures(*processes, uuid=uuid)], [reading(limits_of("a-0"))])


def test_memory_of_a_pod_without_a_share_is_asked_about_at_once_and_then_told() -> None:
    watched = Watched()

    for _ in range(4):
        watched.look((1, 100), (4001, GIB), (4002, GIB), (7, GIB))

    assert watched.asked == [5.0]
    ((reason, note),) = watched.notes
    assert reason == "VGPUOveruse"
    assert note == (
        "pod pod-4 holds 2Gi of GPU-AAAA by the driver's count (processes 4001, 4002), expected none: no claim of this "
        "node that gives a share of it is reserved for the pod"
    )
    assert watched.watch.figures == StrayFigures({(A, "pod-4"): 2 * GIB}, 1)
    watched.look((1, 100))
    assert watched.watch.figures == StrayFigures({}, 1)


def test_a_little_memory_and_a_gpu_without_shares_make_no_strays() -> None:
    watched = Watched()

    for _ in range(4):
        watched.look((4001, 200 << 20))
    for _ in range(4):
        watched.look((4001, GIB), uuid=B)

    assert (watched.asked, watched.notes, watched.watch.figures) == ([], [], StrayFigures())


def test_strays_that_come_and_go_make_no_storm_of_questions_and_events() -> None:
    watched = Watched()

    for _ in range(12):
        for memory_bytes in (GIB, GIB, GIB, 0):
            watched.look((4001, memory_bytes))

    assert [later - before for before, later in zip(watched.asked, watched.asked[1:], strict=False)] == [40.0] * 5
    assert (len(watched.notes), watched.watch.figures.count) == (1, 12)


def test_the_node_is_told_of_by_an_event_that_its_description_shows(client: FakeKube) -> None:
    events = EventWriter(client, "node-1")
    events.start()

    events.tell_of_node("VGPUOveruse", "pod p holds much")

    events.stop(60)
    (event,) = client.list(EVENTS)["items"]
    assert (event["metadata"]["namespace"], event["type"], event["note"]) == ("default", "Warning", "pod p holds much")
    node = {"apiVersion": "v1", "kind": "Node", "namespace": "", "name": "node-1", "uid": "node-1"}
    assert event["regarding"] == node
