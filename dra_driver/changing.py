"""`dra-driver share set|suspend|resume`: changes a share of this node while it lives. Called by the CLI.

The node agent need not run: it finds the change beside the share, and leaves it alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from api import names
from api.adjustments import parse_adjustment
from api.errors import ConfigError, StateError
from api.names import ClaimUID
from api.quantities import format_bytes
from dra_driver.sharing import find_share
from kubeletplugin.state.adjusting import Source, adjust, read_adjustments
from kubeletplugin.state.nodestates import NodePaths
from kubeletplugin.state.preparedclaims import Held, decode
from libvgpu.shares import Limits


def change_share(state_dir: Path, name: str, wishes: Mapping[str, object], *, reset: bool = False) -> str:
    """Change a share, and return a line that says how it is now.

    Args:
        state_dir: of the node agent.
        name: of the share, or the start of it.
        wishes: fields of an Adjustment; what is not named stays as an operator has set it before, None: no wish.
        reset: forget what an operator has set before.

    Raises:
        ConfigError: there is no such share, or it cannot be changed to that.
        StateError: the share or its record is damaged.
    """
    share = find_share(state_dir, name).name
    paths = NodePaths(state_dir, Path(names.CDI_DIR))
    folder = paths.shares_dir / share
    before = None if reset else read_adjustments(folder).get(Source.NODE)
    merged = {**(before.model_dump() if before else {}), **wishes}
    where = f"share {share}"
    adjustment = parse_adjustment(json.dumps({key: value for key, value in merged.items() if value is not None}), where)
    empty = not adjustment.model_dump(exclude_none=True)
    limits = adjust(folder, _planned(paths, share), Source.NODE, None if empty else adjustment, where)
    return _describe(limits)


def _planned(paths: NodePaths, share: str) -> tuple[Limits, Held]:
    """Return what the claim of a share says and holds, from its record."""
    uid = ClaimUID(share.rpartition("-")[0])
    path = paths.checkpoint_dir / f"{uid}.json"
    try:
        claim = decode(path.read_bytes(), uid, str(path))
    except OSError as error:
        raise StateError(f"{path}: found {error.strerror}, expected the record of a prepared claim") from error
    for device in claim.devices:
        if device.limits is not None and device.limits.share == share:
            return device.limits, device.holds()
    raise ConfigError(f"share {share}: found none in {path}, expected one of a prepared claim")


def _describe(limits: Limits) -> str:
    parts = [
        f"memory {format_bytes(limits.memory_bytes)}",
        f"cores {limits.cores_percent}",
        f"ceiling {limits.ceiling_percent}",
        f"priority {limits.priority}",
        *(["suspended"] if limits.suspended else []),
    ]
    return f"{limits.share}: {', '.join(parts)}"
