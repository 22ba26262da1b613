"""Claims, devices and agents for the tests of the node agent."""

import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from api import kube, names
from api.kubefake import FakeKube
from kubeletplugin.agentsettings import AgentSettings
from kubeletplugin.hardware.devices import Device, DeviceFile, Discovery, Driver
from tests.unit.kubeletplugin.fakekubelet import Ref

GIB = 1 << 30
NODE = "node-1"
CLAIMS = kube.claims("v1")


def gpu(number: int = 0, memory_bytes: int = 10 * GIB, **facts: Any) -> Device:
    """A device with a UUID that shows its number."""
    node = DeviceFile(Path(f"/dev/nvidia{number}"), Path(f"/dev/nvidia{number}"), is_device=True)
    defaults: dict[str, Any] = {"product_name": "Simulated GPU", "files": (node,)}
    return Device(
        vendor="nvidia",
        uuid=f"GPU-0000000{number}-AAAA-4000-8000-000000000000",
        index=number,
        memory_bytes=memory_bytes,
        **{**defaults, **facts},
    )


def discovery(*devices: Device) -> Discovery:
    """A discovery with one driver library."""
    library = DeviceFile(Path("/usr/lib64/libcuda.so.1"), Path("/usr/lib64/libcuda.so.1"))
    return Discovery(devices, Driver((library,)))


def result(
    device: Device,
    memory: str | None = "2Gi",
    cores: str | None = "25",
    request: str = "gpu",
    **fields: Any,
) -> dict[str, Any]:
    """An allocation result; without memory and cores the device was allocated whole."""
    consumed = {"memory": memory, "cores": cores, "shares": "1"}
    consumed = {name: amount for name, amount in consumed.items() if amount is not None}
    shared = {"shareID": f"share-{request}", "consumedCapacity": consumed} if memory is not None else {}
    return {
        "request": request,
        "driver": names.DRIVER_NAME,
        "pool": NODE,
        "device": device.name,
        **shared,
        **fields,
    }


def parameters(source: str = "FromClaim", requests: Sequence[str] = (), **fields: Any) -> dict[str, Any]:
    """Opaque parameters as an allocation carries them."""
    given = {"apiVersion": names.GROUP_VERSION, "kind": names.VGPU_CONFIG_KIND, **fields}
    opaque = {"driver": names.DRIVER_NAME, "parameters": given}
    return {"source": source, "requests": list(requests), "opaque": opaque}


def claim_object(name: str, results: Sequence[Any], configs: Sequence[Any] = (), uid: str = "") -> dict[str, Any]:
    """A ResourceClaim of resource.k8s.io/v1 with an allocation."""
    metadata: Mapping[str, Any] = {"namespace": "default", "name": name, "uid": uid or f"uid-{name}"}
    requests = [{"name": r["request"], "exactly": {"deviceClassName": "vgpu"}} for r in results]
    return {
        "metadata": dict(metadata),
        "spec": {"devices": {"requests": requests}},
        "status": {
            "allocation": {"devices": {"results": list(results), "config": list(configs)}},
            # No pod: a real controller manager takes claims away from pods that there are none.
            "reservedFor": [{"apiGroup": "batch", "resource": "jobs", "name": name, "uid": f"job-{name}"}],
        },
    }


def add_claim(client: FakeKube, name: str, *results: Any, configs: Sequence[Any] = ()) -> Ref:
    """Store an allocated claim and return what the kubelet knows of it."""
    stored = client.create(CLAIMS, claim_object(name, results, configs))
    return Ref(stored["metadata"]["uid"], "default", name)


def add_node(client: FakeKube) -> None:
    """Store the Node object."""
    client.create(kube.NODES, {"metadata": {"name": NODE}})


def settings(root: Path, **fields: Any) -> AgentSettings:
    """Settings of an agent that has all its files under one folder."""
    library = root / "libvgpu.so"
    if not library.exists():
        library.write_bytes(b"the library")
    files = {"kubelet_dir": root / "kubelet", "cdi_dir": root / "cdi", "state_dir": root / "state", "library": library}
    return AgentSettings(node_name=NODE, **{**files, **fields})


def can_connect(path: Path) -> bool:
    """Return whether somebody listens on a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def hold_gets(client: FakeKube, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Keep the API server from answering a get; return what says that one was asked, and what lets them go on."""
    asked, goes_on = threading.Event(), threading.Event()
    get = client.get

    def slow(*where: Any) -> kube.JSON:
        asked.set()
        goes_on.wait()
        return get(*where)

    monkeypatch.setattr(client, "get", slow)
    return asked, goes_on
