"""DeviceTaintRules are watched where they are served, in the version that is served, and nowhere else."""

import threading
from collections.abc import Iterator

import pytest

from api import kube as kube_api
from api import names
from api.errors import KubeError
from api.kubefake import FakeKube
from controller.cluster.rulewatching import RuleWatch, served_rules
from tests.unit.controller.builders import DRIVER, taint_rule, wait_until

V1, BETA, ALPHA = (kube_api.taint_rules(version) for version in ("v1", "v1beta2", "v1alpha3"))


class Watch(RuleWatch):
    """A RuleWatch that looks often and notes its calls."""

    def __init__(self, kube: FakeKube) -> None:
        self.changed = threading.Event()
        super().__init__(kube, DRIVER, self.changed.set, period_s=0.02)

    def names(self) -> list[str]:
        return sorted(rule.taint.rule for rule in self.rules())


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    fake = FakeKube({names.RESOURCE_GROUP: ("v1", "v1beta2", "v1beta1", "v1alpha3")})
    yield fake
    fake.set_down(True)  # ends the watches


@pytest.fixture
def watch(kube: FakeKube) -> Iterator[Watch]:
    started = Watch(kube)
    started.start()
    yield started
    started.stop()


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [((), None), ((ALPHA,), ALPHA), ((ALPHA, BETA), BETA), ((ALPHA, BETA, V1), V1)],
)
def test_the_best_version_that_has_the_rules_is_found(
    kube: FakeKube, kinds: tuple[kube_api.Resource, ...], expected: kube_api.Resource | None
) -> None:
    kube.set_kinds(*kinds)
    assert served_rules(kube) == expected


def test_a_version_that_is_not_served_is_not_asked_for_its_kinds() -> None:
    old = FakeKube({names.RESOURCE_GROUP: ("v1beta1",)})
    assert served_rules(old) is None
    assert old.requests == [("get", "/apis/resource.k8s.io")]


def test_rules_that_are_not_served_are_neither_listed_nor_watched(kube: FakeKube, watch: Watch) -> None:
    wait_until(lambda: len(kube.requests) > 10)
    assert {verb for verb, _ in kube.requests} == {"get"}
    assert watch.names() == []
    assert not watch.changed.is_set()


def test_rules_come_change_and_go(kube: FakeKube, watch: Watch) -> None:
    kube.create(V1, taint_rule("first"))
    kube.create(V1, taint_rule("of-another-driver", driver="nics.example"))
    kube.set_kinds(V1)
    wait_until(lambda: watch.names() == ["first"])
    kube.create(V1, taint_rule("second"))
    wait_until(lambda: watch.names() == ["first", "second"])
    wait_until(watch.changed.is_set)
    watch.changed.clear()
    kube.patch(V1, taint_rule("second"), {"spec": {"taint": {"effect": "None"}}})
    wait_until(lambda: watch.names() == ["first"])
    wait_until(watch.changed.is_set)


def test_an_upgrade_or_a_step_back_of_the_api_server_is_followed(kube: FakeKube, watch: Watch) -> None:
    kube.create(ALPHA, taint_rule("before"))
    kube.create(V1, taint_rule("after"))
    kube.set_kinds(ALPHA)
    wait_until(lambda: watch.names() == ["before"])
    kube.set_kinds(ALPHA, V1)
    wait_until(lambda: watch.names() == ["after"])
    wait_until(watch.changed.is_set)
    watch.changed.clear()
    kube.set_kinds()
    wait_until(lambda: watch.names() == [])
    wait_until(watch.changed.is_set)


def test_a_failed_question_is_asked_again_and_the_rules_stay_meanwhile(kube: FakeKube, watch: Watch) -> None:
    kube.create(V1, taint_rule("kept"))
    kube.set_kinds(V1)
    wait_until(lambda: watch.names() == ["kept"])
    asked = len(kube.requests)
    kube.fail_next(*[KubeError("no answer")] * 3)
    wait_until(lambda: len(kube.requests) > asked + 5)
    assert watch.names() == ["kept"]


def test_after_its_stop_nothing_is_asked_or_reported(kube: FakeKube) -> None:
    watch = Watch(kube)
    kube.set_kinds(V1)
    watch.start()
    wait_until(lambda: ("watch", V1.path()) in kube.requests)
    watch.stop()
    kube.create(V1, taint_rule("late"))  # ends the wait of the watch
    assert watch.join(60)
    asked = len(kube.requests)
    assert watch.names() == []
    assert not watch.changed.is_set()
    assert len(kube.requests) == asked
