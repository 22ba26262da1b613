/* SPDX-License-Identifier: Apache-2.0 */
/* What the driver says about a device. Facts come from the card's file; the rest is what such a card would say. */
#include "driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

CUresult stub_cuDeviceGet(CUdevice *out, int ordinal) {
    struct device *device;
    REQUIRE(out, CUDA_ERROR_INVALID_VALUE);
    TRY(device_of(ordinal, &device));
    *out = ordinal;
    return CUDA_SUCCESS;
}

CUresult stub_cuDeviceGetCount(int *count) {
    REQUIRE(driver.ready, CUDA_ERROR_NOT_INITIALIZED);
    REQUIRE(count, CUDA_ERROR_INVALID_VALUE);
    *count = driver.device_count;
    return CUDA_SUCCESS;
}

CUresult stub_cuDeviceGetName(char *name, int length, CUdevice ordinal) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    REQUIRE(name && length > 0, CUDA_ERROR_INVALID_VALUE);
    snprintf(name, (size_t)length, "%s", device->card.shared->name);
    return CUDA_SUCCESS;
}

static void put_uuid(CUuuid *uuid, const char *from) {
    int at = 0;
    for (const char *text = from + 4; *text && at < 32; text++) {
        if (*text == '-')
            continue;
        int digit = *text <= '9' ? *text - '0' : (*text | 0x20) - 'a' + 10;
        uuid->bytes[at / 2] = (char)(at % 2 ? (uuid->bytes[at / 2] << 4) | digit : digit);
        at++;
    }
}

CUresult stub_cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice ordinal) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    REQUIRE(uuid, CUDA_ERROR_INVALID_VALUE);
    put_uuid(uuid, device->card.shared->uuid);
    return CUDA_SUCCESS;
}

/* The older call names the card of a part. */
CUresult stub_cuDeviceGetUuid(CUuuid *uuid, CUdevice ordinal) {
    struct device *device;
    TRY(stub_cuDeviceGetUuid_v2(uuid, ordinal));
    TRY(device_of(ordinal, &device));
    if (device->card.shared->parent_uuid[0])
        put_uuid(uuid, device->card.shared->parent_uuid);
    return CUDA_SUCCESS;
}

CUresult stub_cuDeviceGetLuid(char *luid, unsigned *mask, CUdevice ordinal) {
    (void)luid, (void)mask, (void)ordinal;
    return CUDA_ERROR_NOT_SUPPORTED; /* Windows only */
}

CUresult stub_cuDeviceTotalMem_v2(size_t *bytes, CUdevice ordinal) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    REQUIRE(bytes, CUDA_ERROR_INVALID_VALUE);
    *bytes = device->card.shared->memory_bytes;
    return CUDA_SUCCESS;
}

CUresult stub_cuDeviceTotalMem(unsigned *bytes, CUdevice ordinal) {
    size_t total;
    REQUIRE(bytes, CUDA_ERROR_INVALID_VALUE);
    TRY(stub_cuDeviceTotalMem_v2(&total, ordinal));
    *bytes = total > UINT32_MAX ? UINT32_MAX : (unsigned)total;
    return CUDA_SUCCESS;
}

/* Attributes that are the same on every simulated card. What is not listed is 0. */
static const struct {
    CUdevice_attribute attribute;
    int value;
} fixed_attributes[] = {
    {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, 1024},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, 1024},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, 64},
    {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, 2147483647},
    {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 65535},
    {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, 65535},
    {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 49152},
    {CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY, 65536},
    {CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32},
    {CU_DEVICE_ATTRIBUTE_MAX_PITCH, 2147483647},
    {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, 65536},
    {CU_DEVICE_ATTRIBUTE_CLOCK_RATE, 1980000},
    {CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT, 512},
    {CU_DEVICE_ATTRIBUTE_GPU_OVERLAP, 1},
    {CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY, 1},
    {CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS, 1},
    {CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, 2619000},
    {CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, 5120},
    {CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, 52428800},
    {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, THREADS_PER_MULTIPROCESSOR},
    {CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT, 3},
    {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
    {CU_DEVICE_ATTRIBUTE_TEXTURE_PITCH_ALIGNMENT, 32},
    {CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, 233472},
    {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR, 65536},
    {CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY, 1},
    {CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS, 1},
    {CU_DEVICE_ATTRIBUTE_COMPUTE_PREEMPTION_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM, 1},
    {CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH, 1},
    {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 232448},
    {CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR, 32},
    {CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_MEMPOOL_SUPPORTED_HANDLE_TYPES, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR},
    {CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED, 1},
};

CUresult stub_cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice ordinal) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    REQUIRE(value && attribute > 0 && attribute < 200, CUDA_ERROR_INVALID_VALUE);
    const struct stub_card *shared = device->card.shared;
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
        *value = (int)shared->multiprocessors;
        return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
        *value = (int)shared->compute_major;
        return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
        *value = (int)shared->compute_minor;
        return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID:
        *value = (int)shared->pci_domain;
        return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID:
        *value = (int)shared->pci_bus;
        return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID:
        *value = (int)shared->pci_device;
        return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS:
        *value = shared->pageable_access != 0;
        return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID:
        *value = shared->numa_node;
        return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_NUMA_ID:
        *value = -1;
        return CUDA_SUCCESS;
    default:
        break;
    }
    *value = 0;
    for (size_t i = 0; i < sizeof fixed_attributes / sizeof *fixed_attributes; i++)
        if (fixed_attributes[i].attribute == attribute)
            *value = fixed_attributes[i].value;
    return CUDA_SUCCESS;
}

CUresult stub_cuDeviceGetProperties(CUdevprop *prop, CUdevice ordinal) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    REQUIRE(prop, CUDA_ERROR_INVALID_VALUE);
    *prop = (CUdevprop){.maxThreadsPerBlock = 1024,
                        .maxThreadsDim = {1024, 1024, 64},
                        .maxGridSize = {2147483647, 65535, 65535},
                        .sharedMemPerBlock = 49152,
                        .totalConstantMemory = 65536,
                        .SIMDWidth = 32,
                        .memPitch = 2147483647,
                        .regsPerBlock = 65536,
                        .clockRate = 1980000,
                        .textureAlign = 512};
    return CUDA_SUCCESS;
}

CUresult stub_cuDeviceComputeCapability(int *major, int *minor, CUdevice ordinal) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    REQUIRE(major && minor, CUDA_ERROR_INVALID_VALUE);
    *major = (int)device->card.shared->compute_major;
    *minor = (int)device->card.shared->compute_minor;
    return CUDA_SUCCESS;
}

CUresult stub_cuDeviceGetPCIBusId(char *id, int length, CUdevice ordinal) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    REQUIRE(id && length > 0, CUDA_ERROR_INVALID_VALUE);
    const struct stub_card *shared = device->card.shared;
    snprintf(id, (size_t)length, "%04X:%02X:%02X.0", shared->pci_domain, shared->pci_bus, shared->pci_device);
    return CUDA_SUCCESS;
}

CUresult stub_cuDeviceGetByPCIBusId(CUdevice *out, const char *id) {
    unsigned domain = 0, bus, slot;
    REQUIRE(driver.ready, CUDA_ERROR_NOT_INITIALIZED);
    REQUIRE(out && id && (sscanf(id, "%x:%x:%x", &domain, &bus, &slot) == 3 || sscanf(id, "%x:%x", &bus, &slot) == 2),
            CUDA_ERROR_INVALID_VALUE);
    for (int i = 0; i < driver.device_count; i++) {
        const struct stub_card *shared = driver.devices[i].card.shared;
        if (shared->pci_domain == domain && shared->pci_bus == bus && shared->pci_device == slot) {
            *out = i;
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_INVALID_DEVICE;
}

CUresult stub_cuDeviceCanAccessPeer(int *can, CUdevice ordinal, CUdevice peer) {
    struct device *device;
    REQUIRE(can, CUDA_ERROR_INVALID_VALUE);
    TRY(device_of(ordinal, &device));
    TRY(device_of(peer, &device));
    *can = ordinal != peer;
    return CUDA_SUCCESS;
}

CUresult stub_cuDeviceGetP2PAttribute(int *value, int attribute, CUdevice from, CUdevice to) {
    REQUIRE(value && attribute > 0 && from != to, CUDA_ERROR_INVALID_VALUE);
    return stub_cuDeviceCanAccessPeer(value, from, to);
}
