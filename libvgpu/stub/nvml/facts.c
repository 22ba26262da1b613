/* SPDX-License-Identifier: Apache-2.0 */
/* What NVML says a device is. */
#include "nvml/inside.h"

#include <stdio.h>
#include <string.h>

/* Most answers are one number of a device. */
#define NUMBER(function, type, value)                                                                                  \
    EXPORT nvmlReturn_t function(nvmlDevice_t device, type *out) {                                                     \
        TRY(check_device(device));                                                                                     \
        REQUIRE(out, NVML_ERROR_INVALID_ARGUMENT);                                                                     \
        const struct stub_card *shared = device->card.shared;                                                          \
        (void)shared;                                                                                                  \
        *out = (type)(value);                                                                                          \
        return NVML_SUCCESS;                                                                                           \
    }

#define TEXT(function, text)                                                                                           \
    EXPORT nvmlReturn_t function(nvmlDevice_t device, char *out, unsigned length) {                                    \
        TRY(check_device(device));                                                                                     \
        return give_text(out, length, text);                                                                           \
    }

TEXT(nvmlDeviceGetName, device->card.shared->name)
TEXT(nvmlDeviceGetUUID, device->card.shared->uuid)
TEXT(nvmlDeviceGetSerial, device->card.shared->serial)
TEXT(nvmlDeviceGetBoardPartNumber, "900-00000-0000-000")
TEXT(nvmlDeviceGetVbiosVersion, "96.00.00.00.00")

NUMBER(nvmlDeviceGetBrand, int, NVML_BRAND_NVIDIA)
NUMBER(nvmlDeviceGetIndex, unsigned, device->index)
NUMBER(nvmlDeviceGetMinorNumber, unsigned, device->card.minor)
NUMBER(nvmlDeviceGetNumGpuCores, unsigned, 128 * shared->multiprocessors)
NUMBER(nvmlDeviceGetMemoryBusWidth, unsigned, 5120)
NUMBER(nvmlDeviceGetMaxMigDeviceCount, unsigned, shared->mig_mode ? 7 : 0)
NUMBER(nvmlDeviceIsMigDeviceHandle, unsigned, shared->parent_uuid[0] != 0)
NUMBER(nvmlDeviceGetPersistenceMode, int, NVML_FEATURE_ENABLED)
NUMBER(nvmlDeviceGetComputeMode, int, NVML_COMPUTEMODE_DEFAULT)
NUMBER(nvmlDeviceGetDisplayActive, int, NVML_FEATURE_DISABLED)
NUMBER(nvmlDeviceGetDisplayMode, int, NVML_FEATURE_DISABLED)
NUMBER(nvmlDeviceGetAccountingMode, int, NVML_FEATURE_DISABLED)

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    TRY(check_device(device));
    REQUIRE(pci, NVML_ERROR_INVALID_ARGUMENT);
    const struct stub_card *shared = device->card.shared;
    memset(pci, 0, sizeof *pci);
    pci->domain = shared->pci_domain;
    pci->bus = shared->pci_bus;
    pci->device = shared->pci_device;
    pci->pciDeviceId = shared->pci_device_id;
    pci->pciSubSystemId = 0x16C110DE;
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", pci->domain & 0xffff, pci->bus & 0xff,
             pci->device & 0xff);
    snprintf(pci->busId, sizeof pci->busId, "%08X:%02X:%02X.0", pci->domain, pci->bus, pci->device);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    return nvmlDeviceGetPciInfo_v3(device, pci);
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    return nvmlDeviceGetPciInfo_v3(device, pci);
}

EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    TRY(check_device(device));
    REQUIRE(major && minor, NVML_ERROR_INVALID_ARGUMENT);
    *major = (int)device->card.shared->compute_major;
    *minor = (int)device->card.shared->compute_minor;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, unsigned *architecture) {
    TRY(check_device(device));
    REQUIRE(architecture, NVML_ERROR_INVALID_ARGUMENT);
    unsigned capability = 10 * device->card.shared->compute_major + device->card.shared->compute_minor;
    *architecture = capability >= 100  ? NVML_DEVICE_ARCH_BLACKWELL
                    : capability >= 90 ? NVML_DEVICE_ARCH_HOPPER
                    : capability == 89 ? NVML_DEVICE_ARCH_ADA
                    : capability >= 80 ? NVML_DEVICE_ARCH_AMPERE
                    : capability == 75 ? NVML_DEVICE_ARCH_TURING
                                       : NVML_DEVICE_ARCH_VOLTA;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetNumaNodeId(nvmlDevice_t device, unsigned *node) {
    TRY(check_device(device));
    REQUIRE(node, NVML_ERROR_INVALID_ARGUMENT);
    REQUIRE(device->card.shared->numa_node >= 0, NVML_ERROR_NOT_SUPPORTED);
    *node = (unsigned)device->card.shared->numa_node;
    return NVML_SUCCESS;
}

/* Every simulated card is near every CPU. */
EXPORT nvmlReturn_t nvmlDeviceGetCpuAffinity(nvmlDevice_t device, unsigned size, unsigned long *set) {
    TRY(check_device(device));
    REQUIRE(size && set, NVML_ERROR_INVALID_ARGUMENT);
    memset(set, 0xff, size * sizeof *set);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryAffinity(nvmlDevice_t device, unsigned size, unsigned long *set, int scope) {
    (void)scope;
    TRY(check_device(device));
    REQUIRE(size && set, NVML_ERROR_INVALID_ARGUMENT);
    memset(set, 0, size * sizeof *set);
    int node = device->card.shared->numa_node;
    if (node >= 0 && (unsigned)node < size * 8 * sizeof *set)
        set[(size_t)node / (8 * sizeof *set)] |= 1ul << ((size_t)node % (8 * sizeof *set));
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending) {
    TRY(check_device(device));
    REQUIRE(current && pending, NVML_ERROR_INVALID_ARGUMENT);
    *current = *pending = device->card.shared->mig_mode;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index, nvmlDevice_t *mig) {
    TRY(check_device(device));
    REQUIRE(mig, NVML_ERROR_INVALID_ARGUMENT);
    *mig = part_of(device, index);
    return *mig ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t mig, nvmlDevice_t *device) {
    TRY(check_device(mig));
    REQUIRE(device && (*device = parent_of(mig)), NVML_ERROR_INVALID_ARGUMENT);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t a, nvmlDevice_t b, int *level) {
    enum { TOPOLOGY_INTERNAL = 0, TOPOLOGY_NODE = 40, TOPOLOGY_SYSTEM = 50 };
    TRY(check_device(a));
    TRY(check_device(b));
    REQUIRE(level, NVML_ERROR_INVALID_ARGUMENT);
    bool near = a->card.shared->numa_node == b->card.shared->numa_node;
    *level = a == b ? TOPOLOGY_INTERNAL : near ? TOPOLOGY_NODE : TOPOLOGY_SYSTEM;
    return NVML_SUCCESS;
}
