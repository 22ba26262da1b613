"""Pods in sandboxes: a clear refusal, no cost where there are none, and no harm where the API server does not say."""

import logging
from pathlib import Path
from typing import Any

import pytest

from api.claims import ClaimView, Consumer
from api.errors import ClaimError, KubeError
from api.kube import EVENTS, PODS, RUNTIME_CLASSES
from api.kubefake import FakeKube
from kubeletplugin.claims import runtimes
from kubeletplugin.claims.claimfollowing import ClaimFollower
from kubeletplugin.claims.claimreading import ClaimReader
from kubeletplugin.claims.eventing import EventWriter
from kubeletplugin.claims.preparing import Hooks, Preparer
from kubeletplugin.claims.runtimes import RuntimeGuard
from tests.unit.kubeletplugin.barenode import BareNode
from tests.unit.kubeletplugin.builders import CLAIMS


@pytest.fixture
def node(tmp_path: Path) -> BareNode:
    return BareNode(tmp_path)


def _use(client: FakeKube, *pods: str, runtime_class: str | None = None) -> None:
    """Have pods use the claim of a bare node."""
    _reserve(client, [_add_pod(client, name, runtime_class) for name in pods])


def _reserve(client: FakeKube, consumers: list[dict[str, str]]) -> None:
    claim = client.get(CLAIMS, "train", "default")
    claim["status"]["reservedFor"] = consumers
    client.replace(CLAIMS, claim, "status")


def _add_pod(client: FakeKube, name: str, runtime_class: str | None = None, **fields: Any) -> dict[str, str]:
    """Store a pod on the node; return how a claim names it."""
    spec = {"nodeName": "node-1"} | ({"runtimeClassName": runtime_class} if runtime_class else {})
    pod = {"metadata": {"namespace": "default", "name": name, "uid": f"uid-{name}"}, "spec": spec}
    uid = client.create(PODS, {**pod, **fields})["metadata"]["uid"]
    return {"resource": "pods", "name": name, "uid": uid}


class Told:
    """What a guard tells, and to whom."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str, str]] = []

    def __call__(self, claim: ClaimView, pod: Consumer, reason: str, note: str) -> None:
        self.events.append((claim.name, pod.name, reason, note))


def _add_class(client: FakeKube, name: str, handler: str) -> None:
    client.create(RUNTIME_CLASSES, {"metadata": {"name": name}, "handler": handler})


def _prepare(node: BareNode, guard: RuntimeGuard) -> None:
    state, _, _ = node.start()
    view = node.view()
    Preparer(ClaimReader(node.client), state, lambda: view, Hooks(guard)).prepare(node.claim)


@pytest.mark.parametrize(("name", "handler"), [("secure", "kata-qemu"), ("gvisor", "runsc")])
def test_a_pod_in_a_sandbox_gets_a_reason_and_no_share(node: BareNode, name: str, handler: str) -> None:
    _add_class(node.client, name, handler)
    _use(node.client, "p", runtime_class=name)

    with pytest.raises(ClaimError) as caught:
        _prepare(node, RuntimeGuard(node.client))

    assert str(caught.value) == (
        f"ResourceClaim default/train: pod p: found runtimeClassName {name} with handler {handler}, expected a runtime "
        "that shares the node's kernel: in a sandbox the GPU driver is out of reach, and no share of it can be "
        "enforced; give the pod another runtimeClassName, or none"
    )
    assert node.files() == []


def test_a_pod_in_a_sandbox_holds_up_no_other_pod_of_its_claim_and_is_told_of_once(node: BareNode) -> None:
    told = Told()
    _add_class(node.client, "secure", "kata")
    secure = _add_pod(node.client, "secure-pod", "secure")
    _reserve(node.client, [secure, _add_pod(node.client, "usual")])
    guard = RuntimeGuard(node.client, tell=told)

    _prepare(node, guard)
    _prepare(node, guard)

    assert node.limits()
    [(claim, pod, reason, note)] = told.events
    assert (claim, pod, reason) == ("train", "secure-pod", "VGPUSandboxed")
    assert note.startswith("ResourceClaim default/train: pod secure-pod: found runtimeClassName secure with handler")


@pytest.mark.parametrize(
    "fields",
    [{"spec": {}}, {"status": {"phase": "Succeeded"}}, {"status": {"phase": "Failed"}}],
    ids=["has no node yet", "has succeeded", "has failed"],
)
def test_a_claim_is_refused_to_a_sandbox_where_its_other_pod(node: BareNode, fields: dict[str, Any]) -> None:
    _add_class(node.client, "secure", "kata")
    consumers = [_add_pod(node.client, "secure-pod", "secure"), _add_pod(node.client, "usual", **fields)]
    consumers.append({"resource": "pods", "name": "gone", "uid": "uid-gone"})
    _reserve(node.client, consumers)

    with pytest.raises(ClaimError, match="pod secure-pod: found runtimeClassName secure"):
        _prepare(node, RuntimeGuard(node.client))

    assert node.files() == []


def test_a_claim_that_was_refused_is_prepared_as_soon_as_a_pod_outside_of_sandboxes_uses_it(node: BareNode) -> None:
    _add_class(node.client, "secure", "kata")
    secure = _add_pod(node.client, "secure-pod", "secure")
    _reserve(node.client, [secure])
    guard = RuntimeGuard(node.client)
    with pytest.raises(ClaimError):
        _prepare(node, guard)

    _reserve(node.client, [secure, _add_pod(node.client, "usual")])
    _prepare(node, guard)

    assert node.limits()


def test_a_pod_in_a_sandbox_that_comes_to_a_prepared_claim_is_told_of(
    node: BareNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, "_FRESH_S", 0.0)
    told = Told()
    guard = RuntimeGuard(node.client, tell=told)
    usual = _add_pod(node.client, "usual")
    _reserve(node.client, [usual])
    state, preparer, _ = node.start()
    preparer.prepare(node.claim)
    follower = ClaimFollower(ClaimReader(node.client), state.ledger, node.paths.shares_dir, lambda *_: None, guard.meet)

    _add_class(node.client, "secure", "kata")
    _reserve(node.client, [usual, _add_pod(node.client, "late", "secure")])
    (claim,) = state.ledger.prepared().values()
    follower.follow(claim)

    assert [event[:3] for event in told.events] == [("train", "late", "VGPUSandboxed")]


def test_the_events_stand_at_the_pod_and_at_the_claim(node: BareNode) -> None:
    _add_class(node.client, "secure", "kata")
    _use(node.client, "p", runtime_class="secure")
    events = EventWriter(node.client, "node-1")
    events.start()
    with pytest.raises(ClaimError) as caught:
        _prepare(node, RuntimeGuard(node.client, tell=events.tell_of_pod))
    events.stop(60)

    written = node.client.objects(EVENTS)
    assert {event["note"] for event in written} == {str(caught.value)}
    assert [(event["regarding"]["kind"], event["regarding"]["name"]) for event in written] == [
        ("Pod", "p"),
        ("ResourceClaim", "train"),
    ]


def test_a_class_that_is_as_new_as_its_pod_is_refused_too(node: BareNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "_FRESH_S", 0.0)
    guard = RuntimeGuard(node.client)
    _use(node.client, "p")
    _prepare(node, guard)
    node.unprepare()
    _add_class(node.client, "secure", "kata-qemu")
    _use(node.client, "q", runtime_class="secure")

    with pytest.raises(ClaimError, match="pod q: found runtimeClassName secure with handler kata-qemu"):
        _prepare(node, guard)

    assert node.files() == []


def test_claims_that_are_prepared_together_ask_for_the_classes_once(
    node: BareNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, "_FRESH_S", 3600.0)
    listed: list[Any] = []
    ask = node.client.list

    def note(resource: Any, *args: Any) -> Any:
        listed.append(resource)
        return ask(resource, *args)

    monkeypatch.setattr(node.client, "list", note)
    guard = RuntimeGuard(node.client)
    _prepare(node, guard)
    _prepare(node, guard)

    assert listed == [RUNTIME_CLASSES]


def test_the_classes_are_read_beside_the_claims_and_pods_all_together(
    node: BareNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[list[str | None]] = []
    get_all = node.client.get_all

    def note(wanted: Any) -> Any:
        rounds.append([one.name or one.resource.plural for one in wanted])
        return get_all(wanted)

    monkeypatch.setattr(node.client, "get_all", note)
    _prepare(node, RuntimeGuard(node.client))
    assert rounds == [["train", "runtimeclasses"]]

    _add_class(node.client, "secure", "kata")
    _use(node.client, "p", "q", runtime_class="usual")
    rounds.clear()
    _prepare(node, RuntimeGuard(node.client))
    assert rounds == [["train", "runtimeclasses"], ["p", "q"]]


def test_without_patterns_nothing_is_asked(node: BareNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(node.client, "list", refuse)

    _prepare(node, RuntimeGuard(node.client, []))

    assert node.limits()


def test_a_pod_of_another_class_is_served(node: BareNode) -> None:
    _add_class(node.client, "secure", "kata")
    _add_class(node.client, "nvidia", "nvidia")
    _use(node.client, "p", runtime_class="nvidia")

    _prepare(node, RuntimeGuard(node.client))

    assert node.limits()


def test_an_operator_says_which_handlers_are_refused(node: BareNode) -> None:
    _add_class(node.client, "secure", "kata")
    _use(node.client, "p", runtime_class="secure")

    _prepare(node, RuntimeGuard(node.client, ["mine"]))

    assert node.limits()


def test_pods_are_not_read_where_no_class_is_refused(node: BareNode, monkeypatch: pytest.MonkeyPatch) -> None:
    _add_class(node.client, "nvidia", "nvidia")
    _use(node.client, "p", runtime_class="nvidia")
    asked: list[str] = []
    get = node.client.get

    def note(resource: Any, *args: Any) -> Any:
        asked.append(resource.plural)
        return get(resource, *args)

    monkeypatch.setattr(node.client, "get", note)

    _prepare(node, RuntimeGuard(node.client))

    assert set(asked) == {"resourceclaims"}


def test_an_agent_that_may_not_read_pods_says_so_once_and_serves(
    node: BareNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _add_class(node.client, "secure", "kata")
    _use(node.client, "p", "q", runtime_class="secure")
    get = node.client.get

    def refuse(resource: object, *args: str) -> object:
        if resource == PODS:
            raise KubeError("GET pods: forbidden", 403)
        return get(resource, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(node.client, "get", refuse)
    with caplog.at_level(logging.WARNING, "kubeletplugin.claims.runtimes"):
        _prepare(node, RuntimeGuard(node.client))

    assert [record.getMessage() for record in caplog.records] == [
        "pod cannot be read: it is not refused if it runs in a sandbox"
    ]
    assert node.limits()
