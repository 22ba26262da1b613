"""The controller keeps the DeviceClasses that it was told to, and leaves those of others alone."""

from typing import Any

import pytest

from api import kube as kube_api
from api import names
from api.errors import NotFoundError
from api.kube import Resource
from api.kubefake import FakeKube
from controller.classes import ClassKeeper, ClassSettings
from tests.unit.controller.builders import (
    CLASSES,
    DRIVER,
    device_class,
)

ROLES = Resource("rbac.authorization.k8s.io", "v1", "clusterroles", namespaced=False)


def keeper(kube: FakeKube, *vendors: str, owner: str = "", version: str = "v1") -> ClassKeeper:
    return ClassKeeper(kube, DRIVER, version, ClassSettings(vendors, owner))


def selectors(kube: FakeKube) -> dict[str, str]:
    return {obj["metadata"]["name"]: obj["spec"]["selectors"][0]["cel"]["expression"] for obj in kube.objects(CLASSES)}


def change(kube: FakeKube, name: str, **spec: Any) -> None:
    stored = kube.get(CLASSES, name)
    kube.replace(CLASSES, {**stored, "spec": {**stored["spec"], **spec}})


OURS = {
    "vgpu": f'device.driver == "{DRIVER}"',
    "vgpu-nvidia": f'device.driver == "{DRIVER}" && device.attributes["{DRIVER}"].vendor == "nvidia"',
}


def test_there_is_a_class_for_all_vendors_and_one_for_each() -> None:
    kube = FakeKube()
    keeper(kube, "nvidia").sync_all()
    assert selectors(kube) == OURS


def test_what_is_right_is_not_written_again() -> None:
    kube = FakeKube()
    kube.create(ROLES, {"metadata": {"name": "role"}})
    for _ in range(2):
        keeper(kube, "nvidia", owner="role").sync_all()
    assert [request for request in kube.requests if request[0] in ("replace", "patch", "delete")] == []


def test_another_expression_is_mended_and_what_others_added_stays() -> None:
    kube = FakeKube()
    kept = keeper(kube, "nvidia")
    kept.sync_all()
    change(kube, "vgpu", selectors=[{"cel": {"expression": "true"}}], extendedResourceName="example.com/gpu")
    kept.sync("vgpu")
    assert selectors(kube) == OURS
    assert kube.get(CLASSES, "vgpu")["spec"]["extendedResourceName"] == "example.com/gpu"


def test_a_class_that_somebody_else_made_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    kube = FakeKube()
    kube.create(CLASSES, device_class("vgpu", "other.example"))
    keeper(kube, "nvidia").sync_all()
    assert selectors(kube) == {**OURS, "vgpu": 'device.driver == "other.example"'}
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "DeviceClass left as it is: another made it"
    ]


def test_what_somebody_changes_back_at_once_is_not_mended_in_a_loop() -> None:
    kube, now_s = FakeKube(), [1000.0]
    kept = ClassKeeper(kube, DRIVER, "v1", ClassSettings(()), lambda: now_s[0])
    kept.sync_all()
    for mended in (True, False):
        change(kube, "vgpu", selectors=[{"cel": {"expression": "true"}}])
        assert kept.sync("vgpu") == (None if mended else 30.0)
        assert (selectors(kube)["vgpu"] == OURS["vgpu"]) is mended
    now_s[0] += 30.0
    assert kept.sync("vgpu") is None
    assert selectors(kube)["vgpu"] == OURS["vgpu"]


def test_classes_of_another_release_with_this_driver_name_stay_its_own() -> None:
    kube = FakeKube()
    for role in ("theirs", "ours"):
        kube.create(ROLES, {"metadata": {"name": role}})
    keeper(kube, "nvidia", "amd", owner="theirs").sync_all()
    before = kube.objects(CLASSES)
    keeper(kube, "nvidia", owner="ours").sync_all()
    assert kube.objects(CLASSES) == before


def test_classes_of_former_settings_go_and_those_of_others_stay() -> None:
    kube = FakeKube()
    keeper(kube, "nvidia", "amd").sync_all()
    kube.create(CLASSES, device_class("team"))
    keeper(kube, "amd").sync_all()
    assert sorted(selectors(kube)) == ["team", "vgpu", "vgpu-amd"]
    ClassKeeper(kube, DRIVER, "v1", ClassSettings(None)).sync_all()
    assert sorted(selectors(kube)) == ["team"]


def test_the_role_owns_them_also_when_it_is_another_one_of_that_name() -> None:
    kube = FakeKube()
    for _ in range(2):
        uid = kube.create(ROLES, {"metadata": {"name": "role"}})["metadata"]["uid"]
        keeper(kube, owner="role").sync_all()
        assert kube.get(CLASSES, "vgpu")["metadata"]["ownerReferences"] == [
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "name": "role", "uid": uid}
        ]
        kube.delete(ROLES, {"metadata": {"name": "role"}})


def test_nothing_is_made_after_the_role_that_should_own_it_is_gone() -> None:
    kube = FakeKube()
    with pytest.raises(NotFoundError):
        keeper(kube, owner="role").sync_all()
    assert kube.objects(CLASSES) == []


@pytest.mark.parametrize("version", ["v1", "v1beta2", "v1beta1"])
def test_they_are_written_in_the_version_that_is_served(version: str) -> None:
    kube = FakeKube({names.RESOURCE_GROUP: (version,)})
    keeper(kube, version=version).sync_all()
    (made,) = kube.objects(kube_api.device_classes(version))
    assert made["apiVersion"] == f"resource.k8s.io/{version}"
