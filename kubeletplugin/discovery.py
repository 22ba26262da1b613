"""What a vendor must bring to be served by the node agent: a discovery backend.

Called by the agent at start and at each heartbeat. `kubeletplugin.nvidia` is the first; others stand beside it.
"""

from abc import ABC, abstractmethod

from typing_extensions import override

from kubeletplugin.devices import Discovery


class DiscoveryBackend(ABC):
    """Finds the devices of one vendor on this node."""

    @abstractmethod
    def discover(self) -> Discovery:
        """Look at the node anew.

        Never drops a device silently: one that cannot be used is returned with its reason, and what cannot even be
        listed is told in `message`.

        Raises:
            StateError: there is no driver, or it cannot be used at all.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what `discover` holds of the driver; safe to call twice."""


class FakeDiscovery(DiscoveryBackend):
    """Devices that a test sets."""

    def __init__(self, found: Discovery) -> None:
        self.found: Discovery | Exception = found
        """What the next call returns or raises."""
        self.closed = False

    @override
    def discover(self) -> Discovery:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    @override
    def close(self) -> None:
        self.closed = True
