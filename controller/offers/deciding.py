"""What to do with a node's pool, by what is known of the node and its agent. Used by `keeping` and `caching`."""

import enum
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from api.nodeinventory import InventoryStatus

HEARTBEAT_LIMIT_S = 60.0
"""An agent whose heartbeat is older is taken for dead."""


class Action(enum.Enum):
    """What to do with a node's pool."""

    PUBLISH = "publish"
    KEEP = "keep"
    """Leave it as it is: the agent is not there to say anything, or not to us."""
    WITHDRAW = "withdraw"


@dataclass(frozen=True)
class NodeState:
    """What is known of a node when its pool is decided on."""

    node_uid: str | None
    """None: there is no such Node."""
    has_inventory: bool
    inventory: InventoryStatus | None
    """None: no inventory, or its agent has not looked yet."""
    heartbeat_age_s: float = 0.0
    created_under: datetime | None = None
    """Heartbeat that was the agent's last when slices were last created."""
    owners: frozenset[str] = frozenset()
    """UIDs of the Nodes that own the stored slices."""

    def is_of_another_node(self) -> bool:
        """Say whether what the inventory states is of a Node that had the name before."""
        return self.inventory is not None and self.inventory.node_uid != self.node_uid


def decide(state: NodeState, driver: str) -> Action:
    """Say what to do with a node's pool.

    A Node that was deleted and registered again is another one, maybe another machine with other GPUs: of what was
    stated or offered for the one before it, nothing is on offer.
    """
    if state.node_uid is None or not state.has_inventory:
        return Action.WITHDRAW
    action = _by_inventory(state, driver)
    if action is Action.KEEP and state.owners - {state.node_uid}:
        return Action.WITHDRAW
    return action


def _by_inventory(state: NodeState, driver: str) -> Action:
    """Say what to do by what the agent states.

    The kubelet removes the slices of a driver that it lost, 30 s after the connection broke; by its heartbeat the
    agent looks alive for some seconds more. What is created in that time is withdrawn again if no further heartbeat
    comes.
    """
    if state.inventory is None or state.inventory.driver_name != driver:
        return Action.KEEP
    if state.is_of_another_node():
        return Action.WITHDRAW
    if state.heartbeat_age_s <= HEARTBEAT_LIMIT_S:
        return Action.PUBLISH
    return Action.WITHDRAW if state.created_under == state.inventory.heartbeat_time else Action.KEEP


@dataclass
class Pulse:
    """When heartbeats were seen to change, so that a node whose clock is wrong is not taken for dead, or for alive."""

    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _seen: dict[str, tuple[datetime, float, bool]] = field(default_factory=dict)
    """By node: its last heartbeat, when that was noted, and whether it was seen to come (the first one was not)."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, node: str, heartbeat: datetime | None) -> None:
        """Take over a node's heartbeat; None: the node is gone."""
        with self._lock:
            before = self._seen.get(node)
            if heartbeat is None:
                self._seen.pop(node, None)
            elif before is None or before[0] != heartbeat:
                self._seen[node] = (heartbeat, self.clock(), before is not None)

    def age_s(self, node: str) -> float:
        """Return the age of a node's last heartbeat: by the own clock if it was seen to come, else by what it says."""
        with self._lock:
            seen = self._seen.get(node)
        if seen is None:
            return float("inf")
        heartbeat, noted_at, came = seen
        age_s = self.clock() - noted_at
        return age_s if came else max((self.now() - heartbeat).total_seconds(), age_s)
