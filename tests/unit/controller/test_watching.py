"""Caches: listed once, watched then; they survive breaks, outages and 410 Gone without losing a change."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from typing_extensions import override

from api.endings import Ending
from api.errors import GoneError, KubeError
from api.kube import NODES
from api.kubefake import FakeKube
from controller.cluster import watching
from controller.cluster.watching import Key, Kind, Watcher
from tests.unit.controller.builders import wait_until


class Changes:
    """Nodes by a label, and what was reported of them."""

    def __init__(self, kube: FakeKube) -> None:
        self.seen: list[tuple[Key, str | None, str | None]] = []
        self.outages = 0
        # Longer than any test: a watch is opened anew only where the test breaks it.
        kind = Kind(NODES, _color, lambda *change: self.seen.append(change), timeout_s=300)
        self.watcher = Watcher(kube, kind, self._outage_ended)
        self.watcher.start()

    def _outage_ended(self) -> None:
        self.outages += 1


def _color(node: Any) -> str | None:
    color = node["metadata"].get("labels", {}).get("color")
    return str(color) if color else None


def node(name: str, color: str = "red") -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"color": color}}}


@pytest.fixture
def kube() -> FakeKube:
    return FakeKube()


@pytest.fixture
def changes(kube: FakeKube) -> Iterator[Changes]:
    kube.create(NODES, node("n1"))
    found = Changes(kube)
    assert found.watcher.synced.wait(60)
    yield found
    found.watcher.stop()
    assert found.watcher.join(60)


def test_what_is_there_is_reported_and_kept_trimmed(changes: Changes) -> None:
    assert changes.seen == [(("", "n1"), None, "red")]
    assert changes.watcher.get(("", "n1")) == "red"
    assert len(changes.watcher) == 1


def test_a_watcher_that_ends_keeps_nothing(kube: FakeKube, changes: Changes) -> None:
    changes.watcher.stop()
    kube.create(NODES, node("n2"))
    assert changes.watcher.join(60)
    assert changes.watcher.items() == {}


def test_a_watcher_ends_at_once_though_its_watch_hears_nothing(kube: FakeKube) -> None:
    watcher = Watcher(kube, Kind(NODES, _color, lambda *_: None, timeout_s=300))
    watcher.start()
    wait_until(lambda: ("watch", "/api/v1/nodes") in kube.requests)
    watcher.stop()
    assert watcher.join(60)


def test_changes_are_reported_with_old_and_new(kube: FakeKube, changes: Changes) -> None:
    kube.patch(NODES, node("n1"), node("n1", "blue"))
    kube.delete(NODES, node("n1"))
    wait_until(lambda: len(changes.seen) == 3)
    assert changes.seen[1:] == [(("", "n1"), "red", "blue"), (("", "n1"), "blue", None)]
    assert changes.watcher.items() == {}


def test_objects_that_the_trim_drops_do_not_exist(kube: FakeKube, changes: Changes) -> None:
    kube.create(NODES, {"metadata": {"name": "plain"}})
    kube.create(NODES, node("n2"))
    kube.patch(NODES, node("n2"), {"metadata": {"labels": {"color": None}}})
    wait_until(lambda: len(changes.seen) == 3)
    assert [key[1] for key, _, _ in changes.seen] == ["n1", "n2", "n2"]
    assert changes.seen[2] == (("", "n2"), "red", None)


def test_a_broken_watch_resumes_without_listing_anew(kube: FakeKube, changes: Changes) -> None:
    kube.set_down(True)
    wait_until(lambda: kube.requests.count(("watch", "/api/v1/nodes")) >= 2)
    kube.set_down(False)
    kube.create(NODES, node("n2"))
    wait_until(lambda: changes.watcher.get(("", "n2")))
    assert kube.requests.count(("list", "/api/v1/nodes")) == 1
    assert changes.outages == 1


def test_after_410_gone_all_is_listed_and_what_vanished_is_reported(
    kube: FakeKube, changes: Changes, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = threading.Event()

    def refuse(*_: Any, **__: Any) -> Iterator[Any]:
        broken.set()
        raise KubeError("no answer from the API server")

    wait_until(lambda: ("watch", "/api/v1/nodes") in kube.requests)
    with monkeypatch.context() as away:
        away.setattr(kube, "watch", refuse)  # until all of it has happened: a watch that came back before would tell it
        kube.set_down(True)
        assert broken.wait(60)
        kube.set_down(False)
        kube.create(NODES, node("n2"))
        kube.delete(NODES, node("n1"))
        kube.forget_events()
    wait_until(lambda: set(changes.watcher.items()) == {("", "n2")})
    assert (("", "n1"), "red", None) in changes.seen
    assert kube.requests.count(("list", "/api/v1/nodes")) == 2


def test_the_cache_knows_how_far_it_has_seen(kube: FakeKube, changes: Changes) -> None:
    version = kube.create(NODES, node("n2"))["metadata"]["resourceVersion"]
    wait_until(lambda: changes.watcher.has_seen(version))
    assert changes.watcher.get(("", "n2")) == "red"
    assert not changes.watcher.has_seen(str(int(version) + 1000))


def test_a_kind_that_is_not_served_yet_is_asked_for_until_it_is() -> None:
    kube = FakeKube()
    kube.create(NODES, node("n1"))
    kube.fail_next(KubeError("the server could not find the requested resource", 404))
    found = Changes(kube)
    assert found.watcher.synced.wait(60)
    found.watcher.stop()
    assert found.watcher.join(60)


def test_a_change_is_in_the_indexes_before_it_counts_as_seen_and_is_told_of_after(kube: FakeKube) -> None:
    seen: list[tuple[str, bool]] = []
    kind = Kind(
        NODES,
        _color,
        on_change=lambda *_: seen.append(("told", watcher.has_seen("1"))),
        index=lambda *_: seen.append(("indexed", watcher.has_seen("1"))),
        timeout_s=1,
    )
    watcher = Watcher(kube, kind)
    watcher.start()
    try:
        assert watcher.synced.wait(60)
        assert kube.create(NODES, node("n1"))["metadata"]["resourceVersion"] == "1"
        wait_until(lambda: len(seen) == 2)
        assert seen == [("indexed", False), ("told", True)]
    finally:
        watcher.stop()
        assert watcher.join(60)


def test_a_change_that_cannot_be_taken_over_holds_up_no_other(kube: FakeKube) -> None:
    told: list[Key] = []

    def tell(key: Key, _old: str | None, _new: str | None) -> None:
        if key == ("", "n1"):
            raise TypeError("nobody thought of that")
        told.append(key)

    kube.create(NODES, node("n1"))
    kube.create(NODES, node("n2"))
    watcher = Watcher(kube, Kind(NODES, _color, tell, timeout_s=1))
    watcher.start()
    try:
        assert watcher.synced.wait(60)
        kube.patch(NODES, node("n1"), node("n1", "blue"))
        kube.create(NODES, node("n3"))
        wait_until(lambda: told == [("", "n2"), ("", "n3")])
        assert [verb for verb, _ in kube.requests].count("list") == 1
    finally:
        watcher.stop()
        assert watcher.join(60)


class Pauses(Ending):
    """Notes for how long a watcher means to wait, lets it go on at once, and ends it at the second time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_s: list[float] = []

    @override
    def wait(self, timeout_s: float) -> bool:
        self.asked_s.append(timeout_s)
        if len(self.asked_s) == 2:
            self.set()
        return self.is_set()


def paused(kube: FakeKube, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let a watcher watch twice; return what part of its first delay it waited for after each."""
    monkeypatch.setattr(watching, "_FIRST_DELAY_S", 1000.0)
    outages: list[None] = []
    watcher = Watcher(kube, Kind(NODES, _color, lambda *_: None), lambda: outages.append(None))
    watcher._stopping = pauses = Pauses()
    watcher.start()
    assert watcher.join(60)
    assert outages == []
    return [seconds / 1000 for seconds in pauses.asked_s]


def test_a_watch_that_is_too_old_as_soon_as_it_is_opened_is_not_listed_for_in_a_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Forgetful(FakeKube):
        def watch(self, *_: Any, **__: Any) -> Iterator[Any]:
            self.requests.append(("watch", ""))
            raise GoneError("too old resource version", 410)

    forgetful = Forgetful()
    assert paused(forgetful, monkeypatch) == pytest.approx([1, 1], abs=0.1)
    assert [verb for verb, _ in forgetful.requests] == ["list", "watch"] * 2


def test_a_watch_that_ends_at_once_is_not_opened_in_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hasty(FakeKube):
        def watch(self, *_: Any, **__: Any) -> Iterator[Any]:
            self.requests.append(("watch", ""))
            return iter(())

    hasty = Hasty()
    assert paused(hasty, monkeypatch) == pytest.approx([1, 1], abs=0.1)
    assert [verb for verb, _ in hasty.requests] == ["list", "watch", "watch"]
