"""VGPUConfig: the opaque parameters of a claim, and what they make of its allocation.

A user writes them under `spec.devices.config[].opaque.parameters` of a ResourceClaim or in a DeviceClass; the node
agent reads them when it prepares the claim, the controller when it explains or admits it. Strict: what is not known
is refused, since a limit that is silently ignored is no limit.
"""

import enum
import reprlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from api import names
from api.errors import ConfigError
from api.quantities import parse_bytes

MAX_PRIORITY = 1000


class Policy(enum.Enum):
    """What a share may do with compute time that nobody else wants."""

    FIXED = "Fixed"
    """Never above its cores, on an idle device neither."""
    BURST = "Burst"
    """Takes idle time, and falls back to its cores as soon as a neighbour is active."""


class Overuse(enum.Enum):
    """What happens to processes that hold more device memory than the share, past the library that enforces it."""

    REPORT = "Report"
    """An event, a metric and a line in the log."""
    KILL = "Kill"
    """They are ended, and it is reported."""


_E = TypeVar("_E", bound=enum.Enum)

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 100
MOST_PROBLEMS = 8
"""That are told of one object: parameters have room for thousands, and all that is told is kept and sent around."""


def _member(kind: type[_E]) -> Callable[[object], _E]:
    """Return a validator: strict mode takes no strings for an enum in Python data; the names are the API here."""

    def validate(value: object) -> _E:
        for member in kind:
            if value == member.value:
                return member
        raise ValueError(" or ".join(f'"{member.value}"' for member in kind))

    return validate


def _memory(value: object) -> int | None:
    if isinstance(value, str) and len(value) > _SHOWN.maxstring:
        raise ValueError(f"found {_shown(value)}, expected {EXPECTED_AMOUNTS['memory']}")
    try:
        return None if value is None else parse_bytes(value, "memory")
    except ConfigError as error:
        raise ValueError(str(error).removeprefix("memory: ")) from error


Memory = Annotated[int | None, BeforeValidator(_memory)]
"""Bytes, written as a quantity; None: nothing is said."""


class VGPUConfig(BaseModel):
    """Limits of a share, beside the capacity that its claim requests."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    api_version: Literal["vgpu.dra-driver.io/v1alpha1"] = Field(alias="apiVersion")
    kind: Literal["VGPUConfig"]
    memory: Memory = None
    """Bytes; None: what the claim was allocated."""
    cores: Annotated[int, Field(ge=1, le=names.CORES_PER_DEVICE)] | None = None
    """Percent of a device; None: what the claim was allocated.

    0 is refused: as a limit it would forbid all work, and elsewhere it means no limit. A share that wants no guaranteed
    time leaves it out.
    """
    policy: Annotated[Policy, BeforeValidator(_member(Policy))] | None = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    """Among the shares of a device: while one with a higher priority is at work, the others yield idle time to it."""
    overuse: Annotated[Overuse, BeforeValidator(_member(Overuse))] = Overuse.REPORT

    @property
    def most_priority(self) -> int | None:
        """The priority, if one is said; None: nothing is."""
        return self.priority if "priority" in self.model_fields_set else None

    def within(self, bounds: "VGPUConfig") -> "VGPUConfig":
        """Return these parameters as far as those of a DeviceClass allow them.

        Its memory, cores and priority are the most that there is, its Fixed stays Fixed and its Kill stays Kill. What
        it leaves out binds nothing.
        """
        said = {
            "memory": (self.memory, bounds.memory),
            "cores": (self.cores, bounds.cores),
            "priority": (self.priority, bounds.most_priority),
        }
        changes: dict[str, Any] = {
            field: most if wanted is None else min(wanted, most)
            for field, (wanted, most) in said.items()
            if most is not None
        }
        if bounds.policy is Policy.FIXED:
            changes["policy"] = Policy.FIXED
        if bounds.overuse is Overuse.KILL:
            changes["overuse"] = Overuse.KILL
        return self.model_copy(update=changes)


EXPECTED_AMOUNTS = {
    "memory": 'a quantity of memory above 0 such as "8Gi"',
    "cores": f"a whole number from 1 to {names.CORES_PER_DEVICE} (percent of one device)",
    "priority": f"a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY}",
}
"""What to write into the fields that parameters and adjustments have in common."""
_EXPECTED = {
    "memory": EXPECTED_AMOUNTS["memory"],
    "cores": EXPECTED_AMOUNTS["cores"],
    "policy": '"Fixed" or "Burst"',
    "priority": EXPECTED_AMOUNTS["priority"],
    "overuse": '"Report" or "Kill"',
    "apiVersion": f'"{names.GROUP_VERSION}"',
    "kind": f'"{names.VGPU_CONFIG_KIND}"',
}


def parse_config(parameters: object, where: str) -> VGPUConfig:
    """Return the parameters as a VGPUConfig.

    Args:
        parameters: the content of `opaque.parameters`.
        where: names the object that holds them, such as `ResourceClaim team-a/train`.

    Raises:
        ConfigError: one line for each problem: object, field, what was found, what was expected.
    """
    if not isinstance(parameters, Mapping):
        raise ConfigError(
            f"{where}: parameters: found {_shown(parameters)}, expected an object of kind {names.VGPU_CONFIG_KIND}"
        )
    return validate(VGPUConfig, dict(parameters), where, _EXPECTED)


_M = TypeVar("_M", bound=BaseModel)


def validate(model: type[_M], content: object, where: str, expected: Mapping[str, str]) -> _M:
    """Return what users or operators wrote as a model, whatever it is that they wrote.

    Args:
        model: whose fields are in `expected`.
        content: as JSON gave it.
        where: names the object.
        expected: what to write into each field.

    Raises:
        ConfigError: one line for each problem: where, field, what was found, what was expected.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = [_describe(dict(one), where, expected) for one in error.errors()[:MOST_PROBLEMS]]
        if more := error.error_count() - len(lines):
            lines.append(f"{where}: and {more} more")
        raise ConfigError("\n".join(lines)) from error
    except (RecursionError, ValueError) as error:  # brackets in brackets, or a number of thousands of digits
        raise ConfigError(f"{where}: found {_shown(content)}, expected fields of {', '.join(expected)}") from error


def _shown(value: object) -> str:
    """Return the beginning of a value of any depth and size, for a message."""
    return _SHOWN.repr(value)


def _describe(problem: dict[str, Any], where: str, expected: Mapping[str, str]) -> str:
    # Of a key with a lone surrogate, which JSON can spell but UTF-8 cannot, the place is not said.
    field = str(problem["loc"][0]) if problem["loc"] else "a key that is no text"
    if problem["type"] == "extra_forbidden":
        name = field if field.isprintable() and len(field) <= _SHOWN.maxstring else _shown(field)
        return f"{where}: {name}: unknown field, expected one of {', '.join(expected)}"
    if not problem["loc"]:
        return f"{where}: found {field}, expected one of {', '.join(expected)}"
    if problem["type"] == "missing":
        return f"{where}: {field}: missing, expected {expected[field]}"
    reason = str(problem.get("ctx", {}).get("error", ""))
    if field == "memory" and reason:
        return f"{where}: memory: {reason}"
    return f"{where}: {field}: found {_shown(problem['input'])}, expected {expected[field]}"
