/* SPDX-License-Identifier: Apache-2.0
 *
 * Start of the driver, and the view of a device: total and free memory are the share's.
 */
#include "cuda/device.h"

#include "core/lock.h"
#include "core/log.h"
#include "cuda/blocks.h"
#include "cuda/footprint.h"
#include "cuda/launch.h"
#include "cuda/localmemory.h"
#include "cuda/managed.h"
#include "cuda/memory.h"
#include "cuda/oversubscribe.h"
#include "cuda/pools.h"
#include "cuda/rounding.h"
#include "cuda/visible.h"
#include "cuda/vmm.h"
#include "preload/libc.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

static void format_uuid(const CUuuid *uuid, char text[48]) {
    const unsigned char *b = (const unsigned char *)uuid->bytes;
    snprintf(text, 48, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1], b[2],
             b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

/* Ask the driver who an ordinal is, once. */
static struct vgpu_device *bind(struct vgpu_process *process, CUdevice ordinal, CUresult *result) {
    CUuuid uuid;
    if (vgpu__cuda_exists(VGPU_FN_cuDeviceGetUuid_v2)) /* names a MIG instance where the older one names its GPU */
        VGPU_CALL(*result, cuDeviceGetUuid_v2, &uuid, ordinal);
    else
        VGPU_CALL(*result, cuDeviceGetUuid, &uuid, ordinal);
    if (*result != CUDA_SUCCESS)
        return NULL;
    char text[48];
    format_uuid(&uuid, text);
    struct vgpu_device *device = vgpu_device_by_uuid(process, text);
    if (device == NULL) {
        vgpu_complain("device %d (%s): found no share of it, expected one; the device is refused", ordinal, text);
        device = &vgpu_refused;
    }
    __atomic_store_n(&process->by_ordinal[ordinal], device, __ATOMIC_RELEASE);
    return device;
}

struct vgpu_device *vgpu__cuda_device(CUdevice ordinal, CUresult *result) {
    struct vgpu_process *process = vgpu_process();
    *result = CUDA_ERROR_NOT_PERMITTED;
    if (process == NULL)
        return NULL;
    if (ordinal < 0 || ordinal >= VGPU_MAX_ORDINALS) {
        *result = CUDA_ERROR_INVALID_DEVICE;
        return NULL;
    }
    struct vgpu_device *device = __atomic_load_n(&process->by_ordinal[ordinal], __ATOMIC_ACQUIRE);
    if (device == NULL)
        device = bind(process, ordinal, result);
    if (device == &vgpu_refused) {
        *result = CUDA_ERROR_NOT_PERMITTED;
        return NULL;
    }
    return device;
}

struct vgpu_device *vgpu__cuda_current(CUcontext *context, CUresult *result) {
    CUdevice ordinal;
    *context = NULL;
    if (vgpu_process() == NULL) {
        *result = CUDA_ERROR_NOT_PERMITTED;
        return NULL;
    }
    VGPU_CALL(*result, cuCtxGetCurrent, context);
    if (*result == CUDA_SUCCESS)
        VGPU_CALL(*result, cuCtxGetDevice, &ordinal);
    struct vgpu_device *device = *result == CUDA_SUCCESS ? vgpu__cuda_device(ordinal, result) : NULL;
    if (device != NULL)
        vgpu__contexts_see(*context, device, ordinal);
    return device;
}

static struct vgpu_lock starting = VGPU_UNLOCKED; /* the driver's start, with its environment */
/* The driver loads tools while it starts (CUDA_INJECTION64_PATH), and they may start it too. */
static __thread bool starting_here __attribute__((tls_model("initial-exec")));

static void forget_parent(void) {
    vgpu__holding = 0;
    starting_here = false;
    vgpu_lock_renew(&starting);
    vgpu__memory_forget();
    vgpu__managed_forget();
    vgpu__contexts_forget();
    vgpu__pools_forget();
    vgpu__graph_memory_forget();
    vgpu__vmm_forget();
    vgpu__footprint_forget();
    vgpu__rounding_forget();
    vgpu__blocks_forget();
    vgpu__local_forget();
    vgpu__launch_forget();
}

/* With one device, launches need not ask for the current context. */
static void find_only_device(struct vgpu_process *process) {
    int count = 0;
    CUresult result;
    VGPU_CALL(result, cuDeviceGetCount, &count);
    if (result == CUDA_SUCCESS && count == 1)
        __atomic_store_n(&process->only_device, vgpu__cuda_device(0, &result), __ATOMIC_RELEASE);
}

CUresult cuInit(unsigned int flags) {
    CUresult result;
    vgpu_at_fork_child(forget_parent);
    vgpu__libc_use_clock();
    struct vgpu_process *process = vgpu_process();
    if (process == NULL)
        return CUDA_ERROR_NOT_PERMITTED;
    if (starting_here)
        return VGPU_REAL(cuInit)(flags);
    vgpu_lock(&starting);
    vgpu__callers_find();
    bool first = !process->started;
    struct vgpu_setting setting;
    if (first) {
        vgpu__oversubscribe_first_look();
        vgpu__footprint_first_look();
    }
    bool changed = first && vgpu__visible_begin(process, &setting);
    starting_here = true;
    VGPU_CALL(result, cuInit, flags);
    starting_here = false;
    if (changed)
        vgpu__visible_end(&setting);
    process->started |= result == CUDA_SUCCESS;
    vgpu_unlock(&starting);
    if (result == CUDA_SUCCESS)
        find_only_device(process);
    /* After the driver's own, and so called before them. */
    if (first && result == CUDA_SUCCESS)
        atexit(vgpu__launch_process_ends);
    return result;
}

/* ---- The view ---- */

static CUresult show_total(size_t *bytes, CUdevice ordinal) {
    CUresult result;
    VGPU_CALL(result, cuDeviceTotalMem_v2, bytes, ordinal);
    if (result != CUDA_SUCCESS)
        return result;
    struct vgpu_device *device = vgpu__cuda_device(ordinal, &result);
    uint64_t total = 0, used;
    if (device != NULL)
        vgpu_usage(device, &total, &used);
    *bytes = total;
    return device != NULL ? CUDA_SUCCESS : result;
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice ordinal) {
    if (VGPU_BY_DRIVER())
        return VGPU_REAL(cuDeviceTotalMem_v2)(bytes, ordinal);
    return show_total(bytes, ordinal);
}

static unsigned int clip(uint64_t bytes) {
    return bytes < UINT32_MAX ? (unsigned int)bytes : UINT32_MAX;
}

CUresult cuDeviceTotalMem(unsigned int *bytes, CUdevice ordinal) {
    size_t total = 0;
    if (VGPU_BY_DRIVER())
        return VGPU_REAL(cuDeviceTotalMem)(bytes, ordinal);
    CUresult result = show_total(&total, ordinal);
    if (result == CUDA_SUCCESS)
        *bytes = clip(total);
    return result;
}

static CUresult show_info(size_t *free_bytes, size_t *total_bytes) {
    CUresult result;
    VGPU_CALL(result, cuMemGetInfo_v2, free_bytes, total_bytes);
    if (result != CUDA_SUCCESS)
        return result;
    CUcontext context;
    struct vgpu_device *device = vgpu__cuda_current(&context, &result);
    uint64_t total = 0, used = 0;
    if (device != NULL) {
        vgpu__vmm_settle();
        vgpu__pools_settle(device);
        vgpu__footprint_look_if_suspect(device);
        vgpu_usage(device, &total, &used);
    }
    *total_bytes = total;
    *free_bytes = used < total ? total - used : 0;
    return device != NULL ? CUDA_SUCCESS : result;
}

CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    if (VGPU_BY_DRIVER())
        return VGPU_REAL(cuMemGetInfo_v2)(free_bytes, total_bytes);
    return show_info(free_bytes, total_bytes);
}

CUresult cuMemGetInfo(unsigned int *free_bytes, unsigned int *total_bytes) {
    size_t free_now = 0, total = 0;
    if (VGPU_BY_DRIVER())
        return VGPU_REAL(cuMemGetInfo)(free_bytes, total_bytes);
    CUresult result = show_info(&free_now, &total);
    if (result == CUDA_SUCCESS) {
        *free_bytes = clip(free_now);
        *total_bytes = clip(total);
    }
    return result;
}
