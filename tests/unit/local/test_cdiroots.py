"""What a process finds of the CDI specs that the node agent writes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from deploy.local.cdiroots import UnknownDeviceError, build_root, environment, read_edits

MULTIARCH = f"usr/lib/{os.uname().machine}-linux-gnu"
BASE = {"PATH": "/bin", "HOME": "/home/me"}


def mount(host: Path, container: str) -> dict[str, Any]:
    return {"hostPath": str(host), "containerPath": container, "options": ["ro"]}


def write(folder: Path, kind: str, common: dict[str, Any], **devices: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    entries = [{"name": name, "containerEdits": edits} for name, edits in devices.items()]
    spec = {"cdiVersion": "0.5.0", "kind": kind, "containerEdits": common, "devices": entries}
    (folder / f"{kind.replace('/', '-')}.json").write_text(json.dumps(spec))


def test_each_device_and_what_all_devices_of_its_spec_have_is_found_once(tmp_path: Path) -> None:
    common, one, two = {"env": ["A=1"]}, {"env": ["B=2"]}, {"env": ["C=3"]}
    write(tmp_path / "cdi", "example.com/gpu", common, one=one, two=two)
    ids = ["example.com/gpu=two", "example.com/gpu=one"]
    assert read_edits(tmp_path / "cdi", ids) == [common, two, one]


def test_ids_that_no_spec_has_are_named(tmp_path: Path) -> None:
    write(tmp_path / "cdi", "example.com/gpu", {}, one={})
    with pytest.raises(UnknownDeviceError) as error:
        read_edits(tmp_path / "cdi", ["example.com/gpu=one", "example.com/gpu=gone"])
    assert str(error.value) == f"no CDI spec in {tmp_path / 'cdi'} has example.com/gpu=gone"


def test_mounts_are_found_through_the_variables_that_stand_for_their_places(tmp_path: Path) -> None:
    for name in ("limits", "libcuda.so.1", "nvidia-smi", "nvidia0", "libvgpu.so"):
        (tmp_path / name).write_text(name)
    (tmp_path / "preload").write_text("/usr/lib/vgpu/libvgpu.so\n")
    mounts = [
        mount(tmp_path / "limits", "/run/vgpu/shares/claim-0/limits"),
        mount(tmp_path / "libcuda.so.1", f"/{MULTIARCH}/libcuda.so.1"),
        mount(tmp_path / "nvidia-smi", "/usr/bin/nvidia-smi"),
        mount(tmp_path / "nvidia0", "/dev/nvidia0"),
        mount(tmp_path / "libvgpu.so", "/usr/lib/vgpu/libvgpu.so"),
        mount(tmp_path / "preload", "/etc/ld.so.preload"),
    ]
    edits = [{"mounts": mounts, "env": ["NVIDIA_VISIBLE_DEVICES=void"]}]
    root = tmp_path / "root"
    build_root(root, edits)
    found = environment(root, edits, BASE)
    assert (Path(found["VGPU_SHARES_DIR"]) / "claim-0/limits").read_text() == "limits"
    assert (Path(found["VGPU_STUB_DEV_DIR"]) / "nvidia0").read_text() == "nvidia0"
    assert (Path(found["LD_LIBRARY_PATH"]) / "libcuda.so.1").read_text() == "libcuda.so.1"
    assert (Path(found["PATH"].removesuffix(":/bin")) / "nvidia-smi").read_text() == "nvidia-smi"
    assert found["LD_PRELOAD"] == str(tmp_path / "libvgpu.so")
    assert (found["NVIDIA_VISIBLE_DEVICES"], found["HOME"]) == ("void", "/home/me")


def test_a_process_without_a_device_finds_no_card_of_the_machine(tmp_path: Path) -> None:
    build_root(tmp_path / "root", [])
    assert environment(tmp_path / "root", [], BASE) == BASE | {"VGPU_STUB_DEV_DIR": str(tmp_path / "root/dev")}


def test_a_root_has_nothing_of_the_one_before_it(tmp_path: Path) -> None:
    build_root(tmp_path / "root", [{"mounts": [mount(tmp_path, "/old")]}])
    build_root(tmp_path / "root", [])
    assert list((tmp_path / "root").iterdir()) == []
