"""Changes of a share while it lives: what an operator sets on the node, or writes on the claim from afar.

Read by the node agent from the annotation, and by `dra-driver share set`. A change narrows what the claim holds, or
gives back what the claim's own parameters left of it; never more.
"""

import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from api import names
from api.errors import ConfigError
from api.quantities import parse_bytes
from api.vgpuconfig import MAX_PRIORITY


def _memory(value: object) -> int | None:
    try:
        return None if value is None else parse_bytes(value, "memory")
    except ConfigError as error:
        raise ValueError(str(error).removeprefix("memory: ")) from error


class Adjustment(BaseModel):
    """What is set; None: as the claim says."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    memory: Annotated[int | None, BeforeValidator(_memory)] = None
    """Bytes."""
    cores: Annotated[int, Field(ge=1, le=names.CORES_PER_DEVICE)] | None = None
    """Percent of a device."""
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    suspended: bool | None = None
    """True: launches wait until it is False again."""


_EXPECTED = {
    "memory": 'a quantity of memory above 0 such as "8Gi"',
    "cores": f"a whole number from 1 to {names.CORES_PER_DEVICE} (percent of one device)",
    "priority": f"a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY}",
    "suspended": "true or false",
}


def parse_adjustment(text: str, where: str) -> Adjustment:
    """Return what an annotation says.

    Args:
        text: a JSON object such as `{"memory": "4Gi", "cores": 20}`.
        where: names the object and the annotation.

    Raises:
        ConfigError: one line for each problem: where, field, what was found, what was expected.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f'{where}: found {text[:100]!r}, expected JSON such as {{"memory": "4Gi"}}: {error}'
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f'{where}: found {text[:100]!r}, expected a JSON object such as {{"memory": "4Gi"}}')
    try:
        return Adjustment.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(dict(problem), where) for problem in error.errors())) from error


def _describe(problem: dict[str, Any], where: str) -> str:
    field = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return f"{where}: {field}: unknown field, expected one of {', '.join(_EXPECTED)}"
    reason = str(problem.get("ctx", {}).get("error", ""))
    if field == "memory" and reason:
        return f"{where}: memory: {reason}"
    return f"{where}: {field}: found {problem['input']!r}, expected {_EXPECTED[field]}"
