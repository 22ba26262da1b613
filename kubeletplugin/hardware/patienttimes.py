"""GPU times of a driver that may hang: asked in threads of their own, and waited for only a moment.

Wraps the times of a backend, for the steering of the node agent and of `dra-driver run`. What is granted to a share
must follow its neighbours also while the driver does not say what they used. A thread for each device: one that does
not answer must not keep the others' times.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from typing_extensions import override

from kubeletplugin.hardware.gputimes import GpuTimes, GpuTimeSource

_log = logging.getLogger(__name__)
_PATIENCE_S = 0.02
"""An answer mostly takes a millisecond or two. One that comes later is taken at the next call."""
_HANGS_S = 5.0
"""Without an answer for so long: worth a word."""


@dataclass
class _Device:
    """Who asks for one device. A question is just that; None: no more of them."""

    questions: queue.SimpleQueue[bool] = field(default_factory=queue.SimpleQueue)
    answers: queue.SimpleQueue[GpuTimes | None] = field(default_factory=queue.SimpleQueue)
    asked_s: float | None = None
    """When the question was put that has no answer yet."""
    hangs: bool = False


class PatientTimes(GpuTimeSource):
    """The times of another source, until close(). To be called from one thread."""

    def __init__(self, source: GpuTimeSource, clock: Callable[[], float] = time.monotonic) -> None:
        """Take whom to ask."""
        self._source = source
        self._clock = clock
        self._devices: dict[str, _Device] = {}

    @override
    def read(self, device_uuid: str) -> GpuTimes | None:
        device = self._devices.get(device_uuid) or self._begin(device_uuid)
        asked_before = device.asked_s is not None
        if not asked_before:
            device.asked_s = self._clock()
            device.questions.put(True)
        try:
            found = device.answers.get(block=not asked_before, timeout=_PATIENCE_S)
        except queue.Empty:
            self._note_silence(device_uuid, device)
            return None
        device.asked_s = None
        if device.hangs:
            device.hangs = False
            _log.info("the driver tells GPU times again", extra={"device": device_uuid})
        return found

    def close(self) -> None:
        """End the threads; one that a driver holds ends when the driver lets go of it, or with the process."""
        for device in self._devices.values():
            device.questions.put(False)
        self._devices.clear()

    def _begin(self, uuid: str) -> _Device:
        device = self._devices[uuid] = _Device()

        def answer() -> None:
            told: set[str] = set()
            while device.questions.get():
                device.answers.put(self._ask(uuid, told))

        threading.Thread(target=answer, name="gpu-times", daemon=True).start()
        return device

    def _ask(self, uuid: str, told: set[str]) -> GpuTimes | None:
        try:
            return self._source.read(uuid)
        except Exception as error:  # noqa: BLE001 - a thread that ended would never answer again
            if repr(error) not in told:
                told.add(repr(error))
                _log.error("GPU times cannot be read", extra={"device": uuid, "error": repr(error)}, exc_info=error)
            return None

    def _note_silence(self, uuid: str, device: _Device) -> None:
        assert device.asked_s is not None
        silent_s = self._clock() - device.asked_s
        if not device.hangs and silent_s > _HANGS_S:
            device.hangs = True
            _log.error("the driver does not tell GPU times: charges are not corrected", extra={"device": uuid})
