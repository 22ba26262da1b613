"""Is what users and operators wrote readable, and does it mean anything? Pure; `pending` makes events of it.

Said as soon as the object exists: a pod with a typing error in its claim would otherwise be scheduled and then wait in
ContainerCreating for ever.
"""

import re

from api.claims import ClaimView, Object, OpaqueConfig
from api.errors import ConfigError, PermanentError
from api.nodeinventory import NodeInventory
from api.vgpuconfig import MOST_PROBLEMS, parse_config

_UUID = re.compile(r"[a-z-]+-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(/\d+/\d+)?")
"""How names and UUIDs of devices look, in lower case."""


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
