"""Which GPUs of a node reach each other over NVLink: the islands that claims for several GPUs can ask for.

`nvlinks` is asked by the NVIDIA backend of each GPU, `islands` by the inventory of all of them. Source: NVML API
reference, "NvLink Methods": a link's remote end is another GPU, or a switch that others are behind as well.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pynvml

from kubeletplugin.hardware.devices import Device
from kubeletplugin.hardware.nvml import MAX_NVLINKS, ask


def nvlinks(handle: Any, bus_id: Callable[[Any], str]) -> frozenset[str]:
    """Return the PCI addresses of what a GPU's active links lead to; empty where it has none, or cannot say.

    Args:
        handle: of the GPU.
        bus_id: turns NVML's PCI information into an address.
    """
    found = set()
    for link in range(MAX_NVLINKS):
        active = ask(pynvml.nvmlDeviceGetNvLinkState, handle, link)
        if active is None:
            break
        remote = ask(pynvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link) if active else None
        if remote is not None:
            found.add(bus_id(remote))
    return frozenset(found - {""})


def islands(devices: Iterable[Device]) -> Mapping[str, str]:
    """Return the island of each device that links to another one, by device name.

    An island is called after the least UUID in it, so that no two of a cluster have one name.
    """
    linked = [device for device in devices if device.links]
    group = {device.name: {device.pci_bus_id, *device.links} - {""} for device in linked}
    members = {device.name: {device} for device in linked}
    for device in linked:
        touching = {id(each): each for name, each in group.items() if each & group[device.name]}
        ends = set().union(*touching.values())
        mates = set().union(*(members[name] for name, each in group.items() if id(each) in touching))
        for mate in mates:
            group[mate.name], members[mate.name] = ends, mates
    return {name: min(mate.uuid for mate in mates) for name, mates in members.items() if len(mates) > 1}
