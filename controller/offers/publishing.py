"""From what a node should offer and what the API server holds to the writes that make the two one: a pure plan.

`keeping.PoolKeeper` calls it and applies the plan. The rules are those of the Kubernetes helper library for DRA drivers
(k8s.io/dynamic-resource-allocation/resourceslice), so that schedulers never see half a pool as a whole one:

- one pool per node, named after it, owned by the Node; the index leads the slice's name, so that sorting by name
  keeps the order;
- the generation stays while no slice is added and at most one changes, else it rises and all slices are written;
- deletes come first, then updates, then creates; deletes and updates carry preconditions.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from api import names
from api.claims import Object
from api.slices import render_counter_set, render_device
from controller.offers.comparing import same
from controller.offers.offering import SliceContent

_MAX_NAME = 253
"""Characters in the name of an object."""
FENCE = 2
"""Of the leader before, one write may still be on its way; what it creates is of the next generation at most, and so is
below this one, where schedulers do not look at it."""

_LAST_GENERATION = (1 << 63) - 1 - FENCE
"""There is no next one (int64). Only somebody else can have written so high a number: the pool begins anew."""


@dataclass(frozen=True)
class Pool:
    """What a node should offer."""

    driver: str
    node: str
    node_uid: str
    slices: tuple[SliceContent, ...]
    version: str
    """Version of resource.k8s.io to write."""


@dataclass(frozen=True)
class Plan:
    """Writes in their order. Objects of deletes and updates carry the resourceVersion that they were planned for."""

    deletes: tuple[Object, ...] = ()
    updates: tuple[Object, ...] = ()
    creates: tuple[Object, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.deletes or self.updates or self.creates)


@dataclass(frozen=True)
class Settled:
    """A difference that the API server insists on: writing once more would only loop."""

    wanted: Mapping[str, Any]
    stored: Mapping[str, Any] = field(repr=False)


def slice_name(index: int, node: str, driver: str) -> str:
    """Return the name of a node's index-th slice: made from what it is, so that two writers collide and not double."""
    name = f"{index:05d}-{node}-{driver}"
    if len(name) <= _MAX_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name[: _MAX_NAME - len(digest) - 1].rstrip('-.')}-{digest}"


def plan(
    wanted: Pool | None,
    stored: Sequence[Object],
    settled: Mapping[str, Settled] | None = None,
    generation_step: int = 1,
) -> Plan:
    """Return the writes that turn the stored slices of a pool into the wanted ones.

    Args:
        wanted: the pool as it should be; None: there should be none.
        stored: all slices of our driver with the pool's name.
        settled: by slice name, differences that a write did not remove before.
        generation_step: how far a new generation is above the last: FENCE for the first one of a new leader.
    """
    if wanted is None or generation(stored) > _LAST_GENERATION:
        return Plan(deletes=tuple(_target(obj) for obj in stored))
    kept = {obj["metadata"]["name"]: obj for obj in stored if _belongs(obj, wanted)}
    wanted_names = [slice_name(index, wanted.node, wanted.driver) for index in range(len(wanted.slices))]
    last = generation(stored)

    added = [name for name in wanted_names if name not in kept]
    changed = [
        name
        for name, obj in zip(wanted_names, render(wanted, max(last, 1)), strict=True)
        if name in kept and _differs(obj, kept[name], (settled or {}).get(name))
    ]
    if added or len(changed) > 1:
        # Of a pool without slices, two leaders can only create the same first one, and one of them is told so.
        last, changed = last + (generation_step if stored else 1), [name for name in wanted_names if name in kept]
    objects = {obj["metadata"]["name"]: obj for obj in render(wanted, max(last, 1))}
    return Plan(
        deletes=tuple(
            _target(obj) for obj in stored if obj["metadata"]["name"] not in objects or not _belongs(obj, wanted)
        ),
        updates=tuple(_update(objects[name], kept[name]) for name in changed),
        creates=tuple(objects[name] for name in added),
    )


def generation(slices: Iterable[Object]) -> int:
    """Return the generation of a pool, which is the highest of its slices; 0 if there are none."""
    return max((int(obj["spec"]["pool"].get("generation", 0)) for obj in slices), default=0)


def owners(slices: Iterable[Object]) -> frozenset[str]:
    """Return the UIDs of the Nodes that own slices."""
    return frozenset(str(owner.get("uid")) for obj in slices for owner in obj["metadata"].get("ownerReferences") or ())


def render(pool: Pool, generation: int) -> Iterator[dict[str, Any]]:
    """Yield the ResourceSlices of a pool at a generation, as JSON of the pool's API version."""
    for index, content in enumerate(pool.slices):
        yield {
            "apiVersion": f"{names.RESOURCE_GROUP}/{pool.version}",
            "kind": "ResourceSlice",
            "metadata": {
                "name": slice_name(index, pool.node, pool.driver),
                "ownerReferences": [_owner(pool)],
            },
            "spec": {
                "driver": pool.driver,
                "nodeName": pool.node,
                "pool": {"name": pool.node, "generation": generation, "resourceSliceCount": len(pool.slices)},
                **render_content(content, pool.version),
            },
        }


def render_content(content: SliceContent, version: str) -> dict[str, Any]:
    """Return what a slice holds as fields of its spec; an empty list of devices beside counters would be refused."""
    fields: dict[str, Any] = {}
    if content.devices or not content.counter_sets:
        fields["devices"] = [render_device(device, version) for device in content.devices]
    if content.counter_sets:
        fields["sharedCounters"] = [render_counter_set(counters) for counters in content.counter_sets]
    return fields


def _owner(pool: Pool) -> dict[str, Any]:
    # Without blockOwnerDeletion: that would need the right to set finalizers on nodes.
    return {"apiVersion": "v1", "kind": "Node", "name": pool.node, "uid": pool.node_uid, "controller": True}


def settle(wanted: Object, stored: Object) -> Settled | None:
    """Return the difference that is left between what was written and what was answered; None if there is none."""
    if same(wanted["spec"], stored["spec"]):
        return None
    return Settled(_without_generation(wanted["spec"]), _without_generation(stored["spec"]))


def _differs(wanted: Object, stored: Object, settled: Settled | None) -> bool:
    owners = stored["metadata"].get("ownerReferences") or []
    if [owner.get("uid") for owner in owners] != [owner["uid"] for owner in wanted["metadata"]["ownerReferences"]]:
        return True
    if same(wanted["spec"], stored["spec"]):
        return False
    if settled is None or wanted["spec"]["pool"] != stored["spec"]["pool"]:
        return True
    return not (
        same(settled.wanted, _without_generation(wanted["spec"]))
        and same(settled.stored, _without_generation(stored["spec"]))
    )


def _belongs(obj: Object, pool: Pool) -> bool:
    # Both are immutable: a slice that has them otherwise cannot be updated, only replaced.
    return bool(obj["spec"].get("nodeName") == pool.node and obj["spec"]["pool"]["name"] == pool.node)


def _without_generation(spec: Object) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != "pool"}


def _update(wanted: Object, stored: Object) -> Object:
    metadata = {
        **wanted["metadata"],
        "resourceVersion": stored["metadata"]["resourceVersion"],
        "uid": stored["metadata"]["uid"],
    }
    return {**wanted, "metadata": metadata}


def _target(stored: Object) -> Object:
    metadata = stored["metadata"]
    return {"metadata": {key: metadata[key] for key in ("name", "uid", "resourceVersion")}}
