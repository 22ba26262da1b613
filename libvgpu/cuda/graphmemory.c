/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that graphs take when they are launched: a device keeps it for all of its graphs, and it is charged like a
 * pool.
 */
#include "core/quota.h"
#include "cuda/device.h"
#include "cuda/poolrecords.h"
#include "cuda/pools.h"

#include <stddef.h>

static uint64_t used_by_graphs(CUdevice ordinal) {
    unsigned long long used = 0;
    CUresult result;
    VGPU_CALL(result, cuDeviceGetGraphMemAttribute, ordinal, CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT, &used);
    return result == CUDA_SUCCESS ? used : 0;
}

/* Reserve for a graph what the pool does not have for it already. Trimming to make room takes of that, too. */
static bool reserve_for_graph(struct vgpu__pool *pool, uint64_t bytes) {
    do {
        uint64_t kept = pool->live_bytes + pool->coming_bytes;
        uint64_t have = pool->charged_bytes > kept ? pool->charged_bytes - kept : 0;
        uint64_t missing = bytes > have ? bytes - have : 0;
        if (vgpu_reserve(pool->device, missing) == VGPU_OK) {
            pool->charged_bytes += missing;
            return true;
        }
    } while (vgpu__pool_shrink_all(pool->device, true));
    return false;
}

/* A launched graph may use what its device's graphs hold already; it may also need all of its bytes anew. */
CUresult vgpu__pools_graph_launch(uint64_t bytes, bool first, CUresult (*launch)(void *), void *argument) {
    CUresult result;
    CUcontext context;
    CUdevice ordinal;
    struct vgpu_device *device = vgpu__cuda_current(&context, &result);
    if (device == NULL)
        return result;
    VGPU_CALL(result, cuCtxGetDevice, &ordinal);
    if (result != CUDA_SUCCESS)
        return result;
    vgpu__pools_enter();
    struct vgpu__pool *pool = vgpu__pool_of_graphs(ordinal, device);
    if (pool != NULL)
        pool->live_bytes = first ? used_by_graphs(ordinal) : 0;
    if (pool == NULL || !reserve_for_graph(pool, bytes)) {
        vgpu__pools_leave();
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    pool->coming_bytes += bytes; /* what is held may be trimmed before the driver takes it */
    vgpu__pools_leave();
    result = launch(argument);
    vgpu__pools_enter();
    pool->coming_bytes -= bytes;
    if (pool->coming_bytes == 0)
        vgpu__pool_charge_growth(pool, 0);
    else
        vgpu__pool_settle(pool);
    vgpu__pools_leave();
    return result;
}

CUresult cuDeviceGraphMemTrim(CUdevice ordinal) {
    CUresult result;
    VGPU_ENTER(cuDeviceGraphMemTrim, ordinal);
    VGPU_CALL(result, cuDeviceGraphMemTrim, ordinal);
    if (result == CUDA_SUCCESS && vgpu__attached()) {
        vgpu__pools_enter();
        struct vgpu__pool *pool = vgpu__pool_find_of_graphs(ordinal);
        if (pool != NULL)
            vgpu__pool_settle(pool);
        vgpu__pools_leave();
    }
    return result;
}
