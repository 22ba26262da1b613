/* SPDX-License-Identifier: Apache-2.0
 *
 * Stream-ordered memory and pools (poolrecords.h says what is charged). What a share has no room for goes to the host
 * where it may: at once and not in stream order, which is earlier than was asked for.
 */
#include "cuda/pools.h"

#include "core/quota.h"
#include "cuda/launch.h"
#include "cuda/memory.h"
#include "cuda/oversubscribe.h"
#include "cuda/poolrecords.h"

#include <stddef.h>

/* ---- Allocating ---- */

/* A call of the driver that allocates: the two functions and their per-thread twins differ in little. */
struct request {
    CUdeviceptr *dptr;
    size_t bytes;
    CUmemoryPool pool; /* NULL: cuMemAllocAsync */
    CUstream stream;
    bool per_thread;
};

static CUresult forward(const struct request *r) {
    CUresult result;
    if (r->pool != NULL && r->per_thread)
        VGPU_CALL(result, cuMemAllocFromPoolAsync_ptsz, r->dptr, r->bytes, r->pool, r->stream);
    else if (r->pool != NULL)
        VGPU_CALL(result, cuMemAllocFromPoolAsync, r->dptr, r->bytes, r->pool, r->stream);
    else if (r->per_thread)
        VGPU_CALL(result, cuMemAllocAsync_ptsz, r->dptr, r->bytes, r->stream);
    else
        VGPU_CALL(result, cuMemAllocAsync, r->dptr, r->bytes, r->stream);
    return result;
}

static void undo(const struct request *r) {
    CUresult ignored;
    if (r->per_thread)
        VGPU_CALL(ignored, cuMemFreeAsync_ptsz, *r->dptr, r->stream);
    else
        VGPU_CALL(ignored, cuMemFreeAsync, *r->dptr, r->stream);
    (void)ignored;
}

/* Reserve for the request, from what the pool holds too much if need be. False: neither has room. */
static bool reserve(struct vgpu__pool *pool, uint64_t bytes, uint64_t *reserved) {
    *reserved = bytes;
    if (vgpu_reserve(pool->device, bytes) == VGPU_OK)
        return true;
    if (vgpu__pool_shrink_all(pool->device, true)) {
        vgpu_not_refused(pool->device); /* the second answer counts */
        if (vgpu_reserve(pool->device, bytes) == VGPU_OK)
            return true;
    }
    /* What is freed on a stream but not done yet cannot be trimmed, but can be used again in stream order. */
    *reserved = 0;
    bool again = pool->charged_bytes >= pool->live_bytes && pool->charged_bytes - pool->live_bytes >= bytes;
    if (again)
        vgpu_not_refused(pool->device);
    return again;
}

/* *over: the share has no room for it. */
static CUresult allocate_from(struct vgpu__pool *pool, const struct request *r, bool *over) {
    uint64_t reserved;
    *over = !reserve(pool, r->bytes, &reserved);
    if (*over)
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = forward(r);
    if (result != CUDA_SUCCESS) {
        vgpu_credit(pool->device, reserved);
        return result;
    }
    pool->live_bytes += r->bytes;
    struct vgpu_charge replaced,
        charge = {.key = *r->dptr, .kind = VGPU_KIND_POOLED, .bytes = r->bytes, .device = pool->device, .owner = pool};
    if (vgpu__pool_charge_growth(pool, reserved) && vgpu_ptrmap_put(&charge, &replaced))
        return CUDA_SUCCESS;
    pool->live_bytes -= r->bytes;
    undo(r);
    vgpu__pool_shrink_all(pool->device, true);
    *over = true;
    return CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult allocate(struct request r) {
    CUresult result = CUDA_SUCCESS;
    CUcontext context;
    CUmemoryPool handle = r.pool;
    bool over = false;
    if (vgpu__launch_captured(r.per_thread ? vgpu__per_thread(r.stream) : r.stream))
        return forward(&r);
    if (vgpu__cuda_current(&context, &result) == NULL)
        return result;
    if (handle == NULL) {
        CUdevice ordinal;
        VGPU_CALL(result, cuCtxGetDevice, &ordinal);
        if (result == CUDA_SUCCESS)
            VGPU_CALL(result, cuDeviceGetMemPool, &handle, ordinal);
        if (result != CUDA_SUCCESS)
            return result;
    }
    vgpu__pools_enter();
    struct vgpu__pool *pool = vgpu__pool_of(handle);
    if (pool == NULL)
        result = CUDA_ERROR_OUT_OF_MEMORY;
    else if (pool->device == NULL)
        result = forward(&r);
    else
        result = allocate_from(pool, &r, &over);
    vgpu__pools_leave();
    return over ? vgpu__oversubscribe(r.dptr, r.bytes, result) : result;
}

CUresult cuMemAllocAsync(CUdeviceptr *dptr, size_t bytes, CUstream hStream) {
    VGPU_ENTER(cuMemAllocAsync, dptr, bytes, hStream);
    return allocate((struct request){dptr, bytes, NULL, hStream, false});
}

CUresult cuMemAllocAsync_ptsz(CUdeviceptr *dptr, size_t bytes, CUstream hStream) {
    VGPU_ENTER(cuMemAllocAsync_ptsz, dptr, bytes, hStream);
    return allocate((struct request){dptr, bytes, NULL, hStream, true});
}

CUresult cuMemAllocFromPoolAsync(CUdeviceptr *dptr, size_t bytes, CUmemoryPool pool, CUstream hStream) {
    VGPU_ENTER(cuMemAllocFromPoolAsync, dptr, bytes, pool, hStream);
    if (pool == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    return allocate((struct request){dptr, bytes, pool, hStream, false});
}

CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *dptr, size_t bytes, CUmemoryPool pool, CUstream hStream) {
    VGPU_ENTER(cuMemAllocFromPoolAsync_ptsz, dptr, bytes, pool, hStream);
    if (pool == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    return allocate((struct request){dptr, bytes, pool, hStream, true});
}

/* ---- Freeing ---- */

void vgpu__pooled_freed(const struct vgpu_charge *charge) {
    struct vgpu__pool *pool = charge->owner;
    if (pool == NULL)
        return;
    vgpu__pools_enter();
    pool->live_bytes -= charge->bytes < pool->live_bytes ? charge->bytes : pool->live_bytes;
    vgpu__pool_settle(pool);
    vgpu__pool_drop_if_unused(pool);
    vgpu__pools_leave();
}

/* Memory that is not from a pool may be freed in stream order too. What went to the host instead of into a pool must
 * be, whatever the driver thinks of that. */
#define FREE(symbol, dptr, hStream, stream)                                                                            \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        VGPU_ENTER(symbol, dptr, hStream);                                                                             \
        if (vgpu__launch_captured(stream))                                                                             \
            return VGPU_REAL(symbol)(dptr, hStream);                                                                   \
        struct vgpu_charge plain = vgpu__give(VGPU_KIND_POINTER, dptr), pooled = vgpu__give(VGPU_KIND_POOLED, dptr);   \
        struct vgpu_charge managed = vgpu__give(VGPU_KIND_MANAGED, dptr), host = vgpu__give(VGPU_KIND_HOSTED, dptr);   \
        VGPU_CALL(result, symbol, dptr, hStream);                                                                      \
        if (result != CUDA_SUCCESS && host.device != NULL)                                                             \
            VGPU_CALL(result, cuMemFree_v2, dptr);                                                                     \
        vgpu__given(&plain, result);                                                                                   \
        vgpu__given(&managed, result);                                                                                 \
        vgpu__given(&host, result);                                                                                    \
        return vgpu__given(&pooled, result);                                                                           \
    } while (0)

CUresult cuMemFreeAsync(CUdeviceptr dptr, CUstream hStream) {
    FREE(cuMemFreeAsync, dptr, hStream, hStream);
}

CUresult cuMemFreeAsync_ptsz(CUdeviceptr dptr, CUstream hStream) {
    FREE(cuMemFreeAsync_ptsz, dptr, hStream, vgpu__per_thread(hStream));
}

/* ---- Pools themselves ---- */

/* Whose memory a pool gives out: its device's; that of the current one for managed memory, which may lie on any. NULL:
 * memory of the host. False: of a device without a share. */
static bool device_of_pool(const CUmemPoolProps *props, struct vgpu_device **device, CUresult *result) {
    CUcontext context;
    *device = NULL;
    if (props == NULL)
        return true;
    if (props->location.type == CU_MEM_LOCATION_TYPE_DEVICE)
        *device = vgpu__cuda_device(props->location.id, result);
    else if (props->allocType == CU_MEM_ALLOCATION_TYPE_MANAGED)
        *device = vgpu__cuda_current(&context, result);
    else
        return true;
    return *device != NULL;
}

CUresult cuMemPoolCreate(CUmemoryPool *handle, const CUmemPoolProps *props) {
    CUresult result;
    struct vgpu_device *device;
    VGPU_ENTER(cuMemPoolCreate, handle, props);
    if (!vgpu__attached())
        return VGPU_REAL(cuMemPoolCreate)(handle, props);
    if (!device_of_pool(props, &device, &result))
        return result;
    vgpu__pools_enter();
    VGPU_CALL(result, cuMemPoolCreate, handle, props);
    if (result == CUDA_SUCCESS)
        vgpu__pool_remember(*handle, device);
    vgpu__pools_leave();
    return result;
}

/* What is still in use of a destroyed pool lives on until it is freed. */
CUresult cuMemPoolDestroy(CUmemoryPool handle) {
    CUresult result;
    VGPU_ENTER(cuMemPoolDestroy, handle);
    if (!vgpu__attached())
        return VGPU_REAL(cuMemPoolDestroy)(handle);
    vgpu__pools_enter();
    struct vgpu__pool *pool = vgpu__pool_find(handle);
    VGPU_CALL(result, cuMemPoolDestroy, handle);
    if (result == CUDA_SUCCESS && pool != NULL) {
        pool->handle = NULL;
        vgpu__pool_settle(pool);
        vgpu__pool_drop_if_unused(pool);
    }
    vgpu__pools_leave();
    return result;
}

CUresult cuMemPoolTrimTo(CUmemoryPool handle, size_t keep_bytes) {
    CUresult result;
    VGPU_ENTER(cuMemPoolTrimTo, handle, keep_bytes);
    VGPU_CALL(result, cuMemPoolTrimTo, handle, keep_bytes);
    if (result == CUDA_SUCCESS && vgpu__attached()) {
        vgpu__pools_enter();
        struct vgpu__pool *pool = vgpu__pool_find(handle);
        if (pool != NULL)
            vgpu__pool_settle(pool);
        vgpu__pools_leave();
    }
    return result;
}
