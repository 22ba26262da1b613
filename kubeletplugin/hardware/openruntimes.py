"""Tells of a node whose container runtime gives GPUs to containers that have no claim for them. Called by the agent.

NVIDIA's container runtime adds all GPUs to a container whose environment asks for them, as images say it by themselves,
or that mounts a volume at a certain place. That container has no share and no library. Source: configuration of the
NVIDIA Container Toolkit.
"""

import logging
import tomllib
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger(__name__)

_HOST = Path("/proc/1/root")
"""The node's own files, whatever the agent has mounted: it lives among the node's processes."""
_FILES = (
    "etc/nvidia-container-runtime/config.toml",
    "usr/local/nvidia/toolkit/.config/nvidia-container-runtime/config.toml",  # of NVIDIA's GPU Operator
)
_SETTINGS = {
    "accept-nvidia-visible-devices-envvar-when-unprivileged": True,
    "accept-nvidia-visible-devices-as-volume-mounts": False,
}
"""What lets containers ask by themselves, with what holds where nothing is said."""


def tell_of_open_runtimes(host: Path = _HOST) -> None:
    """Warn of each configuration by which containers get GPUs without a claim."""
    for name in _FILES:
        accepted = list(_accepted(host / name))
        if accepted:
            facts = {"file": f"/{name}", "expected": " and ".join(f"{setting} = false" for setting in accepted)}
            _log.warning("NVIDIA's container runtime gives GPUs to containers without a claim", extra=facts)


def _accepted(path: Path) -> Iterator[str]:
    """Yield the settings that let containers ask by themselves."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # it is not there, or the runtime cannot read it either
    yield from (setting for setting, default in _SETTINGS.items() if found.get(setting, default) is not False)
