"""One release for each driver name, also where two are installed in the same second."""

import threading

import pytest

from api import names
from api.errors import ConfigError, ConflictError
from api.kube import JSON, Resource, Selection, slices
from api.kubefake import FakeKube
from controller.classes import ClassSettings
from controller.drivernames import CLUSTER_ROLES, DriverName
from tests.unit.controller.builders import (
    DRIVER,
    SLICES,
    add_node,
    facts,
    make_controller,
    state_inventory,
    status,
    wait_until,
)

_EVERYTHING = Selection()
HELD = f"{DRIVER}.name"
REFUSAL = (
    f"driver {DRIVER}: found ResourceSlice {HELD} of another release (ClusterRole theirs), expected none: a "
    "cluster has one release with a driver's name; remove one, or give one another driverName. If that release had the "
    f"name once and has another now: kubectl delete resourceslice {HELD}"
)


class Hasty(FakeKube):
    """Lets two threads look before either of them makes anything."""

    def __init__(self) -> None:
        super().__init__()
        self.both_have_looked = threading.Barrier(2, timeout=60)

    def list(self, resource: Resource, selection: Selection = _EVERYTHING) -> JSON:
        """List, and wait for the other thread."""
        found: JSON = super().list(resource, selection)
        if threading.current_thread() is not threading.main_thread():
            self.both_have_looked.wait()
        return found


def two_releases(kube: FakeKube | None = None) -> FakeKube:
    """An API server with the ClusterRoles of two releases."""
    kube = kube or FakeKube()
    for role in ("theirs", "ours"):
        kube.create(CLUSTER_ROLES, {"metadata": {"name": role}})
    return kube


def test_the_first_release_has_the_name_and_another_is_told_so() -> None:
    kube = two_releases()
    for _ in range(2):
        DriverName(kube, DRIVER, "theirs").hold("v1")
    with pytest.raises(ConfigError) as raised:
        DriverName(kube, DRIVER, "ours").hold("v1")
    assert str(raised.value) == REFUSAL
    DriverName(kube, "other.example", "ours").hold("v1")
    assert [obj["metadata"]["name"] for obj in kube.objects(SLICES)] == ["other.example.name", HELD]


def test_of_two_that_look_in_the_same_moment_one_gets_the_name() -> None:
    kube = two_releases(Hasty())
    beaten: list[str] = []

    def hold(owner: str) -> None:
        try:
            DriverName(kube, DRIVER, owner).hold("v1")
        except ConflictError:
            beaten.append(owner)

    threads = [threading.Thread(target=hold, args=(owner,)) for owner in ("theirs", "ours")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (owner,) = beaten
    with pytest.raises(ConfigError):
        DriverName(kube, DRIVER, owner).hold("v1")


def test_a_release_that_was_installed_anew_takes_its_name_over_and_goes_with_its_new_role() -> None:
    kube = two_releases()
    DriverName(kube, DRIVER, "ours").hold("v1")
    kube.delete(CLUSTER_ROLES, {"metadata": {"name": "ours"}})
    uid = kube.create(CLUSTER_ROLES, {"metadata": {"name": "ours"}})["metadata"]["uid"]
    DriverName(kube, DRIVER, "ours").hold("v1")
    assert [owner["uid"] for owner in kube.get(SLICES, HELD)["metadata"]["ownerReferences"]] == [uid]


def test_without_a_role_of_its_own_a_release_holds_no_name() -> None:
    kube = FakeKube()
    DriverName(kube, DRIVER, "").hold("v1")
    assert kube.requests == []


@pytest.mark.parametrize("version", ["v1", "v1beta2", "v1beta1"])
def test_it_is_held_in_the_version_that_is_served(version: str) -> None:
    kube = FakeKube({names.RESOURCE_GROUP: (version,)})
    kube.create(CLUSTER_ROLES, {"metadata": {"name": "ours"}})
    DriverName(kube, DRIVER, "ours").hold(version)
    (held,) = kube.objects(slices(version))
    assert held["apiVersion"] == f"resource.k8s.io/{version}"


@pytest.mark.parametrize("classes", [ClassSettings(("nvidia",), "ours"), ClassSettings(None, "ours")])
def test_nothing_is_offered_beside_another_release_with_this_driver_name(classes: ClassSettings) -> None:
    kube = two_releases()
    DriverName(kube, DRIVER, "theirs").hold("v1")
    add_node(kube)
    state_inventory(kube, "n1", status(facts(0)))
    controller = make_controller(kube, classes=classes)
    controller.start()
    try:
        wait_until(lambda: controller.ready() == REFUSAL)
        assert [obj["metadata"]["name"] for obj in kube.objects(SLICES)] == [HELD]
        kube.delete(SLICES, kube.get(SLICES, HELD))  # as Kubernetes does when the role that owns it is gone
        wait_until(lambda: len(kube.objects(SLICES)) == 2)
        wait_until(lambda: controller.ready() == "")
    finally:
        controller.stop()
        kube.set_down(True)


def test_a_leader_whose_name_was_removed_takes_it_again_and_stops_where_another_release_was_faster() -> None:
    kube = two_releases()
    add_node(kube)
    state_inventory(kube, "n1", status(facts(0)))
    controller = make_controller(kube, classes=ClassSettings(None, "ours"))
    controller.start()
    try:
        wait_until(controller.idle)
        held = kube.get(SLICES, HELD)
        kube.delete(SLICES, held)
        wait_until(lambda: any(obj["metadata"]["name"] == HELD for obj in kube.objects(SLICES)))
        theirs = kube.get(SLICES, HELD)
        theirs["metadata"]["ownerReferences"][0]["name"] = "theirs"
        kube.replace(SLICES, theirs)
        wait_until(lambda: controller.ready() == REFUSAL)
        before = len(kube.requests)
        state_inventory(kube, "n1", status(facts(0), facts(1)))
        wait_until(lambda: not controller.idle())
        writes = [verb for verb, path in kube.requests[before:] if "slices" in path and verb != "list"]
        assert writes == []
    finally:
        controller.stop()
        kube.set_down(True)
