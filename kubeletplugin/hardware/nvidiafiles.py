"""What containers get of NVIDIA's driver: found in the driver root by us, or said by a CDI spec of NVIDIA's toolkit.

Called by the NVIDIA backend. The two libraries that the gate stands for are always found by us.
"""

from dataclasses import replace

from api import names
from kubeletplugin.hardware.ctkspecs import ToolkitSpec
from kubeletplugin.hardware.devices import Device, Driver
from kubeletplugin.hardware.driverroots import DriverRoot

_LIBRARIES = (
    "libcuda.so.1",
    "libnvidia-ml.so.1",
    "libcudadebugger.so.1",
    "libnvidia-cfg.so.1",
    "libnvidia-gpucomp.so.*",
    "libnvidia-nvvm.so.4",
    "libnvidia-nvvm70.so.4",
    "libnvidia-ptxjitcompiler.so.1",
    "libnvidia-tileiras.so.*",
    *("libnvrm_*.so", "libnvos.so", "libnvsocsys.so", "libnvsci*.so*"),  # what libcuda needs on Jetson Linux
)
_UNCOUNTED_LIBRARIES = ("libnvidia-opencl.so.1",)
"""Of APIs that no share counts. Those of graphics are for NVIDIA's toolkit to find: they need files of many kinds."""
_PROGRAMS = ("nvidia-smi",)
_CONTROL_NODES = (
    *("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"),
    *("nvmap", "nvhost-ctrl", "host1x-fence", "nvsciipc"),  # of a Tegra chip
)


def driver_of(root: DriverRoot, toolkit: ToolkitSpec | None, uncounted_apis: bool = False) -> Driver:
    """Return what each container gets.

    Args:
        root: where the driver is.
        toolkit: a spec to take the rest from; None: there is none, all of it is found by us.
        uncounted_apis: with the libraries of APIs that no share counts (those in the toolkit's spec are its reader's).
    """
    control_nodes = root.device_files(_CONTROL_NODES)
    if toolkit is not None:
        files = (*control_nodes, *root.libraries(names.GATED_LIBRARIES))
        return Driver(files, toolkit.common, toolkit.version)
    libraries = root.libraries((*_LIBRARIES, *(_UNCOUNTED_LIBRARIES if uncounted_apis else ())))
    return Driver((*control_nodes, *libraries, *root.binaries(_PROGRAMS)))


def with_edits(device: Device, toolkit: ToolkitSpec | None) -> Device:
    """Return a device with what the toolkit's spec says of it."""
    edits = toolkit.of_device(device.uuid, device.index) if toolkit and device.type == names.DEVICE_TYPE_GPU else None
    return replace(device, toolkit=edits) if edits else device
