/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda/oversubscribe.h"

#include "core/quota.h"
#include "cuda/memory.h"

#include <stddef.h>
#include <stdlib.h>

static int used;   /* this process has had memory on the host */
static int forced; /* in this process all managed memory lies on the device */

void vgpu__oversubscribe_first_look(void) {
    const char *setting = getenv("CUDA_MANAGED_FORCE_DEVICE_ALLOC");
    if (setting != NULL && atoi(setting) != 0)
        __atomic_store_n(&forced, 1, __ATOMIC_RELAXED);
}

/* Managed memory would move to the device when a kernel touches it, and so take more of that than the share has. Its
 * preferred location keeps it on the host (which takes a device that reaches the host's memory on its own). It starts
 * there, so that nothing of it is on the device at any time. */
static CUresult pin_to_host(CUdeviceptr dptr, uint64_t bytes, CUdevice ordinal) {
    enum { SET_PREFERRED_LOCATION = 3, SET_ACCESSED_BY = 5, CPU = -1 };
    CUresult result;
    int concurrent = 0;
    VGPU_CALL(result, cuDeviceGetAttribute, &concurrent, CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS, ordinal);
    if (result == CUDA_SUCCESS && !concurrent)
        result = CUDA_ERROR_NOT_SUPPORTED;
    if (result == CUDA_SUCCESS)
        VGPU_CALL(result, cuMemAdvise, dptr, bytes, SET_PREFERRED_LOCATION, CPU);
    if (result == CUDA_SUCCESS)
        VGPU_CALL(result, cuMemAdvise, dptr, bytes, SET_ACCESSED_BY, ordinal);
    if (result == CUDA_SUCCESS)
        VGPU_CALL(result, cuStreamAttachMemAsync, NULL, dptr, 0, CU_MEM_ATTACH_GLOBAL);
    return result;
}

static CUresult allocate(CUdeviceptr *dptr, uint64_t bytes, CUdevice ordinal) {
    CUresult result, ignored = CUDA_SUCCESS;
    VGPU_CALL(result, cuMemAllocManaged, dptr, bytes, CU_MEM_ATTACH_HOST);
    if (result != CUDA_SUCCESS)
        return result;
    result = pin_to_host(*dptr, bytes, ordinal);
    if (result != CUDA_SUCCESS)
        VGPU_CALL(ignored, cuMemFree_v2, *dptr);
    (void)ignored;
    return result;
}

CUresult vgpu__oversubscribe(CUdeviceptr *dptr, uint64_t bytes, CUresult refused) {
    CUresult result;
    CUcontext context;
    CUdevice ordinal;
    CUdeviceptr made = 0;
    struct vgpu_charge replaced;
    if (dptr == NULL || bytes == 0 || refused != CUDA_ERROR_OUT_OF_MEMORY || __atomic_load_n(&forced, __ATOMIC_RELAXED))
        return refused;
    struct vgpu_device *device = vgpu__cuda_current(&context, &result);
    if (device == NULL || vgpu_reserve_host(device, bytes) != VGPU_OK)
        return refused;
    VGPU_CALL(result, cuCtxGetDevice, &ordinal);
    if (result == CUDA_SUCCESS)
        result = allocate(&made, bytes, ordinal);
    if (result != CUDA_SUCCESS) {
        vgpu_credit_host(device, bytes);
        return refused;
    }
    struct vgpu_charge charge = {
        .key = made, .kind = VGPU_KIND_HOSTED, .bytes = bytes, .device = device, .owner = context};
    __atomic_store_n(&used, 1, __ATOMIC_RELAXED);
    if (vgpu_ptrmap_put(&charge, &replaced) && replaced.bytes > 0)
        vgpu_credit_host(replaced.device, replaced.bytes);
    vgpu_not_refused(device);
    *dptr = made;
    return CUDA_SUCCESS;
}

bool vgpu__oversubscribed(void) {
    return __atomic_load_n(&used, __ATOMIC_RELAXED);
}
