"""CDI specs that NVIDIA's container toolkit has generated: device nodes, libraries, firmware and hooks for the driver.

Called by the NVIDIA backend. `nvidia-ctk cdi generate` knows more of a driver than we do (firmware, application
profiles, the hook that brings the loader's cache up to date, Tegra's files), so where it was run, its edits are taken
over. What we have a say in stays ours: the driver's two libraries behind the gate, and, unless an operator wants them,
neither nodes nor libraries of APIs that no share counts: graphics and OpenCL. Source: Container Device
Interface specification.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from api import names
from kubeletplugin.hardware.driverroots import DriverRoot

_log = logging.getLogger(__name__)

KIND = "nvidia.com/gpu"
_FOLDERS = ("etc/cdi", "var/run/cdi", "run/cdi")
_OURS = f"-{names.CDI_CLASS_CLAIM}_"
_GRAPHICS = Path("/dev/dri")
_UNCOUNTED = (
    *("libnvidia-opencl.so", "libGLX_nvidia.so", "libEGL_nvidia.so", "libGLESv1_CM_nvidia.so", "libGLESv2_nvidia.so"),
    *("libnvidia-vksc-core.so", "libvdpau_nvidia.so", "libglxserver_nvidia.so", "nvidia_drv.so"),
)
"""Where the loaders of OpenCL, OpenGL, EGL and Vulkan enter the driver. It opens the device there by itself and not by
way of libcuda: memory that is told only afterwards, and GPU time that nobody holds back."""
_LISTS = ("deviceNodes", "mounts", "hooks")

Edits = Mapping[str, Any]


@dataclass(frozen=True)
class ToolkitSpec:
    """What the toolkit would do to a container."""

    path: Path
    version: str
    common: Edits
    by_device: Mapping[str, Edits] = field(default_factory=dict)
    """By the names that the toolkit gives to devices: UUIDs or indices."""

    def of_device(self, uuid: str, index: int) -> Edits | None:
        """Return the edits of a device, None if the spec does not know it."""
        return self.by_device.get(uuid, self.by_device.get(str(index)))


def find_spec(root: DriverRoot, cdi_dir: Path, uncounted_apis: bool = False) -> ToolkitSpec | None:
    """Return the toolkit's spec on this node, None if there is none that can be used.

    A spec whose files are gone is of a driver that was replaced since: it is left alone, and told.

    Args:
        root: where the driver is.
        cdi_dir: another folder in which tools may have written specs.
        uncounted_apis: also take over what programs of APIs that no share counts need.
    """
    folders = [*(root.path / folder for folder in _FOLDERS if root.on_host == Path("/")), cdi_dir]
    for path in (path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())):
        spec = None if _OURS in path.name else _read(path, uncounted_apis)
        if spec is None:
            continue
        missing = next(_missing(spec, root), None)
        if missing is None:
            return spec
        _log.warning("CDI spec of another driver left alone", extra={"file": str(path), "missing": missing})
    return None


def is_gated(container_path: str) -> bool:
    """Return whether a mount is of one of the driver's libraries that the gate stands for, in any version."""
    name = Path(container_path).name
    return any(name.startswith(gated.removesuffix(".1")) for gated in names.GATED_LIBRARIES)


def is_uncounted(container_path: str) -> bool:
    """Return whether a mount is of a library by which programs reach the GPU past every count, in any version."""
    return Path(container_path).name.startswith(_UNCOUNTED)


def _read(path: Path, uncounted_apis: bool) -> ToolkitSpec | None:
    try:
        text = path.read_text()
        content = (
            json.loads(text) if path.suffix == ".json" else yaml.safe_load(text) if path.suffix == ".yaml" else None
        )
        if not isinstance(content, dict) or content.get("kind") != KIND:
            return None
        return ToolkitSpec(
            path,
            str(content["cdiVersion"]),
            _kept(content.get("containerEdits") or {}, uncounted_apis),
            {
                str(device["name"]): _kept(device["containerEdits"], uncounted_apis)
                for device in content.get("devices") or []
            },
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        _log.warning("CDI spec cannot be read", extra={"file": str(path), "error": str(error)})
        return None


def _kept(edits: Edits, uncounted_apis: bool) -> Edits:
    """Return what is taken over: no environment (ours says that nobody else shall add devices), no gated library."""
    kept = {name: list(edits.get(name) or []) for name in _LISTS}
    kept["mounts"] = [mount for mount in kept["mounts"] if not is_gated(mount["containerPath"])]
    if not uncounted_apis:
        kept["mounts"] = [mount for mount in kept["mounts"] if not is_uncounted(mount["containerPath"])]
        kept["deviceNodes"] = [node for node in kept["deviceNodes"] if not Path(node["path"]).is_relative_to(_GRAPHICS)]
    return {name: entries for name, entries in kept.items() if entries}


def _missing(spec: ToolkitSpec, root: DriverRoot) -> Iterator[str]:
    """Yield the host's files that the spec names and that are not there."""
    for edits in (spec.common, *spec.by_device.values()):
        paths: Iterable[str] = (
            *(mount["hostPath"] for mount in edits.get("mounts", ())),
            *(node.get("hostPath", node["path"]) for node in edits.get("deviceNodes", ())),
            *(hook["path"] for hook in edits.get("hooks", ())),
        )
        yield from (path for path in paths if not root.exists_on_host(Path(path)))
