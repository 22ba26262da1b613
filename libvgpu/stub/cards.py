"""Simulated cards as plain data: how one is made, how it behaves, and what it counted. Files: cardfiles.py."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class StubSettings:
    """How a card behaves. The defaults make memory exact to the byte; the comments say what a real card does."""

    reserved_bytes: int = 0  # real: some 100s of MiB that the driver keeps for itself
    context_bytes: int = 0  # real: 200 to 600 MiB for each context
    module_bytes: int = 0  # real: the size of the code
    lazy_bytes: int = 0  # real: the size of the code, with CUDA_MODULE_LOADING=LAZY
    granularity_bytes: int = 1  # real: 2 MiB, and blocks of that for allocations of up to half of it
    vmm_bytes: int = 2 << 20
    pool_chunk_bytes: int = 1  # real: 32 MiB
    slice_ns: int = 2_000_000
    kernel_ns: int = 2_000
    kernel_block_ns: int = 1_000
    array_tile_bytes: int = 1  # real: tiles of some KiB
    opened_counts: int = 0  # 1: NVML counts memory to all who hold it, not to one
    pageable_access: int = 0  # 1: as with HMM or ATS, what malloc gives can be moved to the card too
    bytes_per_us: int = 3_000_000
    link_bytes_per_us: int = 50_000
    # Health, as NVML tells it
    lost: int = 0
    remap_failed: int = 0
    remap_pending: int = 0
    too_hot: int = 0
    recovery_action: int = 0
    links: int = 0
    links_down: int = 0
    """A bit for each NVLink."""
    ecc_uncorrected: int = 0
    pages_pending: int = 0


@dataclass(frozen=True)
class StubGPU:
    """A card to be made."""

    name: str
    memory_bytes: int
    uuid: str
    """"GPU-" and a UUID."""
    compute_capability: tuple[int, int] = (9, 0)
    driver_version: str = "580.95.05"
    cuda_version: int = 13000
    """1000 * major + 10 * minor."""
    multiprocessors: int = 132
    pci_bus: int | None = None
    """None: by the card's number."""
    pci_device_id: int = 0x233010DE
    numa_node: int = 0
    mig: bool = False
    parent_uuid: str = ""
    """Of the card in MIG mode that this is a part of; its own UUID begins with "MIG-" then. Empty: it is a card."""
    settings: StubSettings = field(default_factory=StubSettings)


@dataclass(frozen=True)
class StubProcess:
    """What a card counted for one process, which may have ended."""

    pid: int
    """In its own pid namespace."""
    pid_namespace: int
    start_time: int
    hostname: str
    comm: str
    alive: bool
    memory_bytes: int
    peak_bytes: int
    pool_idle_bytes: int
    """The part of memory_bytes that memory pools keep and nobody uses."""
    host_bytes: int
    gpu_time_ns: int
    launches: int
    out_of_memory: int
    contexts: int
    began_ns: int
    ended_ns: int


@dataclass(frozen=True)
class StubCard:
    """What a card counted."""

    path: Path
    index: int
    name: str
    uuid: str
    memory_bytes: int
    used_bytes: int
    """What living processes hold."""
    peak_bytes: int
    gpu_time_ns: int
    """Of all processes ever, also of those whose records were given to others."""
    engine_changes: int
    engine_waiters: int
    """Processes that have work for the engine and not the engine."""
    processes: tuple[StubProcess, ...]

    @property
    def live(self) -> tuple[StubProcess, ...]:
        """The processes that are still there."""
        return tuple(process for process in self.processes if process.alive)
