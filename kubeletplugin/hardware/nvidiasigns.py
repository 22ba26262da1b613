"""Signs of health that NVML tells when it is asked: read at each discovery, judged against what was seen before.

Called by the NVIDIA backend. Source: NVML API reference (row remapping, retired pages, clocks event reasons, NVLink,
field values).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kubeletplugin.hardware.devices import MemoryRepairs
from kubeletplugin.hardware.nvml import MAX_NVLINKS, ask, pynvml

_THERMAL_LOOKS = 3
"""Looks in a row with a slowdown before the device counts as too hot: a moment of it is everyday life."""
_RECOVERY_FIELD = getattr(pynvml, "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", None)
_RECOVERY_ACTIONS = {
    pynvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET: "a reset of the device",
    pynvml.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT: "a reboot of the node",
    pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET: "the device to be drained and reset",
}
_NO_ACTION = pynvml.NVML_GPU_RECOVERY_ACTION_NONE


@dataclass(frozen=True)
class Signs:
    """What a device says of its health. None: it does not say."""

    remap_failed: bool = False
    remap_pending: bool = False
    """Rows are remapped at the next reset."""
    pages_pending: bool = False
    """Pages are retired at the next reset."""
    too_hot: bool = False
    """Its clocks are held down by its temperature."""
    recovery_action: int | None = None
    links: tuple[bool, ...] = ()
    """Which NVLinks are up."""
    ecc_uncorrected: int | None = None


def read_signs(handle: Any) -> Signs:
    """Ask NVML about one device."""
    remapped = ask(pynvml.nvmlDeviceGetRemappedRows, handle) or (0, 0, 0, 0)
    reasons = ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle) or 0
    return Signs(
        remap_failed=bool(remapped[3]),
        remap_pending=bool(remapped[2]),
        pages_pending=bool(ask(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)),
        too_hot=bool(reasons & pynvml.nvmlClocksEventReasonHwThermalSlowdown),
        recovery_action=_recovery_action(handle),
        links=_links(handle),
        ecc_uncorrected=read_ecc(handle),
    )


def read_repairs(handle: Any) -> MemoryRepairs | None:
    """Return how the device has mended its memory; None: it does neither remap rows nor retire pages."""
    rows = ask(pynvml.nvmlDeviceGetRemappedRows, handle)
    pages = ask(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)
    if rows is None and pages is None:
        return None
    corrected, uncorrected, waiting, failed = rows or (0, 0, 0, 0)
    return MemoryRepairs(int(corrected), int(uncorrected), bool(waiting), bool(failed), bool(pages))


def read_ecc(handle: Any) -> int | None:
    """Return the memory errors that could not be corrected since the driver was loaded."""
    counted: int | None = ask(
        pynvml.nvmlDeviceGetTotalEccErrors,
        handle,
        pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
        pynvml.NVML_VOLATILE_ECC,
    )
    return counted


class Judge:
    """Judges the signs of one device, look by look."""

    def __init__(self, links_seen: Iterable[int] = ()) -> None:
        """Take the NVLinks that were up before, by number."""
        self._hot_looks = 0
        self.links_seen = set(links_seen)

    def judge(self, signs: Signs) -> str:
        """Return why the device is unfit, empty if it is not."""
        self._hot_looks = self._hot_looks + 1 if signs.too_hot else 0
        up = {number for number, link in enumerate(signs.links) if link}
        self.links_seen |= up
        down = sorted(self.links_seen - up)
        problems = (
            ("remapping a row of its memory failed", signs.remap_failed),
            (f"the driver asks for {_RECOVERY_ACTIONS.get(signs.recovery_action)}", needs_recovery(signs)),
            ("its temperature holds its clocks down", self._hot_looks >= _THERMAL_LOOKS),
            (f"NVLink {', '.join(str(link) for link in down)} went down", bool(down)),
        )
        return "; ".join(text for text, found in problems if found)


def needs_recovery(signs: Signs) -> bool:
    """Return whether the driver asks for something that ends all work on the device."""
    return signs.recovery_action in _RECOVERY_ACTIONS


def is_settled(signs: Signs) -> bool:
    """Return whether the driver says that nothing needs to be done."""
    return bool(signs.recovery_action == _NO_ACTION)


def _recovery_action(handle: Any) -> int | None:
    if _RECOVERY_FIELD is None:
        return None
    values = ask(pynvml.nvmlDeviceGetFieldValues, handle, [_RECOVERY_FIELD])
    if not values or values[0].nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    return int(values[0].value.uiVal)


def _links(handle: Any) -> tuple[bool, ...]:
    links: list[bool] = []
    for number in range(MAX_NVLINKS):
        state = ask(pynvml.nvmlDeviceGetNvLinkState, handle, number)
        if state is None:
            break  # the device has no more
        links.append(bool(state))
    return tuple(links)
