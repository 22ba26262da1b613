"""Decides what a claim gets: a pure function of the claim, the node's devices and what is prepared already.

Called by preparing. Rules: only results of our driver; limits follow the device by UUID and the result by its place
in the allocation; a share never gets more than was allocated to its claim, nor all claims together more than the
device has; what is not said never means unlimited.
"""

from dataclasses import replace

from api import names
from api.allotments import class_config, consumed, given_whole, narrowed, vgpu_config
from api.claims import AllocationResult, ClaimView
from api.errors import CapacityError, ClaimError
from api.nodeinventory import OfferedRoom
from api.quantities import format_bytes
from api.slots import gpu_of, parse_slot
from api.vgpuconfig import Overuse, Policy, VGPUConfig
from kubeletplugin.claims.fitting import check_parts, check_room
from kubeletplugin.hardware.devices import Device
from kubeletplugin.hardware.nodeviews import NodeView
from kubeletplugin.state.ledgers import Prepared
from kubeletplugin.state.preparedclaims import Bounds, Held, PreparedClaim, PreparedDevice
from libvgpu.shares import Limits


def plan(claim: ClaimView, node: NodeView, prepared: Prepared) -> PreparedClaim:
    """Decide what a claim gets.

    Args:
        claim: as the API server has it.
        node: this node.
        prepared: the claims of the node. A former record of this claim among them counts for nothing but itself: what
            it was given of a device of which more was offered then stays its own, whatever is offered now.

    Raises:
        ClaimError: the allocation cannot be served by this node as it stands, or the parameters ask for more than it.
        ConfigError: the parameters are not valid.
        CapacityError: a device would be promised twice; both claims are named.
    """
    former = prepared.get(claim.uid)
    planned = PreparedClaim(
        uid=claim.uid,
        namespace=claim.namespace,
        name=claim.name,
        devices=tuple(_plan_device(claim, result, node, former) for result in _our_results(claim, node)),
        pods=claim.pods,
    )
    for uuid in {limits.device_uuid for limits in planned.shares()}:
        device = node.devices.find(names.device_name(uuid), str(claim))
        planned = _fitted(planned, device, node.room(device), prepared)
    check_parts(planned, prepared)
    return planned


def _fitted(planned: PreparedClaim, device: Device, room: OfferedRoom, prepared: Prepared) -> PreparedClaim:
    """Return a claim that there is room for on a device: as it was allocated, or as it narrows itself.

    A scheduler that knows less than the API server gives out a whole GPU beside parts of it. Who wants no more than is
    left gets that, and holds no more: it cannot be given the rest back.
    """
    try:
        check_room(planned, device, room, prepared)
    except CapacityError as error:
        narrow = replace(planned, devices=tuple(_holding_its_limits(one, device) for one in planned.devices))
        try:
            check_room(narrow, device, room, prepared)
        except CapacityError:
            raise error from None
        return narrow
    return planned


def _holding_its_limits(one: PreparedDevice, device: Device) -> PreparedDevice:
    limits, held = one.limits, one.held
    if limits is None or held is None or held.whole or limits.device_uuid != device.uuid:
        return one
    return replace(one, held=replace(held, memory_bytes=limits.memory_bytes, cores_percent=limits.cores_percent))


def kept(claim: ClaimView, node: NodeView, prepared: Prepared) -> PreparedClaim | None:
    """Return the record of a claim that a newer release prepared in its own way, as long as it has that allocation.

    After a step back to this release such a share goes on as it is, until its claim ends. None: decide anew.

    Raises:
        ClaimError: the allocation cannot be served by this node.
    """
    former = prepared.get(claim.uid)
    if former is None or not former.is_of_newer_release:
        return None
    results = _our_results(claim, node)
    same = len(results) == len(former.devices) and all(
        _is_recorded(claim, result, one, node) for result, one in zip(results, former.devices, strict=True)
    )
    return former if same else None


def _is_recorded(claim: ClaimView, result: AllocationResult, one: PreparedDevice, node: NodeView) -> bool:
    """Return whether a result of an allocation is the one that was prepared."""
    if not _is_of(result, one):
        return False
    if one.held is None or one.is_part:
        return True
    device = node.devices.find(gpu_of(result.device), str(claim))
    allocated = _allocated(claim, result, device, node.room(device))
    return allocated == (one.held.memory_bytes, one.held.cores_percent)


def _is_of(result: AllocationResult, one: PreparedDevice) -> bool:
    """Return whether a device was prepared for this result, and not for one of an earlier allocation."""
    recorded = (one.index, one.request, one.pool, one.device, one.share_id)
    return recorded == (result.index, result.request, result.pool, result.device, result.share_id)


def _our_results(claim: ClaimView, node: NodeView) -> list[AllocationResult]:
    if claim.allocation is None:
        raise ClaimError(f"{claim}: found no allocation, expected one with devices of driver {node.driver_name}")
    ours = [result for result in claim.allocation.results if result.driver == node.driver_name]
    if not ours:
        drivers = ", ".join(sorted({result.driver for result in claim.allocation.results})) or "none"
        raise ClaimError(f"{claim}: found devices of driver {drivers}, expected devices of driver {node.driver_name}")
    for result in ours:
        if result.pool != node.pool:
            raise ClaimError(f"{claim}: found device {result.device} of pool {result.pool}, expected pool {node.pool}")
    return ours


def _plan_device(
    claim: ClaimView, result: AllocationResult, node: NodeView, former: PreparedClaim | None
) -> PreparedDevice:
    device = node.devices.find(gpu_of(result.device), str(claim))
    before = next((one for one in former.devices if _is_of(result, one)), None) if former else None
    if before is None and not device.offered:
        raise ClaimError(f"{claim}: request {result.request}: device {device.name} is not offered: {device.reason}")
    planned = PreparedDevice(
        index=result.index,
        request=result.request,
        pool=result.pool,
        device=names.DeviceName(result.device),
        share_id=result.share_id,
    )
    if result.admin_access:
        return planned
    if device.type == names.DEVICE_TYPE_MIG and result.device == device.name:
        return replace(planned, held=Held(device.memory_bytes, names.CORES_PER_DEVICE, whole=True))
    if before is None and not device.shareable:  # who holds it keeps it
        where = f"{claim}: request {result.request}"
        raise ClaimError(f"{where}: device {device.name} cannot be shared: {device.reason}")
    room = node.room(device)
    if before is not None:
        room = room.model_copy(update={"memory_bytes": max(room.memory_bytes, before.holds().memory_bytes)})
    memory_bytes, cores = _allocated(claim, result, device, room)
    limits = _plan_limits(claim, result, device, room)
    whole = _takes_all(claim, result, node, Held(memory_bytes, cores))
    held = Held(memory_bytes, cores, whole, _bounds(claim, result, node.driver_name))
    return _keeping(replace(planned, limits=limits, held=held), before)


def _keeping(planned: PreparedDevice, before: PreparedDevice | None) -> PreparedDevice:
    """Return a share with what it was promised when it was prepared first: what is offered now is for new ones."""
    if before is None or before.limits is None or planned.limits is None or planned.held is None:
        return planned
    limits = replace(
        planned.limits,
        oversubscribe=planned.limits.oversubscribe or before.limits.oversubscribe,
        host_memory_bytes=max(planned.limits.host_memory_bytes, before.limits.host_memory_bytes),
    )
    # Its containers run with the library or without it already.
    return replace(planned, limits=limits, held=replace(planned.held, whole=before.holds().whole))


def _takes_all(claim: ClaimView, result: AllocationResult, node: NodeView, held: Held) -> bool:
    """Return whether a claim was given all of a GPU, and says nothing that has to be enforced on it."""
    device = node.devices.find(gpu_of(result.device), str(claim))
    if parse_slot(result.device) or device.name in node.offers:
        return False  # a part of it; or all that there is, with others beside it that were promised more
    if not result.consumed and node.offer_mode != names.OFFER_MODE_COUNTERS:
        return False  # an API server or a scheduler may have dropped what was asked, and what was consumed
    all_memory_bytes = device.memory_bytes - device.memory_bytes % names.MEMORY_STEP_BYTES
    if held.memory_bytes < all_memory_bytes or held.cores_percent < names.CORES_PER_DEVICE:
        return False
    assert claim.allocation is not None
    config = vgpu_config(claim.allocation.configs, result.request, node.driver_name, str(claim))
    nothing_said = (config.memory, config.cores, config.policy) == (None, None, None)
    return nothing_said and config.overuse is Overuse.REPORT


def _bounds(claim: ClaimView, result: AllocationResult, driver_name: str) -> Bounds:
    assert claim.allocation is not None
    said = class_config(claim.allocation.configs, result.request, driver_name, str(claim))
    return Bounds(said.memory, said.cores, said.most_priority)


def _plan_limits(claim: ClaimView, result: AllocationResult, device: Device, room: OfferedRoom) -> Limits:
    config, memory_bytes, narrow = narrowed(claim, result, *_allocated(claim, result, device, room))
    cores, ceiling, policy = _compute_share(narrow, config)
    return Limits(
        share=names.share_name(claim.uid, result.index),
        device_uuid=device.uuid,
        memory_bytes=memory_bytes,
        cores_percent=cores,
        ceiling_percent=ceiling,
        policy=policy,
        priority=config.priority,
        kill_overuse=config.overuse is Overuse.KILL,
        oversubscribe=room.memory_bytes > device.memory_bytes,
        # Of what is offered above the device, each share answers for its part.
        host_memory_bytes=memory_bytes * (room.memory_bytes - device.memory_bytes) // max(room.memory_bytes, 1),
    )


def _allocated(claim: ClaimView, result: AllocationResult, device: Device, room: OfferedRoom) -> tuple[int, int]:
    """Return the bytes and percent that were allocated, of a device with so much room for all its shares."""
    where = f"{claim}: request {result.request}"
    slot = parse_slot(result.device)
    if slot is not None:
        # Of a fixed size, which stands in its name; whatever else the result says must not make it larger.
        if slot.memory_bytes > room.memory_bytes:
            raise ClaimError(
                f"{where}: memory of {result.device}: found {format_bytes(slot.memory_bytes)}, expected at most the "
                f"{format_bytes(room.memory_bytes)} of {device.name}"
            )
        return slot.memory_bytes, slot.cores_percent
    if not result.consumed and result.share_id is None:
        return given_whole(claim, result, device.name, device.memory_bytes)
    memory_bytes, cores = consumed(claim, result)
    if not 0 < memory_bytes <= room.memory_bytes:
        raise ClaimError(
            f"{where}: consumedCapacity of {names.CAPACITY_MEMORY}: found {format_bytes(memory_bytes)}, expected "
            f"above 0 and at most the {format_bytes(room.memory_bytes)} of {device.name}"
        )
    if cores > names.CORES_PER_DEVICE:
        raise ClaimError(
            f"{where}: consumedCapacity of {names.CAPACITY_CORES}: found {cores}, expected at most "
            f"{names.CORES_PER_DEVICE}"
        )
    return memory_bytes, cores


def _compute_share(cores: int, config: VGPUConfig) -> tuple[int, int, Policy]:
    """Return guaranteed percent, ceiling and policy."""
    if cores == 0:
        # Idle time only; `cores` can say how much of it at most.
        return 0, config.cores or names.CORES_PER_DEVICE, Policy.BURST
    if config.policy is Policy.BURST:
        return cores, names.CORES_PER_DEVICE, Policy.BURST
    return cores, cores, Policy.FIXED
