"""Decides how much compute a Burst share may use now: pure arithmetic over what all shares of a node did lately.

Called by the steering. A Burst share has its guarantee; what the guarantees of the active shares on its device leave
goes in equal parts to the active Burst shares of the highest priority. Alone it has its ceiling.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from api import names
from api.vgpuconfig import Policy
from libvgpu.shares import Limits

FLOOR_PERCENT = 1
"""Least grant: a share without guarantee next to neighbours that have it all still moves, if slowly."""


@dataclass(frozen=True)
class Activity:
    """A share, and whether it used its device in the last interval."""

    limits: Limits
    active: bool


def grants(shares: Iterable[Activity]) -> Mapping[str, int]:
    """Return the percent that each Burst share may use now, by share name."""
    by_device: dict[str, list[Activity]] = {}
    for share in shares:
        by_device.setdefault(share.limits.device_uuid, []).append(share)
    return {
        share.limits.share: _grant(share.limits, [other for other in neighbours if other is not share and other.active])
        for neighbours in by_device.values()
        for share in neighbours
        if share.limits.policy is Policy.BURST
    }


def _grant(limits: Limits, active_neighbours: list[Activity]) -> int:
    if not active_neighbours:
        return limits.ceiling_percent
    guaranteed = limits.cores_percent + sum(other.limits.cores_percent for other in active_neighbours)
    left = max(names.CORES_PER_DEVICE - guaranteed, 0)
    if any(other.limits.priority > limits.priority for other in active_neighbours):
        left = 0
    sharing = [limits, *(other.limits for other in active_neighbours if other.limits.policy is Policy.BURST)]
    equals = sum(other.priority == limits.priority for other in sharing)
    return max(min(limits.cores_percent + left // equals, limits.ceiling_percent), FLOOR_PERCENT)
