"""CDI specs: valid by the specification, and with exactly what a container needs."""

import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema

from api.names import ClaimUID
from kubeletplugin.hardware.devices import Device, DeviceFile, Driver
from kubeletplugin.state import cdi
from kubeletplugin.state.libraries import InstalledLibrary
from tests.unit.kubeletplugin.builders import discovery, gpu
from tests.unit.kubeletplugin.cdischema import schema

VENDOR = "vgpu.dra-driver.io"
LIBRARY = InstalledLibrary(
    Path("/state/lib/libvgpu-0123456789ab.so"), Path("/state/lib/libvgpu-0123456789ab.so.preload")
)


def valid(spec: cdi.Spec | None) -> cdi.Spec:
    assert spec is not None
    jsonschema.validate(spec, schema(spec["cdiVersion"]))
    return spec


def gpus(*devices: Device) -> cdi.Spec:
    found = discovery(*devices)
    return valid(cdi.gpu_spec(VENDOR, found.devices, found.driver))


def mounts(edits: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {m["containerPath"]: (m["hostPath"], m["options"][0]) for m in edits["mounts"]}


def test_every_gpu_is_a_device_and_the_driver_comes_with_each() -> None:
    spec = gpus(gpu(0), gpu(1))

    assert spec["kind"] == "vgpu.dra-driver.io/gpu"
    assert [device["name"] for device in spec["devices"]] == [gpu(0).name, gpu(1).name]
    assert spec["devices"][1]["containerEdits"] == {"deviceNodes": [{"path": "/dev/nvidia1"}]}
    assert mounts(spec["containerEdits"]) == {
        "/usr/lib64/libcuda.so.1": ("/usr/lib64/libcuda.so.1", "ro"),
        "/usr/lib/vgpu-driver/libcuda.so.1": ("/usr/lib64/libcuda.so.1", "ro"),
    }


def test_a_legacy_runtime_hook_is_told_to_add_nothing() -> None:
    assert "NVIDIA_VISIBLE_DEVICES=void" in gpus(gpu(0))["containerEdits"]["env"]


def test_triton_is_told_where_the_driver_is_where_nobody_brings_the_loaders_cache_up_to_date() -> None:
    found = discovery(gpu(0))
    paths = [each.removeprefix("TRITON_LIBCUDA_PATH=") for each in gpus(gpu(0))["containerEdits"]["env"][1:]]
    library = replace(LIBRARY, gates=(Path(f"{LIBRARY.path}.libcuda.so.1"),))
    claim = cdi.claim_spec(VENDOR, ["share"], Path("/shares"), library)
    assert [f"{path}/libcuda.so.1" in mounts(claim["containerEdits"]) for path in paths] == [True]

    hooks = {"hooks": [{"hookName": "createContainer", "path": "/x", "args": ["nvidia-cdi-hook", "update-ldcache"]}]}
    told = valid(cdi.gpu_spec(VENDOR, found.devices, replace(found.driver, toolkit=hooks)))
    assert told["containerEdits"]["env"] == ["NVIDIA_VISIBLE_DEVICES=void"]


def test_a_simulated_card_is_mounted_writable() -> None:
    card = DeviceFile(Path("/stub/dev/nvidia0"), Path("/dev/nvidia0"), is_device=False)

    spec = gpus(gpu(0, files=(card,)))

    assert mounts(spec["devices"][0]["containerEdits"]) == {"/dev/nvidia0": ("/stub/dev/nvidia0", "rw")}


def test_a_node_that_lies_elsewhere_on_the_host_needs_a_newer_version() -> None:
    elsewhere = DeviceFile(Path("/run/driver/dev/nvidia0"), Path("/dev/nvidia0"), is_device=True)

    spec = gpus(gpu(0, files=(elsewhere,)))

    assert spec["cdiVersion"] == "0.5.0"
    assert spec["devices"][0]["containerEdits"]["deviceNodes"] == [
        {"path": "/dev/nvidia0", "hostPath": "/run/driver/dev/nvidia0"}
    ]
    assert gpus(gpu(0))["cdiVersion"] == "0.3.0"


def test_without_devices_there_is_no_spec() -> None:
    assert cdi.gpu_spec(VENDOR, (), Driver()) is None


def test_a_share_has_its_limits_read_only_and_its_books_writable() -> None:
    spec = valid(cdi.claim_spec(VENDOR, ["1f-0", "1f-1"], Path("/state/shares"), LIBRARY))

    assert spec["cdiVersion"] == "0.5.0"  # a name that starts with a digit
    assert spec["kind"] == "vgpu.dra-driver.io/claim"
    assert mounts(spec["devices"][1]["containerEdits"]) == {
        "/run/vgpu/shares/1f-1/limits": ("/state/shares/1f-1/limits", "ro"),
        "/run/vgpu/shares/1f-1/books": ("/state/shares/1f-1/books", "rw"),
    }


def test_the_library_and_its_preload_file_are_read_only() -> None:
    spec = valid(cdi.claim_spec(VENDOR, ["1f-0"], Path("/state/shares"), LIBRARY))

    assert mounts(spec["containerEdits"]) == {
        "/usr/lib/vgpu/libvgpu-0123456789ab.so": (str(LIBRARY.path), "ro"),
        "/etc/ld.so.preload": (str(LIBRARY.preload_path), "ro"),
    }
    assert "env" not in spec["containerEdits"]  # a tenant could unset it


def test_a_gate_stands_wherever_a_loader_looks_for_the_driver() -> None:
    gated = replace(LIBRARY, gates=(LIBRARY.path.with_name(f"{LIBRARY.path.name}.libcuda.so.1"),))
    spec = valid(cdi.claim_spec(VENDOR, ["1f-0"], Path("/state/shares"), gated))

    there = mounts(spec["containerEdits"])
    for folder in ("/usr/lib64", f"/usr/lib/{platform.machine()}-linux-gnu"):
        assert there[f"{folder}/libcuda.so.1"] == (f"{LIBRARY.path}.libcuda.so.1", "ro")


def test_a_whole_device_has_limits_and_books_and_no_library() -> None:
    spec = valid(cdi.claim_spec(VENDOR, ["1f-0"], Path("/state/shares"), None))

    assert spec["containerEdits"] == {}
    assert len(mounts(spec["devices"][0]["containerEdits"])) == 2


def test_a_spec_is_found_by_its_claim_and_removed_with_what_a_crash_left(tmp_path: Path) -> None:
    folder = cdi.SpecFolder(tmp_path / "cdi", VENDOR)
    uid = ClaimUID("1f")
    folder.write_claim(uid, {"some": "spec", "containerEdits": {}})
    (tmp_path / "cdi" / ".vgpu.dra-driver.io-claim_1f.json.tmp").write_text("half")
    assert folder.claims() == [uid]

    assert folder.remove_claim(uid)
    assert not folder.remove_claim(uid)
    assert list((tmp_path / "cdi").iterdir()) == []


def test_specs_of_others_are_not_touched(tmp_path: Path) -> None:
    other = tmp_path / "nvidia.com-gpu.json"
    other.write_text("{}")
    folder = cdi.SpecFolder(tmp_path, VENDOR)
    folder.write_gpus(gpus(gpu(0)))
    assert json.loads((tmp_path / "vgpu.dra-driver.io-gpu.json").read_text()) == gpus(gpu(0))

    folder.write_gpus(None)

    assert folder.claims() == []
    assert list(tmp_path.iterdir()) == [other]


def test_the_hook_for_an_images_own_preload_file_comes_with_the_library_and_only_where_it_runs() -> None:
    hook = Path("/state/lib/libvgpu-1.so.merge")
    library = replace(LIBRARY, hook=hook)

    spec = valid(cdi.claim_spec(VENDOR, ["1f-0"], Path("/state/shares"), library))
    assert spec["containerEdits"]["hooks"] == [
        {"hookName": "createContainer", "path": str(hook), "args": [str(hook), LIBRARY.preload_path.name]}
    ]

    assert "hooks" not in cdi.claim_spec(VENDOR, ["1f-0"], Path("/state/shares"), LIBRARY)["containerEdits"]
    assert cdi.claim_spec(VENDOR, ["1f-0"], Path("/state/shares"), None)["containerEdits"] == {}
