"""Shares that are changed while they live: on the node with `dra-driver share`, from afar by an annotation."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from api import kube, names
from api.adjustments import Adjustment, parse_adjustment
from api.claims import ClaimView
from api.errors import ConfigError, KubeError
from api.kubefake import FakeKube
from api.names import ClaimUID
from dra_driver.cli import main
from kubeletplugin.agent import NodeAgent
from kubeletplugin.claims.claimfollowing import ClaimFollower
from kubeletplugin.claims.claimreading import ClaimReader
from kubeletplugin.state.adjusting import Source, adjust, adjusted
from kubeletplugin.state.ledgers import Ledger
from kubeletplugin.state.preparedclaims import Held, PreparedClaim
from libvgpu.shares import Limits, Policy, read_limits
from tests.unit.kubeletplugin.builders import CLAIMS, GIB, NODE, add_claim, gpu, parameters, result
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet, Ref
from tests.unit.kubeletplugin.test_inventory import wait_for

FIXED = Limits("train-0", "GPU-1", 2 * GIB, 20, 20, Policy.FIXED, priority=1)
HELD = Held(4 * GIB, 40)


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ({}, (2 * GIB, 20, 20, 1, False)),
        ({Source.NODE: Adjustment(memory=GIB)}, (GIB, 20, 20, 1, False)),
        ({Source.NODE: Adjustment(memory=3 * GIB, cores=30)}, (3 * GIB, 30, 30, 1, False)),
        ({Source.NODE: Adjustment(memory=GIB), Source.CLAIM: Adjustment(memory=3 * GIB)}, (GIB, 20, 20, 1, False)),
        ({Source.CLAIM: Adjustment(memory=9 * GIB, cores=90)}, (4 * GIB, 40, 40, 1, False)),
        ({Source.NODE: Adjustment(priority=5), Source.CLAIM: Adjustment(priority=9)}, (2 * GIB, 20, 20, 5, False)),
        (
            {Source.NODE: Adjustment(suspended=False), Source.CLAIM: Adjustment(suspended=True)},
            (2 * GIB, 20, 20, 1, True),
        ),
    ],
)
def test_the_narrowest_wish_counts_and_none_goes_above_what_the_claim_holds(
    wishes: dict[Source, Adjustment], expected: tuple[Any, ...]
) -> None:
    limits = adjusted(FIXED, HELD, wishes)
    assert (
        limits.memory_bytes,
        limits.cores_percent,
        limits.ceiling_percent,
        limits.priority,
        limits.suspended,
    ) == expected


def test_cores_of_a_share_without_guarantee_are_its_ceiling() -> None:
    idle = Limits("train-0", "GPU-1", GIB, 0, 100, Policy.BURST)
    limits = adjusted(idle, Held(GIB, 0), {Source.NODE: Adjustment(cores=30)})
    assert (limits.cores_percent, limits.ceiling_percent) == (0, 30)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("memory=1Gi", 'found \'memory=1Gi\', expected JSON such as {"memory": "4Gi"}: '),
        ("[]", 'found \'[]\', expected a JSON object such as {"memory": "4Gi"}'),
        ('{"memroy": 1}', "memroy: unknown field, expected one of memory, cores, priority, suspended"),
        ('{"memory": "-1"}', "memory: found '-1', expected a quantity of memory above 0"),
        ('{"cores": 0}', "cores: found 0, expected a whole number from 1 to 100 (percent of one device)"),
        ('{"suspended": "yes"}', "suspended: found 'yes', expected true or false"),
        ("[" * 4096, f"found {'[' * 100!r}, expected JSON such as "),
        ('{"memory": ' + "[" * 2000 + "]" * 2000 + "}", ""),
        ("[" * 100_000, "found 100000 characters, expected at most 4096"),
        ('{"\\ud800": 1}', "found a key that is no text, expected one of memory, cores, priority, suspended"),
        ('{"priority": 5000}', "priority: found 5000, expected a whole number from -1000 to 1000"),
    ],
)
def test_each_mistake_in_an_annotation_has_its_own_message(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_adjustment(text, "here")
    assert str(caught.value).startswith(f"here: {problem}")


def test_a_gpu_that_was_given_out_whole_is_not_changed(tmp_path: Path) -> None:
    # There is no library in its container: a change would be told as done, and do nothing.
    with pytest.raises(ConfigError) as caught:
        adjust(tmp_path, (FIXED, replace(HELD, whole=True)), Source.NODE, Adjustment(suspended=True), "share train-0")

    assert str(caught.value) == (
        "share train-0: found a GPU that was given out whole and without the library, expected a share: nothing would "
        "enforce a change"
    )


class Share:
    """A prepared share on a node with a running agent."""

    def __init__(self, root: Path, client: FakeKube, kubelet: FakeKubelet) -> None:
        self.state = root / "state"
        self.kubelet = kubelet
        self.client = client
        self.claim: Ref = add_claim(client, "train", result(gpu(0), "4Gi", "40"), configs=[parameters(memory="2Gi")])
        kubelet.prepare(self.claim)

    def limits(self) -> Limits:
        return read_limits(self.state / "shares" / f"{self.claim.uid}-0")

    def run(self, *arguments: str) -> int:
        return main(["share", arguments[0], self.claim.uid, *arguments[1:], "--state-dir", str(self.state)])

    def annotate(self, text: str | None) -> None:
        reference = {"metadata": {"namespace": "default", "name": "train"}}
        self.client.patch(CLAIMS, reference, {"metadata": {"annotations": {names.ANNOTATION_LIMITS: text}}})


@pytest.fixture
def share(served: FakeKubelet, root: Path, client: FakeKube) -> Share:
    return Share(root, client, served)


def test_a_share_is_resized_on_its_node_and_stays_so_when_its_claim_is_prepared_again(
    share: Share, capsys: pytest.CaptureFixture[str]
) -> None:
    assert share.run("set", "--memory", "3Gi", "--cores", "10", "--priority", "7") == 0

    assert capsys.readouterr().out == f"{share.claim.uid}-0: memory 3Gi, cores 10, ceiling 10, priority 7\n"
    share.kubelet.prepare(share.claim)
    limits = share.limits()
    assert (limits.memory_bytes, limits.cores_percent, limits.ceiling_percent, limits.priority) == (3 * GIB, 10, 10, 7)

    assert share.run("set", "--reset") == 0
    assert (share.limits().memory_bytes, share.limits().cores_percent) == (2 * GIB, 40)


def test_more_than_the_claim_holds_is_refused_with_both_figures(
    share: Share, capsys: pytest.CaptureFixture[str]
) -> None:
    before = share.limits()
    assert share.run("set", "--memory", "5Gi", "--cores", "50") == 2
    assert capsys.readouterr().err == (
        f"dra-driver: share {share.claim.uid}-0: memory: found 5Gi, expected at most the 4Gi that the claim holds\n"
        f"dra-driver: share {share.claim.uid}-0: cores: found 50, expected at most the 40 that the claim holds\n"
    )
    assert share.limits() == before


def test_a_suspended_share_stays_suspended_until_it_is_resumed_and_keeps_its_other_changes(share: Share) -> None:
    share.run("set", "--cores", "10")
    assert share.run("suspend") == 0
    share.kubelet.prepare(share.claim)
    assert share.limits().suspended

    assert share.run("resume") == 0
    assert (share.limits().suspended, share.limits().cores_percent) == (False, 10)


def test_a_change_of_nothing_is_refused(share: Share, capsys: pytest.CaptureFixture[str]) -> None:
    assert share.run("set") == 2
    assert "found nothing to change, expected --memory, --cores, --priority or --reset" in capsys.readouterr().err


def test_a_changed_share_is_undone_without_a_trace(share: Share) -> None:
    share.run("suspend")
    share.kubelet.unprepare(share.claim)
    assert list((share.state / "shares").iterdir()) == []


def test_changes_that_cannot_be_read_are_told_and_the_share_has_what_its_claim_says(
    share: Share, caplog: pytest.LogCaptureFixture
) -> None:
    share.run("set", "--memory", "3Gi")
    (share.state / "shares" / f"{share.claim.uid}-0" / "adjustments").write_text('{"node": {"memory"')
    share.kubelet.prepare(share.claim)
    assert share.limits().memory_bytes == 2 * GIB
    assert "changes of a share are lost: it has what its claim says" in [r.getMessage() for r in caplog.records]


def follower(share: Share, told: list[tuple[str, str]]) -> ClaimFollower:
    def tell(claim: PreparedClaim, reason: str, note: str) -> None:
        assert claim.uid == share.claim.uid
        told.append((reason, note))

    ledger = Ledger(share.state / "checkpoint", lambda _uid: None)
    ledger.load()
    reader = ClaimReader(share.client)
    return ClaimFollower(reader, ledger, share.state / "shares", tell)


def look(following: ClaimFollower, share: Share) -> None:
    (claim,) = following._ledger.prepared().values()
    following.follow(claim)


def test_an_annotation_changes_a_share_and_its_removal_gives_back_what_the_claim_says(share: Share) -> None:
    told: list[tuple[str, str]] = []
    following = follower(share, told)

    share.annotate('{"memory": "1Gi", "suspended": true}')
    look(following, share)
    assert (share.limits().memory_bytes, share.limits().suspended) == (GIB, True)

    share.annotate(None)
    look(following, share)
    assert (share.limits().memory_bytes, share.limits().suspended) == (2 * GIB, False)
    assert told == []


def test_an_annotation_holds_from_the_start_of_the_next_pod_of_a_claim_until_it_is_removed(share: Share) -> None:
    following = follower(share, [])
    share.annotate('{"memory": "1Gi", "suspended": true}')
    look(following, share)

    share.kubelet.unprepare(share.claim)
    share.kubelet.prepare(share.claim)

    assert (share.limits().memory_bytes, share.limits().suspended) == (GIB, True)
    look(following, share)
    assert share.limits().suspended
    share.annotate(None)
    look(following, share)
    assert (share.limits().memory_bytes, share.limits().suspended) == (2 * GIB, False)


def digest(share: Share) -> str:
    return ClaimView.from_object(share.client.objects(CLAIMS)[0]).digest()


def news(following: ClaimFollower, share: Share) -> int:
    """Tell which claims can change, as the controller does at each heartbeat; return how often one was read for it."""
    before = reads(share)
    following.take_news({ClaimUID(share.claim.uid): digest(share)} if digest(share) else {})
    following.follow_news()
    return reads(share) - before


def reads(share: Share) -> int:
    return share.client.requests.count(("get", "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims/train"))


def test_a_claim_is_read_when_its_annotation_changes_and_not_otherwise(share: Share) -> None:
    following = follower(share, [])
    assert [news(following, share) for _ in range(3)] == [0, 0, 0]

    text = '{"memory": "1Gi"}'
    share.annotate(text)
    assert [news(following, share) for _ in range(3)] == [1, 0, 0]
    assert share.limits().memory_bytes == GIB

    share.annotate(None)
    assert [news(following, share) for _ in range(3)] == [1, 0, 0]
    assert share.limits().memory_bytes == 2 * GIB


def test_what_an_agent_took_over_before_it_was_restarted_is_given_back_when_it_is_not_annotated_any_more(
    share: Share,
) -> None:
    text = '{"memory": "1Gi"}'
    share.annotate(text)
    news(follower(share, []), share)
    following = follower(share, [])
    assert news(following, share) == 1

    share.annotate(None)

    assert news(follower(share, []), share) == 1
    assert share.limits().memory_bytes == 2 * GIB


def test_what_was_annotated_when_a_claim_was_prepared_again_is_given_back(share: Share) -> None:
    following = follower(share, [])
    share.annotate(None)
    look(following, share)
    share.kubelet.unprepare(share.claim)
    share.annotate('{"memory": "1Gi"}')
    share.kubelet.prepare(share.claim)
    following.forget(ClaimUID(share.claim.uid))  # as the agent does
    share.annotate(None)

    news(following, share)

    assert share.limits().memory_bytes == 2 * GIB


def test_an_annotation_that_could_not_be_read_is_read_with_the_next_heartbeat(share: Share) -> None:
    following = follower(share, [])
    text = '{"memory": "1Gi"}'
    share.annotate(text)
    share.client.fail_next(KubeError("away", 503), path="/resourceclaims/train")  # the agent asks for others meanwhile
    news(following, share)
    assert share.limits().memory_bytes == 2 * GIB
    assert [news(following, share) for _ in range(2)] == [1, 0]
    assert share.limits().memory_bytes == GIB


@pytest.mark.parametrize("text", ["nonsense", '{"memory": "8Gi"}', "[" * 100_000, '{"\\ud800": 1}'])
def test_a_wrong_annotation_keeps_no_pod_from_starting(share: Share, text: str) -> None:
    share.kubelet.unprepare(share.claim)
    share.annotate(text)

    share.kubelet.prepare(share.claim)

    assert share.limits().memory_bytes == 2 * GIB


def test_a_wrong_annotation_is_told_once_and_changes_nothing(share: Share) -> None:
    told: list[tuple[str, str]] = []
    following = follower(share, told)
    before = share.limits()

    share.annotate('{"memory": "8Gi"}')
    look(following, share)
    look(following, share)

    where = "ResourceClaim default/train: annotation vgpu.dra-driver.io/limits"
    assert told == [("VGPULimitsInvalid", f"{where}: memory: found 8Gi, expected at most the 4Gi that the claim holds")]
    assert share.limits() == before


def test_a_share_that_is_not_there_yet_is_no_mistake_of_its_claim_and_is_changed_when_it_is(share: Share) -> None:
    told: list[tuple[str, str]] = []
    following = follower(share, told)
    folder = share.state / "shares" / f"{share.claim.uid}-0"
    folder.rename(share.state / "made soon")
    share.annotate('{"memory": "1Gi"}')
    look(following, share)
    (share.state / "made soon").rename(folder)

    look(following, share)

    assert share.limits().memory_bytes == GIB
    assert told == []


def test_of_an_annotation_that_is_wrong_for_one_share_of_a_claim_nothing_is_done_to_the_others(
    served: FakeKubelet, root: Path, client: FakeKube
) -> None:
    results = [result(gpu(number), memory, "40", f"r{number}") for number, memory in ((0, "4Gi"), (1, "2Gi"))]
    claim = add_claim(client, "train", *results)
    served.prepare(claim)
    client.patch(
        CLAIMS,
        {"metadata": {"namespace": "default", "name": "train"}},
        {"metadata": {"annotations": {names.ANNOTATION_LIMITS: '{"memory": "3Gi"}'}}},
    )

    served.prepare(claim)

    shares = [read_limits(root / "state" / "shares" / f"{claim.uid}-{index}") for index in (0, 1)]
    assert [limits.memory_bytes for limits in shares] == [4 * GIB, 2 * GIB]


def test_an_annotation_keeps_to_what_the_class_of_a_claim_allows_and_an_operator_need_not(share: Share) -> None:
    bounds = parameters("FromClass", memory="2Gi", cores=20, priority=3)
    share.kubelet.unprepare(share.claim)
    share.client.delete(CLAIMS, {"metadata": {"namespace": "default", "name": "train"}})
    share.claim = add_claim(share.client, "train", result(gpu(0), "4Gi", "40"), configs=[bounds])
    share.kubelet.prepare(share.claim)
    before = share.limits()
    said: list[tuple[str, str]] = []
    share.annotate('{"memory": "3Gi", "cores": 30, "priority": 4}')
    look(follower(share, said), share)

    where = "ResourceClaim default/train: annotation vgpu.dra-driver.io/limits"
    [(reason, note)] = said
    assert reason == "VGPULimitsInvalid"
    assert note.splitlines() == [
        f"{where}: memory: found 3Gi, expected at most the 2Gi that its DeviceClass allows",
        f"{where}: cores: found 30, expected at most the 20 that its DeviceClass allows",
        f"{where}: priority: found 4, expected at most the 3 that its DeviceClass allows",
    ]
    assert share.limits() == before
    assert share.run("set", "--memory", "3Gi", "--cores", "30", "--priority", "9") == 0
    changed = share.limits()
    assert (changed.memory_bytes, changed.cores_percent, changed.priority) == (3 * GIB, 30, 9)


@pytest.mark.parametrize("told", [True, False], ids=["told by the controller", "told by nobody"])
def test_a_running_agent_follows_annotations_and_tells_mistakes_by_an_event(
    start_agent: Callable[..., NodeAgent], kubelet: FakeKubelet, client: FakeKube, root: Path, told: bool
) -> None:
    start_agent(annotation_interval_s=600 if told else 0.05, heartbeat_s=0.05)
    kubelet.register()
    share = Share(root, client, kubelet)
    written = threading.Event()
    create = client.create

    def note(resource: kube.Resource, obj: Any) -> Any:
        stored = create(resource, obj)
        if resource == kube.EVENTS:
            written.set()
        return stored

    client.create = note  # type: ignore[method-assign]
    share.annotate("nonsense")
    if told:
        wait_for(client, lambda inventory: inventory.status is not None)
        claims = [{"uid": share.claim.uid, "digest": digest(share)}]
        client.patch(
            kube.NODE_INVENTORIES, {"metadata": {"name": NODE}}, {"status": {"followedClaims": claims}}, "status"
        )

    assert written.wait(60)
    (event,) = client.objects(kube.EVENTS)
    assert (event["reason"], event["regarding"]["name"]) == ("VGPULimitsInvalid", "train")
