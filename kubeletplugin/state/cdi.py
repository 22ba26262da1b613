"""CDI specs: what the container runtime adds to a container that holds a device or a share.

`gpu_spec` is one spec per node with a device per GPU (device node, and for all of them the driver's libraries);
`claim_spec` is one spec per claim with a device per share (limits, books, and for all of them the interception
library). Called by preparing, unpreparing and the agent. Source: Container Device Interface specification, versions
0.3.0 to 0.8.0.
"""

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from api import names
from api.errors import StateError
from api.names import ClaimUID
from kubeletplugin.files import read_if_there, remove, write_atomically
from kubeletplugin.hardware.devices import Device, DeviceFile, Driver
from kubeletplugin.hardware.driverroots import CONTAINER_LIBRARY_FOLDERS
from kubeletplugin.state.libraries import InstalledLibrary
from libvgpu.files import locked

Spec = dict[str, Any]

_READ_ONLY = ["ro", "nosuid", "nodev", "rbind", "rprivate"]
_BOOKS = ["rw", "nosuid", "nodev", "noexec", "rbind", "rprivate"]
_CARD = ["rw", "nosuid", "noexec", "rbind", "rprivate"]
# A runtime hook of the vendor's own toolkit adds all GPUs to an image that asks for them; "void" tells it to keep out.
_NO_LEGACY_HOOK = "NVIDIA_VISIBLE_DEVICES=void"
# Triton (torch.compile) looks for the driver in the loader's cache alone. The toolkit has a hook that brings an image's
# cache up to date; without it Triton has to be told.
_CACHE_HOOK = "update-ldcache"
_TRITON = f"TRITON_LIBCUDA_PATH={CONTAINER_LIBRARY_FOLDERS[0]}"


def gpu_id(vendor: str, device_name: str) -> str:
    """Return the CDI id of a device. It is a device's own: the kubelet keys health by the first id of a device."""
    return f"{vendor}/{names.CDI_CLASS_GPU}={device_name}"


def claim_id(vendor: str, share: str) -> str:
    """Return the CDI id of a share of a claim."""
    return f"{vendor}/{names.CDI_CLASS_CLAIM}={share}"


def gpu_spec(vendor: str, devices: Iterable[Device], driver: Driver) -> Spec | None:
    """Return the spec of a node's devices; None without any: a spec must have a device."""
    entries = [
        {"name": device.name, "containerEdits": _with(device.toolkit, _edits(device.files))}
        for device in devices
        if device.files
    ]
    common = _with(driver.toolkit, _edits([*driver.files, *_private(driver)])) | {"env": _environment(driver)}
    if not entries:
        return None
    spec = _spec(f"{vendor}/{names.CDI_CLASS_GPU}", entries, common)
    return spec | {"cdiVersion": max(spec["cdiVersion"], driver.toolkit_version, key=_version_key)}


def claim_spec(vendor: str, shares: Iterable[str], shares_dir: Path, library: InstalledLibrary | None) -> Spec:
    """Return the spec of a claim.

    Args:
        vendor: of the CDI ids.
        shares: names of the claim's shares, at least one.
        shares_dir: folder of all shares on the host.
        library: what enforces them; None: there is nothing to enforce. Limits and books are there all the same, for a
            library that comes with another claim of the same container.
    """
    entries = [
        {
            "name": share,
            "containerEdits": {
                "mounts": [
                    _share_mount(shares_dir, share, names.LIMITS_FILE, _READ_ONLY),
                    _share_mount(shares_dir, share, names.BOOKS_FILE, _BOOKS),
                ]
            },
        }
        for share in shares
    ]
    common = _library_edits(library) if library is not None else {}
    return _spec(f"{vendor}/{names.CDI_CLASS_CLAIM}", entries, common)


@functools.lru_cache(maxsize=1)
def _library_edits(library: InstalledLibrary) -> dict[str, Any]:
    """Return what the library needs in a container; the same for all claims, so not made anew for each."""
    mounts = [
        _mount(library.path, library.container_path, _READ_ONLY),
        _mount(library.preload_path, names.CONTAINER_PRELOAD_FILE, _READ_ONLY),
        # In the place of what the spec of the devices has there: the later mount on a path counts.
        *(
            _mount(gate, folder / name, _READ_ONLY)
            for gate, name in library.gate_mounts()
            for folder in CONTAINER_LIBRARY_FOLDERS
        ),
    ]
    return {"mounts": mounts} | ({"hooks": [_merging(library.hook, library)]} if library.hook else {})


def _merging(hook: Path, library: InstalledLibrary) -> dict[str, Any]:
    """Return the hook that puts what an image preloads by itself behind our library (libvgpu/hook)."""
    return {"hookName": "createContainer", "path": str(hook), "args": [str(hook), library.preload_path.name]}


def _environment(driver: Driver) -> list[str]:
    cached = any(_CACHE_HOOK in hook.get("args", ()) for hook in driver.toolkit.get("hooks", ()))
    return [_NO_LEGACY_HOOK] if cached else [_NO_LEGACY_HOOK, _TRITON]


def _private(driver: Driver) -> Iterator[DeviceFile]:
    """Yield the driver's own libraries once more, for the gate that stands in their place."""
    found = {file.container_path.name: file.host_path for file in driver.files}
    for name in names.GATED_LIBRARIES:
        if name in found:
            yield DeviceFile(found[name], Path(names.CONTAINER_DRIVER_DIR) / name)


def _with(toolkit: Mapping[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Return our edits and those of the vendor's tool; where both put something at one place, ours."""
    merged = dict(ours)
    for kind, place in (("deviceNodes", "path"), ("mounts", "containerPath")):
        taken = {entry[place] for entry in ours.get(kind, ())}
        more = [entry for entry in toolkit.get(kind, ()) if entry[place] not in taken]
        if more:
            merged[kind] = [*ours.get(kind, ()), *more]
    return merged | ({"hooks": list(toolkit["hooks"])} if toolkit.get("hooks") else {})


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _share_mount(shares_dir: Path, share: str, file: str, options: list[str]) -> dict[str, Any]:
    return _mount(f"{shares_dir}/{share}/{file}", f"{names.CONTAINER_SHARES_DIR}/{share}/{file}", options)


def _spec(kind: str, devices: list[dict[str, Any]], common: dict[str, Any]) -> Spec:
    return {
        "cdiVersion": _lowest_version([common, *(device["containerEdits"] for device in devices)], devices),
        "kind": kind,
        "containerEdits": common,
        "devices": devices,
    }


def _lowest_version(edits: list[dict[str, Any]], devices: list[dict[str, Any]]) -> str:
    """Return the oldest version that has all that the spec uses: old runtimes refuse specs newer than themselves."""
    if any("hostPath" in node for edit in edits for node in edit.get("deviceNodes", [])):
        return "0.5.0"
    if any(not device["name"][0].isalpha() for device in devices):
        return "0.5.0"
    return "0.3.0"


def _edits(files: Iterable[DeviceFile]) -> dict[str, Any]:
    nodes = [_node(file) for file in files if file.is_device]
    mounts = [
        _mount(file.host_path, file.container_path, _CARD if file.container_path.parent == Path("/dev") else _READ_ONLY)
        for file in files
        if not file.is_device
    ]
    edits: dict[str, Any] = {}
    if nodes:
        edits["deviceNodes"] = nodes
    if mounts:
        edits["mounts"] = mounts
    return edits


def _node(file: DeviceFile) -> dict[str, str]:
    node = {"path": str(file.container_path)}
    if file.host_path != file.container_path:
        node["hostPath"] = str(file.host_path)
    return node


def _mount(host_path: Path | str, container_path: Path | str, options: list[str]) -> dict[str, Any]:
    return {"hostPath": str(host_path), "containerPath": str(container_path), "options": options}


class SpecFolder:
    """The folder where the container runtime looks for specs, and ours in it.

    It is a part of /run: a reboot empties it, and each prepare compares and mends what is there. So no fsync.
    """

    def __init__(self, folder: Path, vendor: str) -> None:
        self._folder = folder
        self._vendor = vendor
        self._claim_prefix = f"{folder}/{vendor}-{names.CDI_CLASS_CLAIM}_"
        self._common: tuple[dict[str, Any], bytes] | None = None
        """Edits that were encoded last."""
        self._claim_file = re.compile(rf"{re.escape(vendor)}-{names.CDI_CLASS_CLAIM}_(.+)\.json")

    def prepare(self) -> None:
        """Create the folder: after a reboot it is gone with the rest of /run.

        Raises:
            StateError: it cannot be created.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        except OSError as error:
            raise StateError(f"CDI folder {self._folder}: cannot be created: {error.strerror}") from error

    def write_gpus(self, spec: Spec | None) -> None:
        """Write the spec of the devices if it differs from what is there; without one, remove it."""
        path = self._folder / f"{self._vendor}-{names.CDI_CLASS_GPU}.json"
        self.prepare()
        with locked(self._folder):  # a second instance of the agent writes the same file
            if spec is None:
                remove(path)
            else:
                self._write(path, spec)

    def write_claim(self, uid: ClaimUID, spec: Spec) -> bool:
        """Write the spec of a claim if it differs from what is there; return whether it did."""
        return self._write(self._path(uid), spec)

    def remove_claim(self, uid: ClaimUID) -> bool:
        """Remove the spec of a claim; return whether there was one."""
        try:
            return remove(self._path(uid))
        except FileNotFoundError:
            return False

    def claims(self) -> list[ClaimUID]:
        """Return the claims that have a spec."""
        try:
            found = [self._claim_file.fullmatch(path.name) for path in self._folder.iterdir()]
        except FileNotFoundError:
            return []
        return [ClaimUID(match.group(1)) for match in found if match]

    def is_of_shares_elsewhere(self, uid: ClaimUID, shares_dir: Path) -> bool:
        """Say whether the spec of a claim mounts shares that are not in a folder; a damaged one mounts none."""
        try:
            devices = json.loads(read_if_there(self._path(uid)) or b"{}")["devices"]
            mounts = [mount for device in devices for mount in device["containerEdits"]["mounts"]]
            folders = {Path(mount["hostPath"]).parent.parent for mount in mounts}
        except (ValueError, KeyError, TypeError):
            return False
        return bool(folders) and shares_dir not in folders

    def libraries(self) -> set[Path]:
        """Return the host files that the specs of all claims mount: the libraries among them may not go.

        Raises:
            StateError: a spec is not one of ours.
        """
        contents = (read_if_there(self._path(uid)) for uid in self.claims())
        try:
            specs = [json.loads(content) for content in contents if content is not None]
            return {Path(mount["hostPath"]) for spec in specs for mount in spec["containerEdits"].get("mounts", ())}
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(f"CDI folder {self._folder}: found {error!r} in the spec of a claim") from error

    def _encode(self, spec: Spec) -> bytes:
        """Return the JSON of a spec. Its common edits are long and the same object for each claim: encoded once."""
        common = spec["containerEdits"]
        former = self._common
        if former is None or former[0] is not common:
            former = self._common = common, to_json(common)
        rest = to_json({key: value for key, value in spec.items() if key != "containerEdits"})
        return b'%b,"containerEdits":%b}' % (rest[:-1], former[1])

    def _path(self, uid: ClaimUID) -> str:
        # As text, like all that each claim comes by: paths as objects cost more than the calls.
        return f"{self._claim_prefix}{uid}.json"

    def _write(self, path: Path | str, spec: Spec) -> bool:
        content = self._encode(spec)
        if read_if_there(path) == content:
            return False
        try:
            write_atomically(path, content)
        except FileNotFoundError:  # a reboot, or somebody, took the folder
            self.prepare()
            write_atomically(path, content)
        return True
