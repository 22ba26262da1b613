"""States what was discovered in the node's NodeInventory object. Called by the agent at each heartbeat.

Facts only: what is offered, and to whom, is the controller's business. Writes what changed, which is mostly the
heartbeat alone.
"""

import contextlib
import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from api import kube
from api.errors import ConflictError, NotFoundError, StateError
from api.kube import KubeClient
from api.names import ClaimUID
from api.nodeinventory import DeviceFacts, InventoryStatus, NodeInventory, OfferedRoom, to_object
from kubeletplugin.files import read_if_there, write_atomically
from kubeletplugin.hardware.devices import Device, Discovery
from kubeletplugin.hardware.linkislands import islands

_log = logging.getLogger(__name__)
_HEARTBEAT = "heartbeatTime"
_NODE_UID = "nodeUID"
_DRIVER_NAME = "driverName"
_LIVE_S = 120.0
"""After which the agent of another driver counts as gone: some heartbeats."""
_FOLLOWED = "followedClaims"
OFFERS_FILE = "offers.json"
"""In the state folder."""


class InventoryWriter:
    """Keeps one node's inventory up to date."""

    def __init__(
        self, client: KubeClient, node_name: str, driver_name: str, agent_version: str, offers_file: Path
    ) -> None:
        """Take where to write, of whom, and the file that remembers what is offered."""
        self._client = client
        self._node_name = node_name
        self._driver_name = driver_name
        self._agent_version = agent_version
        self._node_uid = ""
        self._has_written = False
        self._stored: Mapping[str, Any] | None = None
        """Status as the API server has it; None: not known."""
        self.offer_mode = ""
        """How the controller offers the node's devices, as of the last write; empty: not known."""
        self.followed: Mapping[ClaimUID, str] | None = None
        """Claims that can change while they are prepared, with digests, as the controller told by the last write; None:
        it did not tell."""
        self._offers_file = offers_file
        self.offers: Mapping[str, OfferedRoom] = _read_offers(offers_file)
        """Devices of which the controller offers more than they have, as of the last write; kept over restarts."""
        self._kept_offers = self.offers

    def write(self, found: Discovery, now: datetime | None = None) -> None:
        """State what was found, as of now.

        Raises:
            KubeError: the API server did not take it; the next call tries again with everything.
            StateError: another driver is at work on the node.
        """
        self._write(found, now or datetime.now(UTC))
        if self._stored is not None and self._stored.get(_NODE_UID) != self._node_uid:
            # By the controller: the Node was deleted and registered anew under this agent, with another UID.
            self._node_uid = ""
            self._write(found, now or datetime.now(UTC))

    def _write(self, found: Discovery, now: datetime) -> None:
        if not self._node_uid:
            self._node_uid = self._client.get(kube.NODES, self._node_name)["metadata"]["uid"]
        found_islands = islands(found.devices)
        status = InventoryStatus(
            node_uid=self._node_uid,
            driver_name=self._driver_name,
            agent_version=self._agent_version,
            heartbeat_time=now,
            devices=[_facts(device, found_islands.get(device.name, "")) for device in found.devices],
            message=found.message,
        )
        wanted = to_object(self._node_name, status)
        known, self._stored = self._stored, None
        if known is None or known.get(_DRIVER_NAME) != self._driver_name:
            self._check_driver(wanted, now)
        try:
            stored = self._patch(wanted, known)
        except NotFoundError:
            stored = self._create(wanted)
        # What somebody else wrote into it is overwritten the next time.
        self._stored = stored.get("status")
        with contextlib.suppress(StateError):  # by somebody else, or by a version to come
            read = NodeInventory.from_object(stored).status
            self.offer_mode = (read.offer_mode if read else None) or ""
            claims = read.followed_claims if read else None
            self.followed = None if claims is None else {ClaimUID(claim.uid): claim.digest for claim in claims}
            self._keep({room.device: room for room in (read.offers if read else None) or ()})

    def _check_driver(self, wanted: Mapping[str, Any], now: datetime) -> None:
        """Leave alone what the agent of another driver on this node writes: two would undo each other's facts for ever.

        Raises:
            StateError: there is one, and it is at work.
        """
        try:
            # A change of nothing: an agent has no right to read inventories, and needs none.
            status = self._client.patch(kube.NODE_INVENTORIES, wanted, {}, "status").get("status") or {}
            driver = status.get(_DRIVER_NAME) or self._driver_name
            age_s = (now - datetime.fromisoformat(status[_HEARTBEAT])).total_seconds()
        except (NotFoundError, KeyError, TypeError, ValueError):
            return  # nobody's, or not the work of an agent
        if driver != self._driver_name and abs(age_s) < _LIVE_S:
            raise StateError(
                f"NodeInventory {self._node_name}: found that of driver {driver}, which is at work on this node, "
                f"expected that of {self._driver_name}: a node has one driver, so keep one off it (nodeSelector)"
            )

    def _keep(self, offers: Mapping[str, OfferedRoom]) -> None:
        self.offers = offers
        if offers == self._kept_offers:
            return
        content = [room.model_dump(mode="json", by_alias=True) for room in offers.values()]
        try:
            write_atomically(self._offers_file, json.dumps(content).encode(), 0o600)
            self._kept_offers = offers
        except OSError as error:
            # They count as long as this agent lives; stored at a later heartbeat. This one was taken by the API server.
            _log.warning("offers cannot be stored", extra={"path": str(self._offers_file), "error": str(error)})

    def _patch(self, wanted: Mapping[str, Any], known: Mapping[str, Any] | None) -> Mapping[str, Any]:
        status = wanted["status"]
        if not self._has_written:
            # What a controller told the agent before this one may be long out of date; one that tells, tells again.
            status = {**status, _FOLLOWED: None}
        if known is not None:
            status = {key: value for key, value in status.items() if key == _HEARTBEAT or known.get(key) != value}
        stored = self._client.patch(kube.NODE_INVENTORIES, wanted, {"status": status}, "status")
        self._has_written = True
        return stored

    def _create(self, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        # The API server drops the status of an object that is created.
        with contextlib.suppress(ConflictError):  # somebody was quicker
            self._client.create(kube.NODE_INVENTORIES, {key: wanted[key] for key in wanted if key != "status"})
        return self._patch(wanted, None)


def _read_offers(path: Path) -> Mapping[str, OfferedRoom]:
    """Return what was offered before. What cannot be read is known after the first write."""
    try:
        rooms = [OfferedRoom.model_validate(room) for room in json.loads(read_if_there(path) or b"[]")]
    except (OSError, ValueError, TypeError) as error:
        _log.warning("offers are learned again", extra={"path": str(path), "error": str(error)})
        return {}
    return {room.device: room for room in rooms}


def _facts(device: Device, island: str) -> DeviceFacts:
    return DeviceFacts(
        name=device.name,
        uuid=device.uuid,
        vendor=device.vendor,
        product_name=device.product_name,
        memory_bytes=device.memory_bytes,
        index=device.index,
        type=device.type,
        profile=device.profile,
        parent_uuid=device.parent_uuid,
        architecture=device.architecture,
        compute_capability=device.compute_capability,
        driver_version=device.driver_version,
        runtime_version=device.runtime_version,
        pci_bus_id=device.pci_bus_id,
        pcie_root=device.pcie_root,
        numa_node=device.numa_node,
        link_island=island,
        mig_capable=device.mig_capable,
        healthy=device.healthy,
        shareable=device.shareable,
        offered=device.offered,
        health=device.reason,
        remap_pending=device.remap_pending or None,
        pages_pending=device.pages_pending or None,
    )
