"""Every form of claim, on every version and in every offer mode: what the containers see of it, and cannot exceed."""

import re
from typing import Any

import pytest
import yaml

from api.kube import NODE_INVENTORIES
from deploy.demo.scenario import ROOT
from deploy.demo.tenants import GPU, IMAGE
from tests.e2e.workloads import Asked, Container, Workloads

pytestmark = pytest.mark.cluster

_SIZES = ["nvidia-smi", "--query-gpu=memory.total,uuid", "--format=csv,noheader,nounits"]
_GPU_MIB = GPU.memory_bytes >> 20
_SMALLEST_MIB = {"consumable": _GPU_MIB, "counters": _GPU_MIB // 4, "slots": _GPU_MIB // 2}
"""What a claim gets that says nothing of amounts, by offer mode."""


def _is_before(workloads: Workloads, minor: int) -> bool:
    return workloads.kube.server_minor() < minor


def _run(workloads: Workloads, name: str, devices: dict[str, Any], command: list[str]) -> str:
    workloads.start_as_written(name, devices, Container(command))
    return workloads.finish(name)


def _exactly(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "exactly": {"deviceClassName": "vgpu-nvidia", **fields}}


def _seen(output: str) -> list[tuple[int, str]]:
    """Return size in MiB and UUID of each GPU that a container sees."""
    return [(int(size), uuid) for size, uuid in re.findall(r"^(\d+), (\S+)$", output, re.MULTILINE)]


def _wait_for_a_heartbeat(workloads: Workloads) -> None:
    listed = workloads.kube.list(NODE_INVENTORIES)
    (before,) = (inventory["status"]["heartbeatTime"] for inventory in listed["items"])
    for event in workloads.kube.watch(NODE_INVENTORIES, listed["metadata"]["resourceVersion"], timeout_s=150):
        if event.object["status"]["heartbeatTime"] != before:
            return
    raise AssertionError("no heartbeat of the node agent in 150 s")


def test_one_form_of_claim_has_the_same_share_in_every_offer_mode(workloads: Workloads) -> None:
    template, pod = yaml.safe_load_all((ROOT / "deploy/examples/any-mode.yaml").read_text())
    command = pod["spec"]["containers"][0]["command"]
    assert command == ["nvidia-smi"]
    script = f"{' '.join(_SIZES)}; worker grab 3900; worker grab 4400; echo status $?"
    output = _run(workloads, "any-mode", template["spec"]["spec"]["devices"], ["sh", "-c", script])
    assert [size for size, _ in _seen(output)] == [4096]
    assert "grab mb=3900 result=CUDA_SUCCESS" in output
    assert output.strip().endswith("status 3")


def test_a_claim_that_says_nothing_of_amounts_has_the_first_device(workloads: Workloads) -> None:
    output = _run(workloads, "says-nothing", {"requests": [_exactly("gpu")]}, _SIZES)
    assert [size for size, _ in _seen(output)] == [_SMALLEST_MIB[workloads.scenario.dialect.mode]]


def test_a_pod_without_a_claim_has_the_first_device_by_the_name_of_an_extended_resource(workloads: Workloads) -> None:
    if _is_before(workloads, 36):
        pytest.skip("DeviceClasses stand for extended resources from 1.36 on")
    container = {
        "name": "main",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": _SIZES,
        "resources": {"limits": {"deviceclass.resource.kubernetes.io/vgpu-nvidia": "1"}},
    }
    spec = {"restartPolicy": "Never", "containers": [container]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "by-resource"}, "spec": spec}
    workloads.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(pod))
    seen = _seen(workloads.finish("by-resource"))
    assert [size for size, _ in seen] == [_SMALLEST_MIB[workloads.scenario.dialect.mode]]


def test_a_claim_for_all_of_a_gpu_has_it_without_the_library(workloads: Workloads) -> None:
    if workloads.scenario.dialect.mode == "slots":
        pytest.skip("a GPU that is cut into slots is no device itself")
    if workloads.scenario.dialect.mode == "counters":
        _wait_for_a_heartbeat(workloads)  # by which the agent learns that no amounts stand for all
    whole = f'device.capacity["vgpu.dra-driver.io"].memory.compareTo(quantity("{_GPU_MIB}Mi")) >= 0'
    request = _exactly("gpu", selectors=[{"cel": {"expression": whole}}], capacity={"requests": {"cores": "100"}})
    script = f"{' '.join(_SIZES)}; [ -e /etc/ld.so.preload ] || echo bare"
    output = _run(workloads, "whole", {"requests": [request]}, ["sh", "-c", script])
    assert [size for size, _ in _seen(output)] == [_GPU_MIB]
    assert output.strip().endswith("bare")


def test_distinct_shares_lie_on_two_gpus(workloads: Workloads) -> None:
    if workloads.scenario.dialect.mode != "consumable":
        pytest.skip("distinctAttribute comes with consumable capacity")
    sizes = {"left": "2Gi", "right": "3Gi"}
    devices = {
        "requests": [_exactly(name, capacity={"requests": {"memory": size}}) for name, size in sizes.items()],
        "constraints": [{"requests": list(sizes), "distinctAttribute": "vgpu.dra-driver.io/uuid"}],
    }
    seen = _seen(_run(workloads, "distinct", devices, _SIZES))
    assert sorted(size for size, _ in seen) == [2048, 3072]
    assert len({uuid for _, uuid in seen}) == 2


def test_matching_shares_lie_on_one_gpu(workloads: Workloads) -> None:
    devices = {
        "requests": [_exactly(name, capacity={"requests": {"memory": "1Gi"}}) for name in ("left", "right")],
        "constraints": [{"requests": ["left", "right"], "matchAttribute": "vgpu.dra-driver.io/uuid"}],
    }
    ((size, _),) = _seen(_run(workloads, "matching", devices, _SIZES))
    if workloads.scenario.dialect.mode == "consumable":
        assert size == 2048  # shares of one GPU add up
    else:
        assert size == 2 * _SMALLEST_MIB[workloads.scenario.dialect.mode]


def test_the_first_alternative_that_is_there_is_had(workloads: Workloads) -> None:
    if _is_before(workloads, 34):
        pytest.skip("firstAvailable comes with Kubernetes 1.34")
    large = 'device.capacity["vgpu.dra-driver.io"].memory.compareTo(quantity("60Gi")) >= 0'
    alternatives = [
        {"name": "large", "deviceClassName": "vgpu-nvidia", "selectors": [{"cel": {"expression": large}}]},
        {"name": "small", "deviceClassName": "vgpu-nvidia"},
    ]
    parameters = {"apiVersion": "vgpu.dra-driver.io/v1alpha1", "kind": "VGPUConfig", "memory": "1Gi"}
    config = {"requests": ["gpu/small"], "opaque": {"driver": "vgpu.dra-driver.io", "parameters": parameters}}
    devices = {"requests": [{"name": "gpu", "firstAvailable": alternatives}], "config": [config]}
    assert [size for size, _ in _seen(_run(workloads, "first", devices, _SIZES))] == [1024]


def test_an_administrator_sees_all_of_a_gpu_beside_its_tenants_and_takes_nothing_of_it(workloads: Workloads) -> None:
    if _is_before(workloads, 34):
        pytest.skip("adminAccess is on from Kubernetes 1.34")
    admin = "resource.kubernetes.io/admin-access"
    workloads.kubectl("label", "namespace", workloads.namespace, f"{admin}=true")
    try:
        for number in range(2):
            asked = Asked({"gpu": {"memory": "4Gi", "cores": "40"}})
            workloads.start(f"tenant-{number}", asked, Container(["worker", "run", "300"]))
            workloads.wait_for_phase(f"tenant-{number}", "Running")
        request = _exactly("gpu", adminAccess=True, capacity={"requests": {"memory": "1Mi"}})
        output = _run(workloads, "admin", {"requests": [request]}, _SIZES)
    finally:
        workloads.kubectl("label", "namespace", workloads.namespace, f"{admin}-")
    assert [size for size, _ in _seen(output)] == [_GPU_MIB]
    figures = workloads.kubectl("exec", "tenant-0", "--", *_SIZES)
    assert [size for size, _ in _seen(figures)] == [4096]
