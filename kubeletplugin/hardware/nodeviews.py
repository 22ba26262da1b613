"""This node as decisions about claims see it. Made by `discovering`, read by planning.

A view does not change: what is found out later makes another one.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from api import names
from api.nodeinventory import OfferedRoom
from kubeletplugin.hardware.devices import Device, DeviceTable


@dataclass(frozen=True)
class NodeView:
    """This node, as far as a decision needs it."""

    driver_name: str
    pool: str
    """Name of the node's pool of devices."""
    devices: DeviceTable
    offers: Mapping[str, OfferedRoom] = field(default_factory=dict)
    """Devices of which the controller offers more than they have, by name."""
    offer_mode: str = ""
    """How the controller offers the devices; empty: not known."""

    def room(self, device: Device) -> OfferedRoom:
        """Return how much all shares of a device may have together: what it has, or what is offered above that."""
        room = self._rooms.get(device.name)
        if room is None:
            offered = self.offers.get(device.name)
            room = self._rooms[device.name] = OfferedRoom(
                device=device.name,
                memory_bytes=max(device.memory_bytes, offered.memory_bytes if offered else 0),
                cores=max(names.CORES_PER_DEVICE, offered.cores if offered else 0),
            )
        return room

    @functools.cached_property
    def _rooms(self) -> dict[str, OfferedRoom]:
        """Rooms by device, as far as anybody asked: each claim does, and the view does not change."""
        return {}
