"""Leader election: one leads, a lost Lease ends leading, a clean stop hands over at once."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from api.errors import ConfigError, ConflictError
from api.kube import JSON, LEASES, Resource
from api.kubefake import FakeKube
from controller import leading
from controller.leading import LeaderElector, LeaseSettings, Seen, may_take, renewed
from tests.unit.controller.builders import wait_until

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def settings(identity: str = "a", duration_s: float = 600.0) -> LeaseSettings:
    return LeaseSettings("system", "lease", identity, duration_s, renew_deadline_s=duration_s / 2, retry_s=0.05)


def lease(holder: str, duration_s: int = 15) -> dict[str, object]:
    return {"spec": {"holderIdentity": holder, "leaseDurationSeconds": duration_s, "leaseTransitions": 4}}


class Candidate:
    """An elector that remembers what it was told."""

    def __init__(self, kube: FakeKube, identity: str) -> None:
        self.told: list[str] = []
        self.stopped = threading.Event()
        self.elector = LeaderElector(
            kube, settings(identity), on_started=lambda: self.told.append("started"), on_stopped=self._stopped
        )

    def _stopped(self) -> None:
        self.told.append("stopped")
        self.stopped.set()


class Clock:
    """Time that passes as it does, and all at once where a test says so: no wait on a busy machine ends a Lease."""

    def __init__(self, usual: Callable[[], float]) -> None:
        self.ahead_s = 0.0
        self._usual = usual

    def __call__(self) -> float:
        return self._usual() + self.ahead_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(leading.monotonic_s)
    monkeypatch.setattr(leading, "monotonic_s", clock)
    return clock


@pytest.fixture
def kube() -> FakeKube:
    return FakeKube()


@pytest.fixture
def first(kube: FakeKube) -> Iterator[Candidate]:
    candidate = Candidate(kube, "first")
    yield candidate
    candidate.elector.stop()


@pytest.fixture
def second(kube: FakeKube) -> Iterator[Candidate]:
    candidate = Candidate(kube, "second")
    yield candidate
    candidate.elector.stop()


@pytest.mark.parametrize(
    ("holder", "seen_at", "taken"),
    [("", 100.0, True), ("me", 100.0, True), ("other", 86.0, False), ("other", 85.0, True)],
)
def test_a_lease_can_be_taken_when_nobody_holds_it_or_its_holder_was_silent(
    holder: str, seen_at: float, taken: bool
) -> None:
    held = lease(holder)
    assert may_take(held, Seen(held, seen_at), "me", now=100.0) is taken


def test_taking_over_counts_a_transition_and_renewing_does_not() -> None:
    taken = renewed(lease("other"), settings("me", 15.0), NOW)
    assert taken["spec"] == {
        "holderIdentity": "me",
        "leaseDurationSeconds": 15,
        "renewTime": "2026-01-02T03:04:05.000000Z",
        "acquireTime": "2026-01-02T03:04:05.000000Z",
        "leaseTransitions": 5,
    }
    again = renewed(taken, settings("me", 15.0), NOW.replace(second=9))
    assert again["spec"]["leaseTransitions"] == 5
    assert again["spec"]["acquireTime"] == "2026-01-02T03:04:05.000000Z"
    assert again["spec"]["renewTime"] == "2026-01-02T03:04:09.000000Z"


def test_durations_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        LeaseSettings("system", "lease", "a", duration_s=10, renew_deadline_s=10, retry_s=2)
    assert str(caught.value) == (
        "leader election: found retry 2 s, renew deadline 10 s, duration 10 s, "
        "expected 0 < retry < renew deadline < duration"
    )


def test_a_lease_counts_from_when_it_was_seen_and_not_from_when_it_was_asked_for() -> None:
    # The answer came late, and the holder renewed just before it was given: it may lead for some time yet.
    class SlowKube(FakeKube):
        def get(self, resource: Resource, name: str, namespace: str | None = None) -> JSON:
            never.wait(0.2)
            return super().get(resource, name, namespace)

    never = threading.Event()
    kube = SlowKube()
    kube.create(LEASES, {"metadata": {"namespace": "system", "name": "lease"}, **lease("other", duration_s=1)})
    elector = Candidate(kube, "first").elector
    before = time.monotonic()

    elector._attempt()

    assert elector._seen is not None
    assert elector._seen.at >= before + 0.2


def test_only_one_of_two_leads(kube: FakeKube, first: Candidate, second: Candidate) -> None:
    first.elector.start()
    wait_until(first.elector.is_leading)
    second.elector.start()
    wait_until(second.elector.in_contact)
    assert not second.elector.is_leading()
    assert kube.get(LEASES, "lease", "system")["spec"]["holderIdentity"] == "first"


def test_a_clean_stop_gives_the_lease_back_and_the_next_takes_it(
    kube: FakeKube, first: Candidate, second: Candidate
) -> None:
    first.elector.start()
    wait_until(first.elector.is_leading)
    first.elector.stop()
    assert first.told == ["started", "stopped"]
    assert kube.get(LEASES, "lease", "system")["spec"]["holderIdentity"] == ""
    second.elector.start()
    wait_until(second.elector.is_leading)


def test_the_lease_of_a_leader_that_died_is_taken_after_its_duration(
    kube: FakeKube, second: Candidate, clock: Clock
) -> None:
    dead = {"metadata": {"namespace": "system", "name": "lease"}, **lease("dead", duration_s=600)}
    kube.create(LEASES, dead)
    second.elector.start()
    wait_until(second.elector.in_contact)
    assert not second.elector.is_leading()
    clock.ahead_s += 600
    wait_until(second.elector.is_leading)


def test_a_leader_that_cannot_renew_stops_before_others_may_begin(
    kube: FakeKube, first: Candidate, clock: Clock
) -> None:
    first.elector.start()
    wait_until(first.elector.is_leading)
    kube.set_down(True)
    clock.ahead_s += 300
    assert not first.elector.is_leading()
    assert first.stopped.wait(60)
    assert not first.elector.is_leading()
    kube.set_down(False)
    wait_until(lambda: first.told == ["started", "stopped", "started"])
    assert first.elector.is_leading()


def test_a_lease_that_somebody_deletes_stays_with_its_holder(
    kube: FakeKube, first: Candidate, second: Candidate
) -> None:
    kube.create(LEASES, {"metadata": {"namespace": "system", "name": "lease"}, **lease("first", duration_s=60)})
    for candidate in (second, first):
        candidate.elector._attempt()
    kube.delete(LEASES, {"metadata": {"namespace": "system", "name": "lease"}})

    second.elector._attempt()
    assert kube.objects(LEASES) == []
    first.elector._attempt()

    assert kube.get(LEASES, "lease", "system")["spec"]["holderIdentity"] == "first"


def test_a_lease_that_is_gone_is_taken_once_its_holder_has_been_silent(
    kube: FakeKube, second: Candidate, clock: Clock
) -> None:
    kube.create(LEASES, {"metadata": {"namespace": "system", "name": "lease"}, **lease("dead", duration_s=600)})
    second.elector.start()
    wait_until(second.elector.in_contact)
    kube.delete(LEASES, {"metadata": {"namespace": "system", "name": "lease"}})
    clock.ahead_s += 600
    wait_until(second.elector.is_leading)


def test_a_lease_that_somebody_took_ends_leading(kube: FakeKube, first: Candidate) -> None:
    first.elector.start()
    wait_until(first.elector.is_leading)
    while True:
        stolen = kube.get(LEASES, "lease", "system")
        stolen["spec"] |= {"holderIdentity": "thief", "leaseDurationSeconds": 60}
        try:
            kube.replace(LEASES, stolen)
            break
        except ConflictError:
            continue  # renewed meanwhile
    assert first.stopped.wait(60)
    first.elector.stop()
    assert kube.get(LEASES, "lease", "system")["spec"]["holderIdentity"] == "thief"
