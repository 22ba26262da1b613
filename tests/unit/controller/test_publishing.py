"""The publishing plan: which slices are deleted, updated and created, at which generation."""

import copy
from typing import Any

from api.slices import Device
from controller.offers.comparing import lost_fields, same
from controller.offers.offering import SliceContent
from controller.offers.publishing import FENCE, Plan, Pool, plan, render, settle, slice_name
from tests.unit.controller.builders import DRIVER


def pool(*slices: tuple[str, ...], node_uid: str = "node-1") -> Pool:
    """A pool of node n1 with slices of devices of these names."""
    contents = tuple(SliceContent(tuple(Device(name, attributes={"vendor": "nvidia"}) for name in s)) for s in slices)
    return Pool(DRIVER, "n1", node_uid, contents, "v1")


def stored(wanted: Pool, generation: int = 1) -> list[dict[str, Any]]:
    """The slices of a pool as an API server holds them."""
    found = []
    for index, obj in enumerate(render(wanted, generation)):
        obj["metadata"] |= {"uid": f"uid-{index}", "resourceVersion": str(100 + index)}
        found.append(obj)
    return found


def names_of(objects: tuple[Any, ...]) -> list[str]:
    return [obj["metadata"]["name"][:5] for obj in objects]


def generations(objects: tuple[Any, ...]) -> set[int]:
    return {obj["spec"]["pool"]["generation"] for obj in objects}


def counts(objects: tuple[Any, ...]) -> set[int]:
    return {obj["spec"]["pool"]["resourceSliceCount"] for obj in objects}


def test_a_new_pool_is_created_at_generation_1() -> None:
    result = plan(pool(("a",), ("b",)), [])
    assert names_of(result.creates) == ["00000", "00001"]
    assert generations(result.creates) == {1}
    assert counts(result.creates) == {2}
    assert not result.deletes
    assert not result.updates


def test_a_pool_that_is_as_wanted_is_left_alone() -> None:
    assert plan(pool(("a",), ("b",)), stored(pool(("a",), ("b",)), 7)) == Plan()


def test_one_changed_slice_is_updated_at_the_same_generation() -> None:
    result = plan(pool(("a",), ("c",)), stored(pool(("a",), ("b",)), 7))
    assert names_of(result.updates) == ["00001"]
    assert generations(result.updates) == {7}
    assert not result.creates


def test_two_changed_slices_make_a_new_generation_of_all_slices() -> None:
    result = plan(pool(("x",), ("y",), ("c",)), stored(pool(("a",), ("b",), ("c",)), 7))
    assert names_of(result.updates) == ["00000", "00001", "00002"]
    assert generations(result.updates) == {8}


def test_an_added_slice_makes_a_new_generation_of_all_slices() -> None:
    result = plan(pool(("a",), ("b",)), stored(pool(("a",)), 3))
    assert names_of(result.updates) == ["00000"]
    assert names_of(result.creates) == ["00001"]
    assert generations(result.updates + result.creates) == {4}
    assert counts(result.updates + result.creates) == {2}


def test_a_slice_too_many_is_deleted_first_and_the_count_follows() -> None:
    result = plan(pool(("a",)), stored(pool(("a",), ("b",)), 3))
    assert names_of(result.deletes) == ["00001"]
    assert names_of(result.updates) == ["00000"]
    assert counts(result.updates) == {1}
    assert generations(result.updates) == {3}


def test_a_deleted_slice_of_several_comes_back_with_a_new_generation() -> None:
    result = plan(pool(("a",), ("b",)), stored(pool(("a",), ("b",)), 3)[1:])
    assert names_of(result.creates) == ["00000"]
    assert names_of(result.updates) == ["00001"]
    assert generations(result.creates + result.updates) == {4}


def test_a_write_that_ended_in_the_middle_is_completed() -> None:
    old, new = stored(pool(("a",), ("b",), ("c",)), 3), stored(pool(("x",), ("y",), ("z",)), 4)
    result = plan(pool(("x",), ("y",), ("z",)), [new[0], old[1], old[2]])
    assert names_of(result.updates) == ["00000", "00001", "00002"]
    assert generations(result.updates) == {5}


def test_the_order_of_devices_is_a_change() -> None:
    assert names_of(plan(pool(("b", "a")), stored(pool(("a", "b")))).updates) == ["00000"]


def test_updates_and_deletes_carry_their_preconditions() -> None:
    result = plan(pool(("x",)), stored(pool(("a",), ("b",))))
    assert result.deletes[0] == {
        "metadata": {"name": slice_name(1, "n1", DRIVER), "uid": "uid-1", "resourceVersion": "101"}
    }
    assert result.updates[0]["metadata"]["uid"] == "uid-0"
    assert result.updates[0]["metadata"]["resourceVersion"] == "100"


def test_no_pool_wanted_deletes_all_slices() -> None:
    assert names_of(plan(None, stored(pool(("a",), ("b",)))).deletes) == ["00000", "00001"]


def test_slices_of_another_name_in_the_pool_are_garbage() -> None:
    foreign = stored(pool(("a",)))[0]
    foreign["metadata"]["name"] = "n1-vgpu-x7k2p"
    result = plan(pool(("a",)), [foreign])
    assert [obj["metadata"]["name"] for obj in result.deletes] == ["n1-vgpu-x7k2p"]
    assert names_of(result.creates) == ["00000"]
    assert generations(result.creates) == {2}


def test_a_slice_with_another_node_name_is_replaced_since_it_cannot_be_updated() -> None:
    wrong = stored(pool(("a",)))[0]
    wrong["spec"]["nodeName"] = "n2"
    result = plan(pool(("a",)), [wrong])
    assert names_of(result.deletes) == names_of(result.creates) == ["00000"]
    assert not result.updates


def test_a_new_node_of_the_same_name_becomes_the_owner() -> None:
    result = plan(pool(("a",), node_uid="node-2"), stored(pool(("a",), node_uid="node-1")))
    assert [obj["metadata"]["ownerReferences"][0]["uid"] for obj in result.updates] == ["node-2"]


def test_a_slice_that_the_leader_before_still_creates_is_below_the_first_generation_of_the_next() -> None:
    found = stored(pool(("a",), ("b",)), 4)
    late = plan(pool(("c",), ("d",), ("e",)), found)
    mine = plan(pool(("f",), ("g",)), found, generation_step=FENCE)
    assert generations(late.creates) == {5}
    assert generations(mine.updates) == {6}


def test_a_pool_whose_generation_somebody_set_to_the_last_that_there_is_begins_anew() -> None:
    wanted = pool(("a",), ("b",))
    result = plan(wanted, stored(wanted, (1 << 63) - 1))
    assert (names_of(result.deletes), result.updates, result.creates) == (["00000", "00001"], (), ())
    assert generations(plan(wanted, []).creates) == {1}


def test_a_difference_that_a_write_did_not_remove_is_not_fought_over() -> None:
    wanted = pool(("a",))
    sent = next(render(wanted, 1))
    held = stored(wanted)[0]
    held["spec"]["devices"][0]["attributes"] = {}
    settled = settle(sent, held)
    assert settled is not None
    assert plan(wanted, [held], {held["metadata"]["name"]: settled}) == Plan()
    edited = copy.deepcopy(held)
    edited["spec"]["devices"] = []
    assert names_of(plan(wanted, [edited], {held["metadata"]["name"]: settled}).updates) == ["00000"]
    assert names_of(plan(pool(("b",)), [held], {held["metadata"]["name"]: settled}).updates) == ["00000"]


def test_names_of_slices_sort_by_index_and_stay_within_the_limit() -> None:
    assert slice_name(0, "n1", DRIVER) == "00000-n1-vgpu.dra-driver.io"
    long = [slice_name(index, "node." * 49 + "a", DRIVER) for index in range(3)]
    assert long == sorted(long)
    assert {len(name) for name in long} == {253}
    assert len(set(long)) == 3
    assert slice_name(0, "node." * 49 + "a", DRIVER) != slice_name(0, "node." * 49 + "b", DRIVER)


def test_v1beta1_wraps_devices_in_basic() -> None:
    (obj,) = render(Pool(DRIVER, "n1", "u", (SliceContent((Device("a"),)),), "v1beta1"), 1)
    assert obj["apiVersion"] == "resource.k8s.io/v1beta1"
    assert obj["spec"]["devices"] == [{"name": "a", "basic": {"attributes": {}, "capacity": {}}}]


def test_another_spelling_of_a_quantity_and_server_side_defaults_are_no_difference() -> None:
    wanted = {"devices": [{"name": "a", "capacity": {"memory": {"value": "1024Mi"}}, "taints": [{"key": "k"}]}]}
    held = {
        "devices": [
            {
                "name": "a",
                "attributes": {},
                "capacity": {"memory": {"value": "1Gi"}},
                "taints": [{"key": "k", "timeAdded": "2026-01-01T00:00:00Z"}],
            }
        ]
    }
    assert same(wanted, held)
    assert lost_fields(wanted, held) == ()


def test_dropped_fields_are_named_once_each() -> None:
    device = {"name": "a", "allowMultipleAllocations": True, "capacity": {"memory": {"value": "1Gi"}}}
    wanted = {"pool": {"generation": 1}, "devices": [device, device | {"name": "b"}]}
    held = {
        "pool": {"generation": 1},
        "devices": [{"name": "a", "capacity": {"memory": {"value": "1Gi"}}}, {"name": "b"}],
    }
    assert lost_fields(wanted, held) == ("devices[].allowMultipleAllocations", "devices[].capacity")
