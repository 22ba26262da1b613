"""Offer modes and attributes against a real API server and a real scheduler: which device a claim ends up with."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from api import kube as kube_api
from api.nodeinventory import DeviceFacts
from api.offerrules import OfferRule
from controller.controller import Controller
from tests.integration.controller.conftest import SERVICE_ACCOUNTS, Cluster
from tests.integration.controller.test_chart import EXAMPLES
from tests.integration.controller.test_publishing import allocated, pod
from tests.unit.controller.builders import CLAIMS, DRIVER, GI, facts, wait_until

pytestmark = pytest.mark.cluster

Start = Callable[..., Controller]


def example(name: str, old: str = "", new: str = "") -> dict[str, Any]:
    """The claim of an example."""
    (path,) = (path for path in EXAMPLES if path.stem == name)
    template, _ = yaml.safe_load_all(path.read_text().replace(old, new) if old else path.read_text())
    return dict(template["spec"]["spec"])


def devices_of(cluster: Cluster, name: str) -> list[str]:
    """The devices that a claim got, or nothing yet."""
    allocation = allocated(cluster, name) or {"devices": {"results": []}}
    return [result["device"] for result in allocation["devices"]["results"]]


class Tenant:
    """Creates claims and pods for one node."""

    def __init__(self, cluster: Cluster, node: str, *devices: DeviceFacts) -> None:
        self.cluster, self.node = cluster, node
        cluster.create(SERVICE_ACCOUNTS, {"kind": "ServiceAccount", "metadata": {"name": "default"}})
        cluster.add_node(node, *devices)

    def ask(self, name: str, spec: dict[str, Any]) -> None:
        made = {"kind": "ResourceClaim", "metadata": {"name": name}, "spec": copy.deepcopy(spec)}
        self.cluster.create(CLAIMS, made)
        self.cluster.create(kube_api.PODS, pod(name, name, self.node))

    def gets(self, name: str, spec: dict[str, Any]) -> list[str]:
        self.ask(name, spec)
        wait_until(lambda: devices_of(self.cluster, name))
        return devices_of(self.cluster, name)

    def waits(self, name: str) -> None:
        """Wait until the scheduler has said that no device is left."""

        def refused() -> bool:
            stored = self.cluster.kube.get(kube_api.PODS, name, self.cluster.namespace)
            conditions = stored.get("status", {}).get("conditions") or []
            return any("cannot allocate all claims" in str(condition.get("message")) for condition in conditions)

        wait_until(refused)
        assert devices_of(self.cluster, name) == []


def test_a_claim_for_any_mode_takes_the_smallest_slot_that_is_large_enough(
    cluster: Cluster, start_controller: Start
) -> None:
    tenant = Tenant(cluster, "slotted", facts(memory_bytes=16 * GI))
    start_controller("a", offer_mode="slots")
    small = example("any-mode", "4Gi", "3Gi")
    slots = [f"{facts().name}-slot-{size}" for size in ("4096m-25c-0", "4096m-25c-1", "8192m-50c-0")]
    assert tenant.gets("half", example("any-mode", "4Gi", "8Gi")) == [slots[2]]
    assert tenant.gets("quarter", small) == [slots[0]]
    assert tenant.gets("other", small) == [slots[1]]
    tenant.ask("none", small)
    tenant.waits("none")


def test_slots_of_a_menu_and_the_whole_gpu_are_never_given_beyond_the_counters(
    cluster: Cluster, start_controller: Start
) -> None:
    tenant = Tenant(cluster, "counted", facts(memory_bytes=16 * GI))
    start_controller("a", offer_mode="counters")
    assert tenant.gets("half", example("any-mode", "4Gi", "8Gi")) == [f"{facts().name}-slot-8192m-50c-0"]
    whole = example("any-mode", "4Gi", "16Gi")
    tenant.ask("whole", whole)
    tenant.waits("whole")
    small = example("any-mode", "4Gi", "3Gi")
    assert tenant.gets("quarter", small) == [f"{facts().name}-slot-4096m-25c-0"]
    assert tenant.gets("other", small) == [f"{facts().name}-slot-4096m-25c-1"]
    tenant.ask("none", small)
    tenant.waits("none")


def test_the_same_claim_takes_what_it_asks_for_of_a_shared_gpu(cluster: Cluster, start_controller: Start) -> None:
    tenant = Tenant(cluster, "shared", facts(memory_bytes=16 * GI))
    start_controller("a")
    assert tenant.gets("half", example("any-mode", "4Gi", "8Gi")) == [facts().name]
    (result,) = allocated(cluster, "half")["devices"]["results"]
    assert result["consumedCapacity"]["memory"] == "8Gi"


def test_two_devices_of_one_numa_node_are_found_and_others_are_not_mixed(
    cluster: Cluster, start_controller: Start
) -> None:
    apart = facts(0, numa_node=0)
    pair = [facts(number, numa_node=1) for number in (1, 2)]
    tenant = Tenant(cluster, "numa", apart, *pair)
    start_controller("a")
    assert sorted(tenant.gets("pair", example("one-numa-node"))) == [each.name for each in pair]


@pytest.mark.parametrize(
    ("attribute", "fact", "values"),
    [
        ("vgpu.dra-driver.io/linkIsland", "link_island", ("island-a", "island-b", "")),
        ("resource.kubernetes.io/pcieRoot", "pcie_root", ("pci0000:17", "pci0000:64", "pci0000:a0")),
    ],
)
def test_two_gpus_that_are_joined_are_found_and_where_there_are_no_more_the_claim_waits(
    cluster: Cluster, start_controller: Start, attribute: str, fact: str, values: tuple[str, str, str]
) -> None:
    alone, joined, other = values
    pair = [facts(number, memory_bytes=6 * GI, **{fact: joined}) for number in (1, 2)]
    tenant = Tenant(cluster, fact.replace("_", "-"), facts(0, **{fact: alone}), *pair, facts(3, **{fact: other}))
    start_controller("a")
    spec = example("one-link-island", "vgpu.dra-driver.io/linkIsland", attribute)
    assert sorted(tenant.gets("pair", spec)) == [each.name for each in pair]
    # The two GPUs with room are on their own each.
    tenant.ask("more", spec)
    tenant.waits("more")


def test_a_model_is_chosen_by_its_attributes_and_a_mig_device_by_its_type(
    cluster: Cluster, start_controller: Start
) -> None:
    old = facts(0, product_name="Tesla T4", compute_capability="7.5")
    new = facts(1, product_name="NVIDIA H100", compute_capability="9.0")
    part = facts(2, type="mig", product_name="NVIDIA H100 MIG 1g.10gb", memory_bytes=9 * GI)
    tenant = Tenant(cluster, "kinds", old, new, part)
    start_controller("a")
    assert tenant.gets("modern", example("one-model")) == [new.name]
    assert tenant.gets("part", example("mig")) == [part.name]


def test_the_second_alternative_is_taken_where_the_first_has_no_device(
    cluster: Cluster, start_controller: Start
) -> None:
    tenant = Tenant(cluster, "either", facts())
    start_controller("a")
    assert tenant.gets("either", example("first-available")) == [facts().name]
    (result,) = allocated(cluster, "either")["devices"]["results"]
    assert result["request"] == "gpu/small"


def test_a_cordoned_gpu_gets_no_claim_until_it_is_uncordoned(cluster: Cluster, start_controller: Start) -> None:
    tenant = Tenant(cluster, "cordoned", *(facts(number, memory_bytes=16 * GI) for number in range(2)))
    target = {"metadata": {"name": "cordoned"}}
    cordoned = {"spec": {"cordonedDevices": [facts(0).name]}}
    cluster.kube.patch(kube_api.NODE_INVENTORIES, target, cordoned)
    start_controller("a")
    whole = example("any-mode", "4Gi", "16Gi")
    assert tenant.gets("first", whole) == [facts(1).name]
    tenant.ask("second", whole)
    tenant.waits("second")
    cluster.kube.patch(kube_api.NODE_INVENTORIES, target, {"spec": {"cordonedDevices": []}})
    wait_until(lambda: devices_of(cluster, "second") == [facts(0).name])


def test_a_claim_for_all_cores_of_an_exclusive_gpu_is_alone_whoever_comes_first(
    cluster: Cluster, start_controller: Start
) -> None:
    tenant = Tenant(cluster, "exclusive", *(facts(number, memory_bytes=16 * GI) for number in range(2)))
    start_controller("a", rules=(OfferRule(exclusive=True),))
    idle, alone = asking(memory="2Gi"), asking(memory="2Gi", cores="100")
    (shared,) = tenant.gets("first", idle)
    (own,) = tenant.gets("all", alone)
    assert own != shared
    assert tenant.gets("second", idle) == [shared]
    tenant.ask("more", alone)
    tenant.waits("more")


def test_a_size_with_all_cores_and_one_without_are_not_given_of_one_exclusive_gpu(
    cluster: Cluster, start_controller: Start
) -> None:
    tenant = Tenant(cluster, "exclusive-counters", facts(memory_bytes=16 * GI))
    menu = [{"memory": "2Gi", "cores": 0, "count": 2}, {"memory": "4Gi", "cores": 100}]
    rule = OfferRule.model_validate({"exclusive": True, "menu": menu})
    start_controller("a", offer_mode="counters", rules=(rule,))
    assert tenant.gets("idle", asking_for_at_least("2Gi")) == [f"{facts().name}-slot-2048m-0c-0"]
    tenant.ask("all", asking_for_at_least("4Gi"))
    tenant.waits("all")


def asking_for_at_least(memory: str) -> dict[str, Any]:
    """A claim of one device of a fixed size."""
    least = f'device.capacity["{DRIVER}"].memory.compareTo(quantity("{memory}")) >= 0'
    exactly = {"deviceClassName": "vgpu", "selectors": [{"cel": {"expression": least}}]}
    return {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}}


def asking(**amounts: str) -> dict[str, Any]:
    """A claim of one share."""
    exactly = {"deviceClassName": "vgpu", "capacity": {"requests": amounts}}
    return {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}}
