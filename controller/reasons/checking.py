"""Is what users and operators wrote readable, and does it mean anything? Pure; `pending` makes events of it.

Said as soon as the object exists, or has its devices: a pod with a typing error in its claim would otherwise be
scheduled and then wait in ContainerCreating for ever.
"""

import re
from collections.abc import Callable

from api.allotments import consumed, given_whole, narrowed
from api.claims import AllocationResult, ClaimView, Object, OpaqueConfig
from api.errors import ConfigError, PermanentError
from api.nodeinventory import NodeInventory
from api.slots import parse_slot
from api.vgpuconfig import MOST_PROBLEMS, parse_config

_UUID = re.compile(r"[a-z-]+-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(/\d+/\d+)?")
"""How names and UUIDs of devices look, in lower case."""
SizeOf = Callable[[str, str], int | None]
"""Returns the bytes of a GPU, by its pool and name; None: it is not known."""


def check_configs(configs: tuple[OpaqueConfig, ...], driver: str, where: str) -> str:
    """Return what is wrong with the parameters for our driver, one line for each problem; empty if nothing is.

    Of very many problems, those of the first parameters: who mends them learns of the others.
    """
    problems: list[str] = []
    for config in configs:
        if config.driver == driver and len(problems) < MOST_PROBLEMS:
            try:
                parse_config(config.parameters, where)
            except ConfigError as error:
                problems += str(error).splitlines()
    return "\n".join(problems)


def check_template(template: Object, driver: str) -> str:
    """Return what is wrong with the claims that a ResourceClaimTemplate would make; empty if nothing is."""
    metadata = template["metadata"]
    where = f"ResourceClaimTemplate {metadata['namespace']}/{metadata['name']}"
    claim = {
        "metadata": {key: metadata.get(key) for key in ("namespace", "name", "uid")},
        "spec": (template.get("spec") or {}).get("spec"),
    }
    try:
        view = ClaimView.from_object(claim)
    except PermanentError as error:
        return str(error).replace("ResourceClaim ", "ResourceClaimTemplate ", 1)
    return check_configs(view.configs, driver, where)


def check_allocated(claim: ClaimView, driver: str, size_of: SizeOf = lambda _pool, _gpu: None) -> str:
    """Return why the node agent will refuse what a claim was allocated; empty: as far as can be told, it will not.

    Args:
        claim: with its allocation.
        driver: ours.
        size_of: of GPUs that were allocated without amounts.
    """
    assert claim.allocation is not None
    problems = []
    for result in claim.allocation.results:
        if result.driver == driver and not result.admin_access:
            try:
                amounts = _allocated(claim, result, size_of)
                if amounts is not None:
                    narrowed(claim, result, *amounts)
            except PermanentError as error:
                problems.append(str(error))
    return "\n".join(problems)


def asks_beside(claim: ClaimView, result: AllocationResult) -> bool:
    """Say whether a claim asks for amounts of a device that it was allocated without any."""
    without = not result.consumed and result.share_id is None and parse_slot(result.device) is None
    return without and bool(claim.asked(result))


def _allocated(claim: ClaimView, result: AllocationResult, size_of: SizeOf) -> tuple[int, int] | None:
    slot = parse_slot(result.device)
    if slot is not None:
        return slot.memory_bytes, slot.cores_percent
    if result.consumed:
        return consumed(claim, result)
    size_bytes = size_of(result.pool, result.device) if asks_beside(claim, result) else None
    return None if size_bytes is None else given_whole(claim, result, result.device, size_bytes)


def check_class(device_class: Object, driver: str) -> str:
    """Return what is wrong with the parameters in a DeviceClass, which all its claims have; empty if nothing is."""
    opaque = [config.get("opaque") or {} for config in (device_class.get("spec") or {}).get("config") or []]
    configs = tuple(OpaqueConfig(one.get("driver", ""), (), one.get("parameters"), from_class=True) for one in opaque)
    return check_configs(configs, driver, f"DeviceClass {device_class['metadata']['name']}")


def check_cordons(inventory: NodeInventory) -> str:
    """Return which cordons of a node keep nobody away from anything, and never did; empty if there are none.

    The cordon of a device that is gone, or whose node has not looked yet, is kept for when it comes back.
    """
    devices = inventory.status.devices if inventory.status else []
    known = {name.lower() for facts in devices for name in (facts.name, facts.uuid)}
    there = ", ".join(facts.name for facts in devices) or "none"
    return "\n".join(
        f"NodeInventory {inventory.node_name}: spec.cordonedDevices: found {name!r}, "
        f"expected names or UUIDs of devices; the node has {there}"
        for name in inventory.spec.cordoned_devices
        if name.lower() not in known and not _UUID.fullmatch(name.lower())
    )
