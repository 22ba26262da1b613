"""Rules about what is offered of which GPUs: a part of the controller's settings.

Read by `dra_driver.settings` from the file of `--config`, used by the controller's policies. Each rule names nodes (by
labels) and models (by patterns) and sets some fields; for every field the first rule that matches and sets it counts.
"""

import enum
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from api import names
from api.errors import ConfigError
from api.quantities import parse_bytes
from api.slots import MAX_INDEX

MAX_DEVICES_PER_GPU = 63
"""Slots of one GPU in all sizes; with the whole GPU beside them they fit into one slice (KEP-4815)."""

OfferModeName = Literal["auto", "consumable", "counters", "slots"]


class Order(enum.StrEnum):
    """In which order the scheduler tries the GPUs of a node; it takes the first that fits."""

    BINPACK = "binpack"
    """Those in use first, the fullest before all: whole GPUs stay free for who needs one."""
    SPREAD = "spread"
    """The emptiest first: shares disturb each other as little as possible."""
    TOPOLOGY = "topology"
    """By NUMA node, PCIe root and link island, whatever their use: neighbours are filled one after the other."""


def _memory(value: object) -> object:
    try:
        return parse_bytes(value, "memory") if isinstance(value, str) else value
    except ConfigError as error:
        raise ValueError(str(error)) from error


class _Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class SlotSize(_Model):
    """Slots of one size."""

    memory_bytes: Annotated[
        int, BeforeValidator(_memory), Field(alias="memory", ge=names.MEMORY_STEP_BYTES, description='such as "10Gi"')
    ]
    cores: Annotated[
        int | None,
        Field(ge=0, le=names.CORES_PER_DEVICE, description="percent of the GPU's time; default: as the memory's part"),
    ] = None
    count: Annotated[int, Field(ge=1, le=MAX_INDEX + 1, description="how many of one GPU")] = 1


def _sizes(value: object) -> object:
    if isinstance(value, Sequence) and not isinstance(value, str):
        total = sum(_count(entry) for entry in value)
        if total > MAX_DEVICES_PER_GPU:
            raise ValueError(f"found {total} slots, expected at most {MAX_DEVICES_PER_GPU} of one GPU")
        if not value:
            raise ValueError("found no size, expected at least one")
    return value


def _count(entry: object) -> int:
    count = entry.get("count", 1) if isinstance(entry, Mapping) else getattr(entry, "count", 1)
    return count if isinstance(count, int) else 1


_Sizes = Annotated[tuple[SlotSize, ...] | None, BeforeValidator(_sizes)]
_Scaling = Annotated[float | None, Field(ge=0.01, le=10)]


class OfferRule(_Model):
    """What is offered of some GPUs."""

    node_labels: Annotated[dict[str, str], Field(description="labels that the Node must have; none: all nodes")] = (
        Field(default_factory=dict)
    )
    models: Annotated[
        tuple[str, ...], Field(description='patterns of product names such as "*H100*"; none: all models')
    ] = ()
    order: Annotated[Order | None, Field(description="order of the GPUs of a node; models do not count here")] = None
    exclusive: Annotated[bool | None, Field(description="a claim that has all cores of a GPU is alone on it")] = None
    memory_scaling: Annotated[_Scaling, Field(description="memory offered, as a part of what is there")] = None
    cores_scaling: Annotated[_Scaling, Field(description="cores offered, as a part of what is there")] = None
    slots: Annotated[_Sizes, Field(description="what a GPU is cut into in the mode slots")] = None
    menu: Annotated[_Sizes, Field(description="sizes beside the whole GPU in the mode counters")] = None

    def matches_node(self, labels: Mapping[str, str]) -> bool:
        """Say whether the rule is about a node."""
        return all(labels.get(key) == value for key, value in self.node_labels.items())

    def matches(self, labels: Mapping[str, str], model: str) -> bool:
        """Say whether the rule is about GPUs of a model on a node."""
        return self.matches_node(labels) and (
            not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)
        )


def first(rules: Sequence[OfferRule], field: str) -> Any:
    """Return the value of a field in the first rule that sets it; None: no rule does."""
    return next((value for rule in rules if (value := getattr(rule, field)) is not None), None)
