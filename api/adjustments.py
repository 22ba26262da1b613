"""Changes of a share while it lives: what an operator sets on the node, or writes on the claim from afar.

Read by the node agent from the annotation, and by `dra-driver share set`. A change narrows what the claim holds, or
gives back what the claim's own parameters left of it; never more.
"""

import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api import names
from api.errors import ConfigError
from api.vgpuconfig import EXPECTED_AMOUNTS, MAX_PRIORITY, Memory, describe_problems


class Adjustment(BaseModel):
    """What is set; None: as the claim says."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    memory: Memory = None
    cores: Annotated[int, Field(ge=1, le=names.CORES_PER_DEVICE)] | None = None
    """Percent of a device."""
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    suspended: bool | None = None
    """True: launches wait until it is False again."""


_EXPECTED = EXPECTED_AMOUNTS | {"suspended": "true or false"}


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
        raise ConfigError(describe_problems(error, where, _EXPECTED)) from error
