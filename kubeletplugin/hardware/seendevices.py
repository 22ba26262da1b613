"""What an agent saw of NVIDIA devices since the boot, for the agent that comes after it: GPUs, and links that were up.

Called by the NVIDIA backend. A GPU that fell off the bus and a link that went down can be told only by who knows that
they were there; a new agent asks a driver that no longer lists them. Another boot begins anew: hardware may have been
taken out.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from kubeletplugin.files import read_if_there, write_atomically
from kubeletplugin.hardware.devices import Device
from kubeletplugin.hardware.faultfiles import boot_id

_log = logging.getLogger(__name__)

SEEN_FILE = "seen.json"


@dataclass(frozen=True)
class _Seen:
    boot: str
    devices: tuple[Device, ...] = ()
    links: Mapping[str, tuple[int, ...]] | None = None
    """Numbers of the NVLinks that were up, by UUID."""


_FORM = TypeAdapter(_Seen)


class SeenDevices:
    """What was seen since the boot; where the disk does not take it, it is known as long as we live."""

    def __init__(self, file: Path | None) -> None:
        """Take the file; None: nothing outlives this agent."""
        self._file = file
        seen = self._read()
        self.devices: Mapping[str, Device] = {device.uuid: device for device in seen.devices}
        """Those of the last look, by UUID, also those that were missed at it."""
        self._links = {uuid: frozenset(numbers) for uuid, numbers in (seen.links or {}).items()}
        self._stored = b""

    def links(self, uuid: str) -> frozenset[int]:
        """Return the numbers of the NVLinks of a device that were up."""
        return self._links.get(uuid, frozenset())

    def note(self, devices: Iterable[Device], links: Mapping[str, Iterable[int]]) -> None:
        """Remember the devices of a look, and the links that were up in this or an earlier one, by UUID."""
        self.devices = {device.uuid: device for device in devices}
        self._links = {uuid: frozenset(numbers) for uuid, numbers in links.items()}
        if self._file is None:
            return
        try:
            sorted_links = {uuid: tuple(sorted(numbers)) for uuid, numbers in sorted(self._links.items()) if numbers}
            content = _FORM.dump_json(_Seen(boot_id(), tuple(self.devices.values()), sorted_links))
            if content != self._stored:
                write_atomically(self._file, content, 0o600)
                self._stored = content
        except OSError as error:
            _log.warning("devices that were seen cannot be stored", extra=self._facts(error))

    def _read(self) -> _Seen:
        try:
            content = read_if_there(self._file) if self._file is not None else None
            if content is not None:
                seen = _FORM.validate_json(content)
                if seen.boot == boot_id():
                    return seen
        except (OSError, ValidationError) as error:
            _log.warning(
                "devices that were seen cannot be read: they are known when they answer", extra=self._facts(error)
            )
        return _Seen("")

    def _facts(self, error: Exception) -> dict[str, str]:
        return {"file": str(self._file), "error": str(error)}
