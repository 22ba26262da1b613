"""Maintenance of one GPU from the command line."""

import pytest

from api import kube as kube_api
from api.errors import ConfigError, ConflictError, KubeError, TransientError
from api.kube import JSON, Resource
from api.kubefake import FakeKube
from dra_driver.cordoning import cordon, drain
from tests.unit.controller.builders import CLAIMS, DRIVER, claim, facts, result, state_inventory, status

A, B = facts(0), facts(1)


@pytest.fixture
def kube() -> FakeKube:
    fake = FakeKube()
    state_inventory(fake, "n1", status(A, B))
    return fake


def cordoned(kube: FakeKube) -> list[str]:
    (inventory,) = kube.objects(kube_api.NODE_INVENTORIES)
    return list(inventory["spec"].get("cordonedDevices", []))


def test_a_device_is_cordoned_once_and_uncordoned_by_name_uuid_or_the_start_of_it(kube: FakeKube) -> None:
    assert cordon(kube, "n1", A.uuid)
    assert not cordon(kube, "n1", A.name)
    assert cordon(kube, "n1", "gpu-00000001")
    assert cordoned(kube) == [A.name, B.name]
    assert cordon(kube, "n1", A.name, cordoned=False)
    assert not cordon(kube, "n1", A.name, cordoned=False)
    assert cordoned(kube) == [B.name]


def test_a_cordon_that_an_operator_wrote_by_uuid_is_taken_back(kube: FakeKube) -> None:
    kube.patch(kube_api.NODE_INVENTORIES, {"metadata": {"name": "n1"}}, {"spec": {"cordonedDevices": [A.uuid]}})
    assert not cordon(kube, "n1", A.name)
    assert cordon(kube, "n1", A.name, cordoned=False)
    assert cordoned(kube) == []


def test_the_cordon_of_a_device_that_is_gone_is_taken_back_as_it_was_written(kube: FakeKube) -> None:
    cordon(kube, "n1", A.name)
    cordon(kube, "n1", B.name)
    state_inventory(kube, "n1", status(B))
    with pytest.raises(ConfigError):
        cordon(kube, "n1", "gpu-7", cordoned=False)
    assert cordon(kube, "n1", A.name, cordoned=False)
    assert cordoned(kube) == [B.name]


def test_a_heartbeat_in_between_is_no_obstacle(kube: FakeKube, monkeypatch: pytest.MonkeyPatch) -> None:
    inventory = kube.get(kube_api.NODE_INVENTORIES, "n1")
    monkeypatch.setattr(kube, "get", lambda *_: inventory)  # an old state, as read before the heartbeat
    state_inventory(kube, "n1", status(A, B))
    with pytest.raises(ConflictError):
        cordon(kube, "n1", A.name)
    assert cordoned(kube) == []


@pytest.mark.parametrize("device", ["", "gpu-0000000", "gpu-7"])
def test_a_device_that_is_not_there_or_not_one_is_refused_with_what_is_there(kube: FakeKube, device: str) -> None:
    with pytest.raises(ConfigError) as error:
        cordon(kube, "n1", device)
    number = 2 if device == "gpu-0000000" else 0
    assert str(error.value) == f"node n1: found {number} devices {device!r}, expected one of {A.name}, {B.name}"


def test_a_node_without_inventory_is_refused(kube: FakeKube) -> None:
    with pytest.raises(ConfigError, match="node n2: found no NodeInventory, expected one"):
        cordon(kube, "n2", A.name)


class Cluster(FakeKube):
    """Evicted pods go, and their claims with them, unless a budget protects them."""

    protected = ""

    def create(self, resource: Resource, obj: JSON) -> JSON:  # type: ignore[override]
        if not resource.plural.endswith("/eviction"):
            return super().create(resource, obj)
        name = obj["metadata"]["name"]
        if name == self.protected:
            raise KubeError(f"cannot evict {name}: its disruption budget", 429)
        self.delete(CLAIMS, {"metadata": {"namespace": "demo", "name": name}})
        return {}


def held(name: str, device: str) -> JSON:
    found = claim(name, results=[result(device)])
    found["status"]["reservedFor"] = [{"resource": "pods", "name": name, "uid": name}]
    return found


def test_a_drain_evicts_the_pods_of_a_gpu_and_of_its_slots_and_no_others() -> None:
    kube = Cluster()
    state_inventory(kube, "n1", status(A, B))
    for name, device in ("whole", A.name), ("slot", f"{A.name}-slot-1024m-10c-0"), ("other", B.name):
        kube.create(CLAIMS, held(name, device))
    lines: list[str] = []
    drain(kube, "n1", A.name, timeout_s=60, report=lines.append, driver=DRIVER)
    assert lines == [
        f"n1/{A.name}: cordoned",
        "pod demo/slot: evicted",
        "pod demo/whole: evicted",
        f"n1/{A.name}: drained",
    ]
    assert cordoned(kube) == [A.name]
    assert [obj["metadata"]["name"] for obj in kube.objects(CLAIMS)] == ["other"]


def test_a_drain_leaves_observers_alone() -> None:
    kube = Cluster()
    state_inventory(kube, "n1", status(A))
    observer = held("observer", A.name)
    observer["status"]["allocation"]["devices"]["results"][0]["adminAccess"] = True
    kube.create(CLAIMS, observer)
    lines: list[str] = []
    drain(kube, "n1", A.name, timeout_s=0, report=lines.append, driver=DRIVER)
    assert lines == [f"n1/{A.name}: cordoned", f"n1/{A.name}: drained"]


def test_a_drain_that_a_budget_stops_says_who_is_left() -> None:
    kube = Cluster()
    kube.protected = "whole"
    state_inventory(kube, "n1", status(A))
    kube.create(CLAIMS, held("whole", A.name))
    with pytest.raises(TransientError) as error:
        drain(kube, "n1", A.name, timeout_s=0, report=lambda _: None, driver=DRIVER)
    assert str(error.value) == (
        f"n1/{A.name}: not drained after 0 s: pod demo/whole: cannot evict whole: its disruption budget"
    )
