"""The stub driver: stand-ins for libcuda, libnvidia-ml and nvidia-smi on machines without a GPU. Test equipment.

Called by the demo, the tests and the local cluster; no part of the product imports it. `create_driver_root` makes a
folder that looks like a driver installation with simulated cards; `read_card` tells what a card itself counted: who
really held how much memory, and for how long each process really had the engine. The rules are in README.md here.
"""

from libvgpu.stub.cardfiles import change_settings, clear_faults, create_card, inject_fault, inject_xid, read_card
from libvgpu.stub.cards import StubCard, StubGPU, StubProcess, StubSettings
from libvgpu.stub.roots import create_driver_root, library_directory, stub_environment

__all__ = [
    "StubCard",
    "StubGPU",
    "StubProcess",
    "StubSettings",
    "change_settings",
    "clear_faults",
    "create_card",
    "create_driver_root",
    "inject_fault",
    "inject_xid",
    "library_directory",
    "read_card",
    "stub_environment",
]
