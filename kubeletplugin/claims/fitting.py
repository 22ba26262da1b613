"""Refuses to give out a device twice. Pure; called by planning for each device of a claim.

Before 1.36 the scheduler could do that, and a record that is out of date on either side looks the same.
"""

from collections.abc import Callable, Iterable

from api.errors import CapacityError
from api.nodeinventory import OfferedRoom
from api.quantities import format_bytes
from kubeletplugin.hardware.devices import Device
from kubeletplugin.state.ledgers import Prepared
from kubeletplugin.state.preparedclaims import Held, PreparedClaim, PreparedDevice


def check_parts(planned: PreparedClaim, prepared: Prepared) -> None:
    """Refuse a part that the hardware made, such as a MIG device, if another claim holds it.

    Args:
        planned: a claim.
        prepared: the claims of the node; a former record of this claim among them does not count.

    Raises:
        CapacityError: names both claims.
    """
    parts = {device.device for device in planned.devices if device.is_part}
    if not parts:
        return  # and so it is with most claims: the others need not be looked through
    for uid, claim in prepared.items():
        for device in claim.devices:
            if uid != planned.uid and device.is_part and device.device in parts:
                raise CapacityError(
                    f"{device.device}: found it given to {claim}, expected it free for {planned}: a part that the "
                    "hardware made has one holder",
                    [uid],
                )


def check_room(planned: PreparedClaim, device: Device, room: OfferedRoom, prepared: Prepared) -> None:
    """Refuse what a device has no room for.

    Args:
        planned: a claim with shares of the device.
        device: which one.
        room: what all its shares may have together.
        prepared: the claims of the node. If a former record of this claim is among them, and it takes no more than by
            that, it fits: there was room for it, and nobody has got it since.

    Raises:
        CapacityError: names all claims that hold the device, and what.
    """
    uuid = device.uuid
    former = prepared.get(planned.uid)
    if former is not None and _takes_no_more(planned, former, uuid):
        return
    # What claims hold, and not what they were narrowed to: they may be given that back at any time.
    here = [
        (claim, one)
        for claim in (planned, *prepared.values())
        if uuid in claim.shared_devices
        if claim is planned or claim.uid != planned.uid
        for one in claim.devices
        if one.limits is not None and one.limits.device_uuid == uuid
    ]
    holders = [(claim, one.holds()) for claim, one in here]
    others = {claim.uid for claim, _ in here if claim is not planned}
    memory_bytes = sum(held.memory_bytes for _, held in holders)
    if memory_bytes > room.memory_bytes:
        found = _found(holders, lambda held: held.memory_bytes, format_bytes)
        raise CapacityError(
            f"{device.name}: memory: found {found}, expected at most {format_bytes(room.memory_bytes)}", others
        )
    cores = sum(held.cores_percent for _, held in holders)
    if cores > room.cores:
        found = _found(holders, lambda held: held.cores_percent, str)
        raise CapacityError(f"{device.name}: cores: found {found}, expected at most {room.cores}", others)
    _check_that_nobody_is_beside_a_whole(planned, device, here)


def _check_that_nobody_is_beside_a_whole(
    planned: PreparedClaim, device: Device, here: list[tuple[PreparedClaim, PreparedDevice]]
) -> None:
    """Refuse a neighbour of a claim without the library: there is room for one if more is offered than at its time."""
    alone = next((claim for claim, one in here if one.holds().whole), None)
    if alone is not None and len(here) > 1:
        others = ", ".join(sorted({str(claim) for claim, _ in here if claim is not alone})) or "itself"
        raise CapacityError(
            f"{device.name}: found all of it given to {alone}, expected no share for {others} beside it",
            {claim.uid for claim, _ in here if claim is not planned},
        )


def _takes_no_more(planned: PreparedClaim, former: PreparedClaim, uuid: str) -> bool:
    now, before = _holds(planned, uuid), _holds(former, uuid)
    return sum(one.memory_bytes for one in now) <= sum(one.memory_bytes for one in before) and (
        sum(one.cores_percent for one in now) <= sum(one.cores_percent for one in before)
    )


def _holds(claim: PreparedClaim, uuid: str) -> list[Held]:
    """Return what the shares of a claim hold of a device."""
    return [one.holds() for one in claim.devices if one.limits is not None and one.limits.device_uuid == uuid]


def _found(
    holders: Iterable[tuple[PreparedClaim, Held]], amount: Callable[[Held], int], show: Callable[[int], str]
) -> str:
    by_claim: dict[str, int] = {}
    for claim, held in holders:
        by_claim[str(claim)] = by_claim.get(str(claim), 0) + amount(held)
    return " and ".join(f"{show(value)} for {claim}" for claim, value in by_claim.items())
