"""GPU time of processes as NVML counts it. Used by `nvidia`.

Source: NVML API reference, nvmlDeviceGetProcessUtilization: the percent of time in which a process had kernels on the
device, on average since the time stamp of the call before.
"""

import time

from typing_extensions import override

from api.errors import StateError
from kubeletplugin.hardware.gputimes import GpuTimes, GpuTimeSource
from kubeletplugin.hardware.nvml import NvmlSession, pynvml

_LONGEST_US = 2_000_000
"""A driver keeps its samples no longer than a few seconds."""


class NvmlGpuTimes(GpuTimeSource):
    """Asks NVML."""

    def __init__(self, session: NvmlSession) -> None:
        """Take an NVML that somebody else opens and closes."""
        self._session = session
        self._seen_us: dict[str, int] = {}

    @override
    def read(self, device_uuid: str) -> GpuTimes | None:
        now_us, behind_s = time.time_ns() // 1000, time.time() - time.monotonic()
        seen_us = self._seen_us.get(device_uuid, 0)
        if not 0 <= now_us - seen_us <= _LONGEST_US:
            self._seen_us[device_uuid] = now_us
            return None
        try:
            with self._session.using():
                handle = pynvml.nvmlDeviceGetHandleByUUID(device_uuid)
                samples = pynvml.nvmlDeviceGetProcessUtilization(handle, seen_us)
        except pynvml.NVMLError_NotFound:
            samples = []  # nobody had the device, or nothing is new yet: the next span begins where this one did
        except (StateError, pynvml.NVMLError):
            return None
        to_us = max((int(sample.timeStamp) for sample in samples), default=0)
        if to_us <= seen_us:
            return None
        self._seen_us[device_uuid] = to_us
        passed_s = (to_us - seen_us) / 1e6
        seconds = {int(one.pid): one.smUtil / 100 * passed_s for one in samples}
        return GpuTimes(seen_us / 1e6 - behind_s, to_us / 1e6 - behind_s, seconds)
