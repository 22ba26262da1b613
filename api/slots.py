"""Names of slots: devices of a fixed size that are a part of a GPU, offered where a claim cannot say how much it takes.

An allocation of such a device carries no amounts, only the device's name; so the size stands in the name. The
controller makes the names, the node agent limits the share by them, with no need to ask anybody what the name stood
for when it was allocated. A name never changes its meaning: another size is another device.
"""

import functools
import re
from dataclasses import dataclass

from api import names
from api.errors import ConfigError
from api.names import DeviceName

MAX_INDEX = 63
MAX_MEMORY_STEPS = 9_999_999
"""Of memory in steps of 1 MiB: 9.5 TiB. With this a name fits into a DNS label for any UUID of 36 characters."""

_MAX_NAME = 63
"""Characters in a device name: a DNS label."""
_SLOT = re.compile(
    r"(?P<gpu>[a-z0-9][-a-z0-9]*)-slot-(?P<memory>[1-9]\d{0,6})m-(?P<cores>0|[1-9]\d{0,2})c-(?P<index>0|[1-9]\d?)"
)


@dataclass(frozen=True)
class Slot:
    """A part of a GPU of a fixed size."""

    gpu: str
    """Name of the GPU that it is a part of."""
    memory_bytes: int
    """A multiple of names.MEMORY_STEP_BYTES."""
    cores_percent: int
    """Guaranteed percent of the GPU's time; 0: idle time only."""
    index: int
    """Tells slots of one GPU and size apart."""

    @property
    def name(self) -> str:
        """Name of the device, such as `gpu-5c1f...-slot-8192m-25c-0`.

        Raises:
            ConfigError: a part of it is out of its range, or the whole is no DNS label.
        """
        name = self._spelled()
        if not self.has_name():
            raise ConfigError(
                f"slot of {self.gpu}: found {self.memory_bytes} bytes, {self.cores_percent} cores, index {self.index} "
                f"({name}), expected whole MiB up to {MAX_MEMORY_STEPS}, at most {names.CORES_PER_DEVICE} cores, an "
                f"index of at most {MAX_INDEX}, and a name of at most {_MAX_NAME} characters"
            )
        return name

    def has_name(self) -> bool:
        """Say whether there is a name for it: of a GPU with a long name, or an absurd size, there is none."""
        name = self._spelled()
        return len(name) <= _MAX_NAME and parse_slot(name) == self

    def _spelled(self) -> str:
        return f"{self.gpu}-slot-{self.memory_bytes // names.MEMORY_STEP_BYTES}m-{self.cores_percent}c-{self.index}"


@functools.lru_cache(maxsize=4096)  # a node prepares, and a controller counts, the same devices again and again
def parse_slot(name: str) -> Slot | None:
    """Return the slot that a device's name stands for; None: the name is not that of a slot."""
    match = _SLOT.fullmatch(name) if name.isascii() else None
    if match is None:
        return None
    slot = Slot(
        gpu=match["gpu"],
        memory_bytes=int(match["memory"]) * names.MEMORY_STEP_BYTES,
        cores_percent=int(match["cores"]),
        index=int(match["index"]),
    )
    return slot if slot.cores_percent <= names.CORES_PER_DEVICE and slot.index <= MAX_INDEX else None


def gpu_of(name: str) -> DeviceName:
    """Return the name of the GPU that a device is, or is a slot of."""
    slot = parse_slot(name)
    return DeviceName(slot.gpu if slot else name)
