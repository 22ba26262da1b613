"""The tenants of the demo as its manifest has them. Used by the checks and the end-to-end tests."""

from dataclasses import dataclass
from pathlib import Path

from libvgpu.stub import StubGPU

NAMESPACE = "demo"
MANIFEST = Path(__file__).with_name("tenants.yaml")
IMAGE = "vgpu.local/worker:demo"

GPU = StubGPU(name="Simulated GPU 10GB", memory_bytes=10 << 30, uuid="GPU-7d9c1f0a-1b2c-4d3e-8f40-5a6b7c8d9e0f")
"""The one GPU of the node."""


@dataclass(frozen=True)
class Tenant:
    """A Deployment of the manifest with one pod."""

    name: str
    memory_mib: int
    cores_percent: int
    blob_mb: int

    @property
    def memory_bytes(self) -> int:
        """The limit in bytes."""
        return self.memory_mib << 20


A = Tenant("worker-a", memory_mib=2048, cores_percent=25, blob_mb=1500)
B = Tenant("worker-b", memory_mib=3072, cores_percent=40, blob_mb=2000)
TENANTS = (A, B)

WAITING_POD = "worker-huge"
WAITING_MEMORY_MIB = 999_999
