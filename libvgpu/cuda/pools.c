/* SPDX-License-Identifier: Apache-2.0
 *
 * Stream-ordered memory and pools (poolrecords.h says what is charged). What a share has no room for goes to the host
 * where it may: at once and not in stream order, which is earlier than was asked for.
 */
#include "cuda/pools.h"

#include "core/quota.h"
#include "cuda/launch.h"
#include "cuda/managed.h"
#include "cuda/memory.h"
#include "cuda/oversubscribe.h"
#include "cuda/place.h"
#include "cuda/poolrecords.h"
#include "cuda/vmm.h"

#include <stddef.h>

/* ---- Allocating ---- */

/* A call of the driver that allocates from a pool, or from its per-thread twin. */
struct request {
    size_t bytes;
    CUmemoryPool pool; /* NULL: the device's, which is looked up */
    CUstream stream;
    bool per_thread;
    CUdeviceptr *dptr; /* ours */
};

static CUstream stream_of(const struct request *r) {
    return r->per_thread ? vgpu__per_thread(r->stream) : r->stream;
}

static CUresult forward(const struct request *r) {
    CUresult result;
    if (r->per_thread)
        VGPU_CALL(result, cuMemAllocFromPoolAsync_ptsz, r->dptr, r->bytes, r->pool, r->stream);
    else
        VGPU_CALL(result, cuMemAllocFromPoolAsync, r->dptr, r->bytes, r->pool, r->stream);
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

/* Reserve for what the pool may grow by. Where that is more than there is room for, what it holds for nobody counts:
 * memory that was freed on another stream and is not done yet the driver may not use, and then it grows all the same.
 * False: no room. */
static bool reserve(struct vgpu__pool *pool, uint64_t bytes, bool use_idle, uint64_t *reserved) {
    uint64_t idle = pool->charged_bytes > pool->live_bytes ? pool->charged_bytes - pool->live_bytes : 0;
    *reserved = vgpu__pool_growth(bytes);
    if (vgpu_reserve(pool->device, *reserved) == VGPU_OK)
        return true;
    if (!use_idle || idle == 0)
        return false;
    vgpu_not_refused(pool->device); /* the second answer counts */
    *reserved = vgpu__pool_growth(bytes > idle ? bytes - idle : 0);
    return vgpu_reserve(pool->device, *reserved) == VGPU_OK;
}

/* One attempt. *over: the share has no room for it. */
static CUresult try_allocate(struct vgpu__pool *pool, const struct request *r, bool use_idle, bool *over) {
    uint64_t reserved;
    *over = !reserve(pool, r->bytes, use_idle, &reserved);
    if (*over)
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = forward(r);
    if (result != CUDA_SUCCESS) {
        vgpu_credit(pool->device, reserved);
        return result;
    }
    vgpu__pool_grown(pool, r->bytes);
    pool->live_bytes += r->bytes;
    struct vgpu_charge replaced,
        charge = {.key = *r->dptr, .kind = VGPU_KIND_POOLED, .bytes = r->bytes, .device = pool->device, .owner = pool};
    if (vgpu__pool_charge_growth(pool, reserved) && vgpu_ptrmap_put(&charge, &replaced)) {
        if (replaced.bytes > 0) /* it ended with its context, and its address comes again */
            vgpu__pool_freed(replaced.owner, replaced.bytes);
        return CUDA_SUCCESS;
    }
    pool->live_bytes -= r->bytes;
    undo(r);
    *over = true;
    return CUDA_ERROR_OUT_OF_MEMORY;
}

/* Where there is no room, pools let go of what they keep, and it is tried again. */
static CUresult allocate_from(struct vgpu__pool *pool, const struct request *r, bool *over) {
    CUresult result = try_allocate(pool, r, true, over);
    if (!*over || !vgpu__pool_shrink_all(pool->device, true))
        return result;
    vgpu_not_refused(pool->device); /* the second answer counts */
    return try_allocate(pool, r, false, over);
}

/* `r` names the pool, also where the application did not: another thread may make another one the device's. */
static CUresult allocate_known(const struct request *r, bool *over) {
    struct vgpu__pool *pool = vgpu__pool_of(r->pool);
    if (pool == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (pool->destroyed)
        return CUDA_ERROR_INVALID_VALUE;
    uint64_t capture;
    if (vgpu__launch_captured(stream_of(r), &capture))
        return forward(
            r); /* the graph pays for it when it is launched; the capture does not end meanwhile: capture.c */
    return pool->device != NULL ? allocate_from(pool, r, over) : forward(r);
}

static CUresult allocate(CUdeviceptr *dptr, struct request r) {
    CUresult result = CUDA_SUCCESS;
    CUdeviceptr made = 0;
    bool over = false;
    r.dptr = VGPU_OUT(dptr, made);
    if (!vgpu__attached())
        return CUDA_ERROR_NOT_PERMITTED;
    if (r.pool == NULL) {
        CUdevice ordinal;
        result = vgpu__place_ordinal(r.stream, &ordinal);
        if (result == CUDA_SUCCESS)
            VGPU_CALL(result, cuDeviceGetMemPool, &r.pool, ordinal);
        if (result != CUDA_SUCCESS)
            return result;
    }
    vgpu__footprint_before(r.bytes);
    vgpu__vmm_settle();
    vgpu__pools_enter();
    result = allocate_known(&r, &over);
    vgpu__pools_leave();
    if (over)
        return vgpu__oversubscribe(dptr, r.bytes, result);
    if (result == CUDA_SUCCESS)
        *dptr = made;
    return result;
}

CUresult cuMemAllocAsync(CUdeviceptr *dptr, size_t bytes, CUstream hStream) {
    VGPU_ENTER(cuMemAllocAsync, dptr, bytes, hStream);
    return allocate(dptr, (struct request){bytes, NULL, hStream, false, NULL});
}

CUresult cuMemAllocAsync_ptsz(CUdeviceptr *dptr, size_t bytes, CUstream hStream) {
    VGPU_ENTER(cuMemAllocAsync_ptsz, dptr, bytes, hStream);
    return allocate(dptr, (struct request){bytes, NULL, hStream, true, NULL});
}

CUresult cuMemAllocFromPoolAsync(CUdeviceptr *dptr, size_t bytes, CUmemoryPool pool, CUstream hStream) {
    VGPU_ENTER(cuMemAllocFromPoolAsync, dptr, bytes, pool, hStream);
    if (pool == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    return allocate(dptr, (struct request){bytes, pool, hStream, false, NULL});
}

CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *dptr, size_t bytes, CUmemoryPool pool, CUstream hStream) {
    VGPU_ENTER(cuMemAllocFromPoolAsync_ptsz, dptr, bytes, pool, hStream);
    if (pool == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    return allocate(dptr, (struct request){bytes, pool, hStream, true, NULL});
}

/* ---- Freeing ---- */

void vgpu__pooled_freed(const struct vgpu_charge *charge) {
    struct vgpu__pool *pool = charge->owner;
    if (pool == NULL)
        return;
    vgpu__pools_enter();
    vgpu__pool_freed(pool, charge->bytes);
    vgpu__pools_leave();
}

/* Memory that is not from a pool may be freed in stream order too. What went to the host instead of into a pool must
 * be, whatever the driver thinks of that. */
#define FREE(symbol, dptr, hStream, stream)                                                                            \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        uint64_t capture;                                                                                              \
        VGPU_ENTER(symbol, dptr, hStream);                                                                             \
        if (vgpu__launch_captured(stream, &capture))                                                                   \
            return VGPU_REAL(symbol)(dptr, hStream);                                                                   \
        struct vgpu_charge plain = vgpu__give(VGPU_KIND_POINTER, dptr), pooled = vgpu__give(VGPU_KIND_POOLED, dptr);   \
        struct vgpu_charge managed = vgpu__give(VGPU_KIND_MANAGED, dptr), host = vgpu__give(VGPU_KIND_HOSTED, dptr);   \
        struct vgpu__visits visits;                                                                                    \
        vgpu__visits_give(dptr, &visits);                                                                              \
        VGPU_CALL(result, symbol, dptr, hStream);                                                                      \
        if (result != CUDA_SUCCESS && host.device != NULL)                                                             \
            VGPU_CALL(result, cuMemFree_v2, dptr);                                                                     \
        vgpu__given(&plain, result);                                                                                   \
        vgpu__given(&managed, result);                                                                                 \
        vgpu__visits_given(&visits, result);                                                                           \
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
    CUmemoryPool made = NULL;
    CUmemPoolProps kept; /* another thread may write to the application's */
    VGPU_ENTER(cuMemPoolCreate, handle, props);
    if (!vgpu__attached())
        return VGPU_REAL(cuMemPoolCreate)(handle, props);
    if (props != NULL)
        kept = *props;
    if (!device_of_pool(VGPU_OUT(props, kept), &device, &result))
        return result;
    vgpu__pools_enter();
    VGPU_CALL(result, cuMemPoolCreate, VGPU_OUT(handle, made), VGPU_OUT(props, kept));
    struct vgpu__pool *pool = result == CUDA_SUCCESS ? vgpu__pool_remember(made, device) : NULL;
    if (pool != NULL) {
        pool->made = true;
        pool->managed = kept.allocType == CU_MEM_ALLOCATION_TYPE_MANAGED;
        pool->ordinal = kept.location.id;
    }
    vgpu__pools_leave();
    if (result == CUDA_SUCCESS)
        *handle = made;
    return result;
}

CUresult cuMemPoolDestroy(CUmemoryPool handle) {
    CUresult result;
    VGPU_ENTER(cuMemPoolDestroy, handle);
    if (!vgpu__attached())
        return VGPU_REAL(cuMemPoolDestroy)(handle);
    vgpu__pools_enter();
    struct vgpu__pool *pool = vgpu__pool_find(handle);
    if (pool != NULL && pool->made)
        result = vgpu__pool_destroy(pool);
    else if (pool != NULL && pool->live_bytes == 0) /* a device's own, which the driver refuses, or an imported one */
        result = vgpu__pool_end(pool);
    else
        VGPU_CALL(result, cuMemPoolDestroy, handle);
    vgpu__pools_leave();
    return result;
}

/* The driver's pool lives on while memory of it is in use; for the application it is none any more. */
static bool is_destroyed(CUmemoryPool handle) {
    if (!vgpu__attached())
        return false;
    vgpu__pools_enter();
    const struct vgpu__pool *pool = vgpu__pool_find(handle);
    bool destroyed = pool != NULL && pool->destroyed;
    vgpu__pools_leave();
    return destroyed;
}

CUresult cuMemPoolTrimTo(CUmemoryPool handle, size_t keep_bytes) {
    CUresult result;
    VGPU_ENTER(cuMemPoolTrimTo, handle, keep_bytes);
    if (is_destroyed(handle))
        return CUDA_ERROR_INVALID_VALUE;
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

#define OF_LIVING(pool, symbol, ...)                                                                                   \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        VGPU_ENTER(symbol, __VA_ARGS__);                                                                               \
        if (is_destroyed(pool))                                                                                        \
            return CUDA_ERROR_INVALID_VALUE;                                                                           \
        VGPU_CALL(result, symbol, __VA_ARGS__);                                                                        \
        return result;                                                                                                 \
    } while (0)

CUresult cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attr, void *value) {
    OF_LIVING(pool, cuMemPoolGetAttribute, pool, attr, value);
}

CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attr, void *value) {
    OF_LIVING(pool, cuMemPoolSetAttribute, pool, attr, value);
}

CUresult cuMemPoolGetAccess(CUmemAccess_flags *flags, CUmemoryPool pool, CUmemLocation *location) {
    OF_LIVING(pool, cuMemPoolGetAccess, flags, pool, location);
}

CUresult cuMemPoolSetAccess(CUmemoryPool pool, const CUmemAccessDesc *map, size_t count) {
    OF_LIVING(pool, cuMemPoolSetAccess, pool, map, count);
}

CUresult cuDeviceSetMemPool(CUdevice dev, CUmemoryPool pool) {
    OF_LIVING(pool, cuDeviceSetMemPool, dev, pool);
}
