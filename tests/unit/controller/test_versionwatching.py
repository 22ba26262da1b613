"""An API server that is upgraded or downgraded under a running controller is followed, without a restart."""

from collections.abc import Iterator

import pytest

from api import kube as kube_api
from api.kubefake import FakeKube
from controller.versionwatching import VersionWatch
from tests.unit.controller.builders import add_node, facts, make_controller, state_inventory, status, wait_until

GROUP = "resource.k8s.io"


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    fake = FakeKube({GROUP: ("v1beta1",)})
    yield fake
    fake.set_down(True)  # ends the watches


def test_a_controller_works_with_a_better_version_as_soon_as_it_is_served(kube: FakeKube) -> None:
    controller = make_controller(kube, version_period_s=0.05)
    controller.start()
    try:
        uid = add_node(kube, "n1")
        state_inventory(kube, "n1", status(facts(), node_uid=uid))
        wait_until(lambda: len(kube.objects(kube_api.slices("v1beta1"))) == 1)
        for versions in (("v1beta1", "v1"), ("v1beta1", "v1beta2")):
            kube.set_versions({GROUP: versions})
            wait_until(lambda best=versions[1]: len(kube.objects(kube_api.slices(best))) == 1)  # type: ignore[misc]
            wait_until(controller.idle)
        assert controller.is_leading()
        assert controller.alive() == controller.ready() == ""
    finally:
        controller.stop()


class TurningKube(FakeKube):
    """Two API servers behind one address, which answer in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def resource_api_version(self) -> str:
        self.asked += 1
        return "v1" if self.asked % 2 else "v1beta1"


def test_api_servers_of_two_versions_that_answer_in_turn_are_not_followed_to_and_fro() -> None:
    turning = TurningKube()
    changes: list[None] = []
    version_watch = VersionWatch(turning, lambda: "v1beta1", lambda: changes.append(None), period_s=0.001)
    version_watch.start()
    wait_until(lambda: turning.asked >= 10)
    version_watch.stop()
    assert changes == []
