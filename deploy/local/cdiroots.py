"""What CDI specs say about a container, done for a process. Called by processpods.py.

A process has no mounts of its own. Each mount of a spec becomes a link in a folder that stands for the container's
root, and the environment leads the process there, by the same variables as `dra-driver run` does. That is a stand-in
for trying things out and no wall: a process can leave its folder.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from api import names

_LIBRARY_FOLDERS = (f"usr/lib/{os.uname().machine}-linux-gnu", "usr/lib64")
_PROGRAM_FOLDER = "usr/bin"


class UnknownDeviceError(Exception):
    """A CDI id that no spec has."""


def read_edits(cdi_dir: Path, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return the containerEdits for CDI ids: those of each device, and those of each spec once.

    Raises:
        UnknownDeviceError: names the ids that no spec has.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(cdi_dir.glob("*.json")):
        spec = json.loads(path.read_text())
        for device in spec["devices"]:
            found[f"{spec['kind']}={device['name']}"] = [spec.get("containerEdits", {}), device["containerEdits"]]
    unknown = [one for one in ids if one not in found]
    if unknown:
        raise UnknownDeviceError(f"no CDI spec in {cdi_dir} has {', '.join(unknown)}")
    edits: list[dict[str, Any]] = []
    for one in ids:
        edits += [edit for edit in found[one] if edit not in edits]
    return edits


def build_root(root: Path, edits: Iterable[Mapping[str, Any]]) -> None:
    """Make `root` anew, with a link at the place of each mount."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    mounts = {mount["containerPath"]: mount["hostPath"] for edit in edits for mount in edit.get("mounts", [])}
    private = {name: mounts.get(f"{names.CONTAINER_DRIVER_DIR}/{name}") for name in names.GATED_LIBRARIES}
    for container_path, host_path in mounts.items():
        link = _inside(root, container_path)
        link.parent.mkdir(parents=True, exist_ok=True)
        # The driver itself, and not the gate: that one asks for paths which only a container has.
        link.symlink_to(private.get(link.name) or host_path)


def environment(root: Path, edits: Iterable[Mapping[str, Any]], base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which a process finds what was put into its root: `base`, and what it takes."""
    result = dict(base)
    for edit in edits:
        result.update(variable.split("=", 1) for variable in edit.get("env", []))
    libraries = [str(root / folder) for folder in _LIBRARY_FOLDERS if (root / folder).is_dir()]
    _prepend(result, "LD_LIBRARY_PATH", libraries)
    _prepend(result, "PATH", [str(root / _PROGRAM_FOLDER)] if (root / _PROGRAM_FOLDER).is_dir() else [])
    _prepend(result, "LD_PRELOAD", _preloaded(root))
    shares = _inside(root, names.CONTAINER_SHARES_DIR)
    if shares.is_dir():
        result[names.ENV_SHARES_DIR] = str(shares)
    # Always: a process without a device sees no card, as a container without one does not.
    result[names.ENV_STUB_DEVICE_DIR] = str(root / "dev")
    return result


def _preloaded(root: Path) -> list[str]:
    preload = _inside(root, names.CONTAINER_PRELOAD_FILE)
    if not preload.exists():
        return []
    return [str(_inside(root, library).resolve()) for library in preload.read_text().split()]


def _prepend(variables: dict[str, str], name: str, first: Sequence[str]) -> None:
    if first:
        rest = [variables[name]] if variables.get(name) else []
        variables[name] = os.pathsep.join([*first, *rest])


def _inside(root: Path, container_path: str) -> Path:
    return root / container_path.lstrip("/")
