"""Changes shares while they live, and keeps what was changed: within what the claim holds, and as long as it does.

Called by `dra-driver share`, by the follower of annotations, and by the share folders when a claim is prepared again.
A file beside the limits remembers who wants what; the narrowest wish counts.
"""

import enum
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from api import names
from api.adjustments import Adjustment
from api.errors import ConfigError, StateError
from api.quantities import format_bytes
from api.vgpuconfig import Policy
from kubeletplugin.files import read_if_there, write_atomically
from kubeletplugin.state.preparedclaims import Bounds, Held
from libvgpu.shares import Limits, change_limits

_log = logging.getLogger(__name__)
_FILE = "adjustments"


class Source(enum.Enum):
    """Who wants a change."""

    NODE = "node"
    """An operator on the node."""
    CLAIM = "claim"
    """Whoever may annotate the claim."""


Adjustments = Mapping[Source, Adjustment]


def adjusted(claim: Limits, held: Held, adjustments: Adjustments) -> Limits:
    """Return the limits of a share with all changes: what the claim says, if nobody says anything else.

    Args:
        claim: as the claim and its parameters say.
        held: what the claim was allocated; nothing goes above it.
        adjustments: who wants what.
    """
    if not adjustments and claim.memory_bytes <= held.memory_bytes and not claim.suspended:
        return claim
    adjustments = {
        source: _bounded(wish, held.most) if source is Source.CLAIM else wish for source, wish in adjustments.items()
    }
    wishes = list(adjustments.values())
    memory = [wish.memory for wish in wishes if wish.memory is not None] or [claim.memory_bytes]
    cores = [wish.cores for wish in wishes if wish.cores is not None]
    asked = [adjustments[source].priority for source in Source if source in adjustments]
    priorities = [priority for priority in asked if priority is not None]
    limits = replace(
        claim,
        memory_bytes=min([*memory, held.memory_bytes]),
        priority=priorities[0] if priorities else claim.priority,
        suspended=any(wish.suspended for wish in wishes),
    )
    if not cores:
        return limits
    if not held.cores_percent:
        return replace(limits, ceiling_percent=min(cores))
    percent = min([*cores, held.cores_percent])
    return replace(
        limits,
        cores_percent=percent,
        ceiling_percent=percent if claim.policy is Policy.FIXED else claim.ceiling_percent,
    )


def read_adjustments(folder: Path) -> Adjustments:
    """Return who wants what of a share.

    Raises:
        StateError: the file is damaged; names it.
    """
    path = folder / _FILE
    content = read_if_there(path)
    if content is None:
        return {}
    try:
        return {Source(source): Adjustment.model_validate(wish) for source, wish in json.loads(content).items()}
    except (ValueError, AttributeError, ValidationError) as error:
        raise StateError(f"{path}: found {error!r}, expected the changes of a share") from error


def sound_adjustments(folder: Path) -> Adjustments:
    """Return who wants what of a share: nobody anything where the file is damaged, which is logged."""
    try:
        return read_adjustments(folder)
    except StateError as error:
        _log.error("changes of a share are lost: it has what its claim says", extra={"error": str(error)})
        return {}


def adjust(
    folder: Path, planned: tuple[Limits, Held], source: Source, adjustment: Adjustment | None, where: str
) -> Limits:
    """Change a share; return its limits as they are now.

    Args:
        folder: of the share.
        planned: what the claim says, and what it holds.
        source: who wants the change.
        adjustment: all that this source wants from now on; None: nothing more.
        where: names who asks, for the message.

    Raises:
        ConfigError: more than the claim holds; one line for each field.
        StateError: there is no such share (any more), or its files are damaged.
    """
    claim, held = planned
    if adjustment is not None:
        check_adjustment(adjustment, held, source, where)

    def change(present: Limits) -> Limits:
        wishes = {**sound_adjustments(folder), **({source: adjustment} if adjustment is not None else {})}
        if adjustment is None:
            wishes.pop(source, None)
        content = {one.value: wish.model_dump(exclude_none=True) for one, wish in wishes.items()}
        write_atomically(folder / _FILE, json.dumps(content).encode(), 0o600)
        return following(adjusted(claim, held, wishes), present)

    # An operator at the node can wait; nobody shall be able to put him off for good.
    return change_limits(folder, change, patient=source is Source.NODE)


def following(claim: Limits, present: Limits) -> Limits:
    """Return the limits of a share with what its claim says; what the agent steers by itself stays."""
    return replace(
        claim,
        granted_percent=present.granted_percent,
        charge_permille=present.charge_permille,
        steered_at_ns=present.steered_at_ns,
        settled_ns=present.settled_ns,
        unseen_bytes=present.unseen_bytes,
        context_bytes=present.context_bytes,
    )


def _bounded(wish: Adjustment, most: Bounds) -> Adjustment:
    """Return what of a wish a DeviceClass allows: whoever writes claims must not go above it."""
    bounds = {"memory": most.memory_bytes, "cores": most.cores_percent, "priority": most.priority}
    changes = {
        field: min(getattr(wish, field), bound)
        for field, bound in bounds.items()
        if bound is not None and getattr(wish, field) is not None
    }
    return wish.model_copy(update=changes)


def check_adjustment(adjustment: Adjustment, held: Held, source: Source, where: str) -> None:
    """Raise a ConfigError, with a line for each field, where somebody wants more of a share than there is for him.

    That is what its claim holds; for whoever writes the claim, also no more than its DeviceClass says. An operator on
    the node is not bound by that.
    """
    if held.whole:
        raise ConfigError(
            f"{where}: found a GPU that was given out whole and without the library, expected a share: nothing would "
            "enforce a change"
        )
    problems: list[str] = []
    if adjustment.memory is not None and adjustment.memory > held.memory_bytes:
        problems.append(
            f"{where}: memory: found {format_bytes(adjustment.memory)}, expected at most the "
            f"{format_bytes(held.memory_bytes)} that the claim holds"
        )
    cores = held.cores_percent or names.CORES_PER_DEVICE
    if adjustment.cores is not None and adjustment.cores > cores:
        problems.append(f"{where}: cores: found {adjustment.cores}, expected at most the {cores} that the claim holds")
    if source is Source.CLAIM:
        problems += _above(adjustment, held.most, where)
    if problems:
        raise ConfigError("\n".join(problems))


def _above(adjustment: Adjustment, most: Bounds, where: str) -> list[str]:
    wanted_of: dict[str, tuple[int | None, int | None, Callable[[int], str]]] = {
        "memory": (adjustment.memory, most.memory_bytes, format_bytes),
        "cores": (adjustment.cores, most.cores_percent, str),
        "priority": (adjustment.priority, most.priority, str),
    }
    return [
        f"{where}: {field}: found {show(wanted)}, expected at most the {show(bound)} that its DeviceClass allows"
        for field, (wanted, bound, show) in wanted_of.items()
        if wanted is not None and bound is not None and wanted > bound
    ]
