/* SPDX-License-Identifier: Apache-2.0 */
/* Multicast: an object over the memory of several devices; it holds no memory of its own. */
#include "virtual.h"

CUresult stub_cuMulticastGetGranularity(size_t *granularity, const CUmulticastObjectProp *prop, int option) {
    struct device *device;
    REQUIRE(granularity && prop && option >= 0 && option <= 1, CUDA_ERROR_INVALID_VALUE);
    TRY(device_of(0, &device));
    *granularity = device->card.shared->vmm_bytes;
    return CUDA_SUCCESS;
}

CUresult stub_cuMulticastCreate(CUmemGenericAllocationHandle *handle, const CUmulticastObjectProp *prop) {
    struct device *device;
    REQUIRE(handle && prop && prop->numDevices && prop->size, CUDA_ERROR_INVALID_VALUE);
    TRY(device_of(0, &device));
    REQUIRE(prop->size % device->card.shared->vmm_bytes == 0, CUDA_ERROR_INVALID_VALUE);
    struct memory *memory = memory_make(device, MULTICAST_TAG, prop->size, 0);
    REQUIRE(memory, CUDA_ERROR_OUT_OF_MEMORY);
    memory->prop.requestedHandleTypes = (int)prop->handleTypes;
    *handle = (CUmemGenericAllocationHandle)memory;
    return CUDA_SUCCESS;
}

static struct memory *multicast_of(CUmemGenericAllocationHandle handle) {
    struct memory *memory = memory_of(handle);
    return memory && memory->tag == MULTICAST_TAG ? memory : NULL;
}

CUresult stub_cuMulticastAddDevice(CUmemGenericAllocationHandle handle, CUdevice ordinal) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    return multicast_of(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult stub_cuMulticastBindMem(CUmemGenericAllocationHandle handle, size_t offset,
                                 CUmemGenericAllocationHandle memory_handle, size_t memory_offset, size_t size,
                                 unsigned long long flags) {
    struct memory *object = multicast_of(handle), *memory = memory_of(memory_handle);
    REQUIRE(object && memory && flags == 0 && size, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(offset + size <= object->size && memory_offset + size <= memory->size, CUDA_ERROR_INVALID_VALUE);
    return CUDA_SUCCESS;
}

CUresult stub_cuMulticastBindAddr(CUmemGenericAllocationHandle handle, size_t offset, CUdeviceptr dptr, size_t size,
                                  unsigned long long flags) {
    struct memory *object = multicast_of(handle);
    void *bytes;
    REQUIRE(object && flags == 0 && offset + size <= object->size, CUDA_ERROR_INVALID_VALUE);
    return device_bytes(dptr, size, true, &bytes);
}

CUresult stub_cuMulticastBindMem_v2(CUmemGenericAllocationHandle handle, CUdevice dev, size_t offset,
                                    CUmemGenericAllocationHandle memory, size_t memory_offset, size_t size,
                                    unsigned long long flags) {
    (void)dev;
    return stub_cuMulticastBindMem(handle, offset, memory, memory_offset, size, flags);
}

CUresult stub_cuMulticastBindAddr_v2(CUmemGenericAllocationHandle handle, CUdevice dev, size_t offset, CUdeviceptr dptr,
                                     size_t size, unsigned long long flags) {
    (void)dev;
    return stub_cuMulticastBindAddr(handle, offset, dptr, size, flags);
}

CUresult stub_cuMulticastUnbind(CUmemGenericAllocationHandle handle, CUdevice ordinal, size_t offset, size_t size) {
    (void)ordinal, (void)offset, (void)size;
    return multicast_of(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* ---- Not simulated: an application must not get here ---- */

CUresult stub_cuMemMapArrayAsync(CUarrayMapInfo *list, unsigned count, CUstream handle) {
    (void)list, (void)count, (void)handle;
    return CUDA_SUCCESS;
}

CUresult stub_cuLogicalEndpointBindMem(CUlogicalEndpointId endpoint, CUdevice dev, uint64_t offset,
                                       CUmemGenericAllocationHandle memory, uint64_t memory_offset, uint64_t size,
                                       unsigned long long flags) {
    (void)endpoint, (void)dev, (void)offset, (void)memory, (void)memory_offset, (void)size, (void)flags;
    return CUDA_SUCCESS;
}

CUresult stub_cuLogicalEndpointBindAddr(CUlogicalEndpointId endpoint, CUdevice dev, uint64_t offset, void *address,
                                        uint64_t size, unsigned long long flags) {
    (void)endpoint, (void)dev, (void)offset, (void)address, (void)size, (void)flags;
    return CUDA_SUCCESS;
}
