"""Names, paths and environment variables that cross a process border. Each stands here once.

Used by every package; the C library repeats the container paths in `libvgpu/core/share.h`, and a test compares the two.
"""

from typing import Final, NewType

ClaimUID = NewType("ClaimUID", str)
DeviceName = NewType("DeviceName", str)
NodeName = NewType("NodeName", str)

# --- Kubernetes: driver, API group, classes ----------------------------------------------------------------------

DRIVER_NAME: Final = "vgpu.dra-driver.io"
"""Default driver name; settable with --driver-name. """
MAX_DRIVER_NAME: Final = 27
"""Characters. KEP-4381 allows 63, but a socket's path has no room for more where the kubelet's folder is a long one."""

API_GROUP: Final = "vgpu.dra-driver.io"
API_VERSION: Final = "v1alpha1"
GROUP_VERSION: Final = f"{API_GROUP}/{API_VERSION}"

VGPU_CONFIG_KIND: Final = "VGPUConfig"
NODE_INVENTORY_KIND: Final = "NodeInventory"
NODE_INVENTORY_PLURAL: Final = "nodeinventories"

RESOURCE_GROUP: Final = "resource.k8s.io"
RESOURCE_VERSIONS: Final = ("v1", "v1beta2", "v1beta1")
"""Versions of resource.k8s.io that the driver speaks, best first."""
TAINT_RULE_VERSIONS: Final = ("v1", "v1beta2", "v1alpha3")
"""Versions of resource.k8s.io that may have DeviceTaintRules, best first: 1.37, 1.36, and 1.33 to 1.35."""

DEVICE_CLASS_ANY: Final = "vgpu"


def device_class(vendor: str) -> str:
    """Return the name of a vendor's DeviceClass, such as `vgpu-nvidia`."""
    return f"{DEVICE_CLASS_ANY}-{vendor}"


# --- Devices: capacities and attributes ----------------------------------------------------------------------------
# Published and requested without a domain: the prefixed form did not match before Kubernetes 1.38.

CAPACITY_MEMORY: Final = "memory"
"""Device memory in bytes, in steps of MEMORY_STEP_BYTES."""
CAPACITY_CORES: Final = "cores"
"""Guaranteed compute in percent of one device, 0 to 100. 0 means: only idle time."""
CAPACITY_SHARES: Final = "shares"
"""Tenants on one device; every share takes exactly one."""

MEMORY_STEP_BYTES: Final = 1 << 20
CORES_PER_DEVICE: Final = 100
SHARES_PER_DEVICE: Final = 64
CORES_OF_A_PLACE: Final = 1
"""Booked for a share that asks for no cores on a GPU that a claim can have for itself; it guarantees no time."""

OFFER_MODE_COUNTERS: Final = "counters"
"""The mode in which a GPU's own device stands for all of it, and is allocated without amounts."""

ATTRIBUTE_VENDOR: Final = "vendor"
ATTRIBUTE_UUID: Final = "uuid"
ATTRIBUTE_PRODUCT_NAME: Final = "productName"
ATTRIBUTE_ARCHITECTURE: Final = "architecture"
ATTRIBUTE_COMPUTE_CAPABILITY: Final = "computeCapability"
ATTRIBUTE_DRIVER_VERSION: Final = "driverVersion"
ATTRIBUTE_RUNTIME_VERSION: Final = "runtimeVersion"
ATTRIBUTE_TYPE: Final = "type"
ATTRIBUTE_PROFILE: Final = "profile"
"""Of a MIG device, such as 1g.10gb."""
ATTRIBUTE_OVERSUBSCRIBED: Final = "oversubscribed"
"""True where more memory or cores of a device are offered than it has; absent elsewhere."""
ATTRIBUTE_PCIE_ROOT: Final = "resource.kubernetes.io/pcieRoot"
ATTRIBUTE_PCI_BUS_ID: Final = "resource.kubernetes.io/pciBusID"
ATTRIBUTE_NUMA_NODE: Final = "resource.kubernetes.io/numaNode"

ATTRIBUTE_LINK_ISLAND: Final = "linkIsland"
"""Equal for devices that reach each other over NVLink; unique in the cluster, so that islands of nodes do not mix."""
ATTRIBUTE_MIG_CAPABLE: Final = "migCapable"

DEVICE_TYPE_GPU: Final = "gpu"
DEVICE_TYPE_MIG: Final = "mig"
"""A part of a GPU that its hardware made: given out whole."""

TAINT_UNHEALTHY: Final = f"{API_GROUP}/unhealthy"
"""Key of the taint of a device whose driver reports a fault."""
TAINT_CORDONED: Final = f"{API_GROUP}/cordoned"
"""Key of the taint of a device that an operator has cordoned."""


def device_name(uuid: str) -> DeviceName:
    """Return the device's name in a ResourceSlice: its UUID in lower case.

    Never derived from an index: a name must survive another GPU that drops off the bus.
    """
    return DeviceName(uuid.lower())


# --- Annotations ---------------------------------------------------------------------------------------------------

ANNOTATION_LIMITS: Final = f"{API_GROUP}/limits"
"""On a ResourceClaim: changes its shares while they live, such as {"memory": "4Gi", "suspended": true}."""
ANNOTATION_CRD_REVISION: Final = f"{API_GROUP}/crd-revision"
"""On the CRD of NodeInventory: a count that goes up with each release that changes it."""

# --- CDI -----------------------------------------------------------------------------------------------------------

CDI_CLASS_GPU: Final = "gpu"
"""One static spec per node with a device per GPU: device nodes and driver libraries."""
CDI_CLASS_CLAIM: Final = "claim"
"""One spec per claim with a device per share: limits, books and the library."""


def share_name(claim_uid: str, index: int) -> str:
    """Return the share of the index-th result of a claim's allocation; the order of results never changes."""
    return f"{claim_uid}-{index}"


# --- Files on the node ---------------------------------------------------------------------------------------------

STATE_DIR: Final = "/var/lib/dra-driver-vgpu"
KUBELET_DIR: Final = "/var/lib/kubelet"
CDI_DIR: Final = "/var/run/cdi"

SHARES_SUBDIR: Final = "shares"
LIBRARY_SUBDIR: Final = "lib"
LIMITS_FILE: Final = "limits"
BOOKS_FILE: Final = "books"

# --- Files in the container ----------------------------------------------------------------------------------------

CONTAINER_SHARES_DIR: Final = "/run/vgpu/shares"
CONTAINER_LIBRARY_DIR: Final = "/usr/lib/vgpu"
CONTAINER_DRIVER_DIR: Final = "/usr/lib/vgpu-driver"
"""Where a container has the driver's own GATED_LIBRARIES; what it finds under their usual paths is the gate."""
GATED_LIBRARIES: Final = ("libcuda.so.1", "libnvidia-ml.so.1")
CONTAINER_PRELOAD_FILE: Final = "/etc/ld.so.preload"

# --- Environment ---------------------------------------------------------------------------------------------------

ENV_SHARES_DIR: Final = "VGPU_SHARES_DIR"
"""Where libvgpu looks for shares when CONTAINER_SHARES_DIR does not exist: set by `dra-driver run`."""
ENV_RUNTIME_DIR: Final = "DRA_DRIVER_RUNTIME_DIR"
"""Where `dra-driver run` keeps its shares, if not in a folder of the user that a reboot empties."""
ENV_STUB_DEVICE_DIR: Final = "VGPU_STUB_DEV_DIR"
"""Where the stub driver looks for its cards; /dev if unset. The real driver does not know it."""

# --- Events --------------------------------------------------------------------------------------------------------

EVENT_UNSATISFIABLE: Final = "VGPUUnsatisfiable"
"""Reason of the event on a claim (and its pod) that no device can serve now."""
EVENT_CONFIG_INVALID: Final = "VGPUConfigInvalid"
"""Reason of the event on a claim, a template or a DeviceClass whose VGPUConfig is wrong."""
EVENT_INVENTORY_INVALID: Final = "VGPUInventoryInvalid"
"""Reason of the event on a NodeInventory of which something cannot be read, or means no device."""
EVENT_INVENTORY_KEPT: Final = "VGPUInventoryKept"
"""Reason of the event on a NodeInventory that outlives its Node, for what an operator says in it."""
EVENT_OVERUSE: Final = "VGPUOveruse"
"""Reason of the event on a claim whose processes hold more device memory than its share, by the driver's count."""
EVENT_LIMITS_INVALID: Final = "VGPULimitsInvalid"
"""Reason of the event on a claim whose annotation ANNOTATION_LIMITS is wrong."""
EVENT_SANDBOXED: Final = "VGPUSandboxed"
"""Reason of the event on a pod in a sandbox, and on the claim that it uses: it gets nothing of a GPU there."""

REASON_INSUFFICIENT_MEMORY: Final = "CardInsufficientMemory"
REASON_INSUFFICIENT_CORES: Final = "CardInsufficientCore"
REASON_INSUFFICIENT_SHARES: Final = "CardSharesExhausted"
REASON_UNHEALTHY: Final = "CardUnhealthy"
REASON_CORDONED: Final = "CardCordoned"
REASON_TAINTED: Final = "CardTainted"
REASON_NOT_SELECTED: Final = "CardNotSelected"
REASON_EXCLUSIVE: Final = "CardInUse"
