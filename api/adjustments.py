"""Changes of a share while it lives: what an operator sets on the node, or writes on the claim from afar.

Read by the node agent from the annotation, and by `dra-driver share set`. A change narrows what the claim holds, or
gives back what the claim's own parameters left of it; never more.
"""

import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from api import names
from api.errors import ConfigError
from api.vgpuconfig import EXPECTED_AMOUNTS, MAX_PRIORITY, Memory, validate


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
_LONGEST = 4096
"""Characters of an annotation that are looked at: all that can be said needs a hundred."""


def parse_adjustment(text: str, where: str) -> Adjustment:
    """Return what an annotation says.

    Args:
        text: a JSON object such as `{"memory": "4Gi", "cores": 20}`.
        where: names the object and the annotation.

    Raises:
        ConfigError: one line for each problem: where, field, what was found, what was expected.
    """
    if len(text) > _LONGEST:
        raise ConfigError(f"{where}: found {len(text)} characters, expected at most {_LONGEST}")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f'{where}: found {text[:100]!r}, expected JSON such as {{"memory": "4Gi"}}: {error}'
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f'{where}: found {text[:100]!r}, expected a JSON object such as {{"memory": "4Gi"}}')
    return validate(Adjustment, content, where, _EXPECTED)
