"""CDI specs of NVIDIA's toolkit: taken over where they fit the driver, left alone where they do not."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from kubeletplugin.hardware.ctkspecs import find_spec
from kubeletplugin.hardware.devices import DeviceFile, Driver
from kubeletplugin.hardware.driverroots import DriverRoot
from kubeletplugin.hardware.nvidiafiles import driver_of
from kubeletplugin.state import cdi
from tests.unit.kubeletplugin.builders import gpu
from tests.unit.kubeletplugin.cdischema import schema

LIBRARY = "/usr/lib/x86_64-linux-gnu"
OPENCL = "libnvidia-opencl.so.1"
# How OpenCL, OpenGL, EGL and Vulkan programs find the GPU.
UNCOUNTED = ("libnvidia-opencl.so.570.1", "libGLX_nvidia.so.570.1", "libEGL_nvidia.so.570.1", "libcuda.so")
SPEC: dict[str, Any] = {
    "cdiVersion": "0.6.0",
    "kind": "nvidia.com/gpu",
    "devices": [
        {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}, {"path": "/dev/dri/card1"}]}},
        {"name": "all", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}]}},
    ],
    "containerEdits": {
        "env": ["NVIDIA_VISIBLE_DEVICES=void"],
        "deviceNodes": [{"path": "/dev/nvidiactl"}, {"path": "/dev/nvidia-modeset"}],
        "mounts": [
            {
                "hostPath": f"{LIBRARY}/libcuda.so.570.1",
                "containerPath": f"{LIBRARY}/libcuda.so.570.1",
                "options": ["ro"],
            },
            *(
                {"hostPath": f"{LIBRARY}/{name}", "containerPath": f"{LIBRARY}/{name}", "options": ["ro"]}
                for name in UNCOUNTED
            ),
            {"hostPath": "/lib/firmware/gsp.bin", "containerPath": "/lib/firmware/gsp.bin", "options": ["ro"]},
        ],
        "hooks": [
            {
                "hookName": "createContainer",
                "path": "/usr/bin/nvidia-cdi-hook",
                "args": ["nvidia-cdi-hook", "update-ldcache", "--folder", LIBRARY],
            }
        ],
    },
}


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host with all that the spec names."""
    for name in (
        *("dev/nvidia0", "dev/nvidiactl", "dev/nvidia-modeset", "dev/dri/card1"),
        *(f"{LIBRARY[1:]}/{library}" for library in UNCOUNTED),
        *(f"{LIBRARY[1:]}/libcuda.so.570.1", "lib/firmware/gsp.bin", "usr/bin/nvidia-cdi-hook"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "etc/cdi").mkdir(parents=True)
    return tmp_path


def root_of(host: Path) -> DriverRoot:
    return DriverRoot(host, Path("/"))


@pytest.mark.parametrize(("name", "dump"), [("nvidia.yaml", yaml.safe_dump), ("nvidia.json", json.dumps)])
def test_a_spec_is_taken_over_without_what_no_share_counts_and_without_what_the_gate_stands_for(
    host: Path, name: str, dump: Any
) -> None:
    (host / "etc/cdi" / name).write_text(dump(SPEC))
    found = find_spec(root_of(host), host / "none")
    assert found is not None

    own = Driver((DeviceFile(Path(f"{LIBRARY}/libcuda.so.570.1"), Path(f"{LIBRARY}/libcuda.so.1")),))
    driver = Driver(own.files, found.common, found.version)
    spec = cdi.gpu_spec("vgpu.dra-driver.io", [gpu(0, toolkit=found.of_device("GPU-x", 0))], driver)

    assert spec is not None
    jsonschema.validate(spec, schema("0.6.0"))
    assert spec["cdiVersion"] == "0.6.0"
    assert [node["path"] for node in spec["devices"][0]["containerEdits"]["deviceNodes"]] == ["/dev/nvidia0"]
    common = spec["containerEdits"]
    assert [mount["containerPath"] for mount in common["mounts"]] == [
        f"{LIBRARY}/libcuda.so.1",
        "/usr/lib/vgpu-driver/libcuda.so.1",
        "/lib/firmware/gsp.bin",
    ]
    assert [node["path"] for node in common["deviceNodes"]] == ["/dev/nvidiactl", "/dev/nvidia-modeset"]
    assert common["hooks"] == SPEC["containerEdits"]["hooks"]
    assert common["env"] == ["NVIDIA_VISIBLE_DEVICES=void"]


def test_a_spec_is_taken_over_with_what_no_share_counts_where_an_operator_wants_that(host: Path) -> None:
    (host / "etc/cdi/nvidia.yaml").write_text(yaml.safe_dump(SPEC))
    found = find_spec(root_of(host), host / "none", uncounted_apis=True)
    assert found is not None
    assert [mount["containerPath"] for mount in found.common["mounts"]] == [
        *(f"{LIBRARY}/{name}" for name in UNCOUNTED if name != "libcuda.so"),  # the gate stands for that all the same
        "/lib/firmware/gsp.bin",
    ]
    device = found.of_device("GPU-x", 0)
    assert device is not None
    assert [node["path"] for node in device["deviceNodes"]] == ["/dev/nvidia0", "/dev/dri/card1"]


@pytest.mark.parametrize(("uncounted_apis", "expected"), [(False, {"libcuda.so.1"}), (True, {"libcuda.so.1", OPENCL})])
def test_without_a_spec_containers_get_the_library_of_opencl_where_an_operator_wants_that(
    tmp_path: Path, uncounted_apis: bool, expected: set[str]
) -> None:
    (tmp_path / LIBRARY[1:]).mkdir(parents=True)
    for name in ("libcuda.so.1", OPENCL):
        (tmp_path / LIBRARY[1:] / name).touch()
    driver = driver_of(root_of(tmp_path), None, uncounted_apis)
    assert {file.container_path.name for file in driver.files} == expected


def test_a_spec_of_a_driver_that_is_gone_is_left_alone_and_told(host: Path, caplog: pytest.LogCaptureFixture) -> None:
    (host / "etc/cdi/nvidia.yaml").write_text(yaml.safe_dump(SPEC))
    (host / "lib/firmware/gsp.bin").unlink()

    assert find_spec(root_of(host), host / "none") is None

    (record,) = caplog.records
    assert record.getMessage() == "CDI spec of another driver left alone"
    assert vars(record)["missing"] == "/lib/firmware/gsp.bin"


@pytest.mark.parametrize("content", ["kind: example.com/net", "[]", "kind: [", "kind: nvidia.com/gpu"])
def test_other_and_damaged_specs_are_left_alone(host: Path, content: str) -> None:
    (host / "etc/cdi/nvidia.yaml").write_text(content)
    assert find_spec(root_of(host), host / "none") is None


def test_beside_a_driver_container_only_the_folder_of_the_runtime_is_looked_at(host: Path, tmp_path: Path) -> None:
    (host / "etc/cdi/nvidia.yaml").write_text(yaml.safe_dump(SPEC))
    elsewhere = DriverRoot(host, Path("/run/nvidia/driver"))
    assert find_spec(elsewhere, host / "none") is None
    assert find_spec(elsewhere, host / "etc/cdi") is not None
