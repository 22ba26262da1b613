/* SPDX-License-Identifier: Apache-2.0
 *
 * Stream-ordered memory and pools. A pool is charged what it holds of the card (the driver's RESERVED_MEM_CURRENT), not
 * what is in use of it: what it keeps for later is still memory that nobody else can have. It is asked after each call
 * that may change it, and again before anybody is refused; nothing here ever waits for a stream.
 *
 * One mutex guards the records, and is held over the driver's call, so that a pool's growth has one author. The calls
 * that it is held over do not wait for the device; a launch may, where too much is queued, so it is made without.
 */
#include "cuda/pools.h"

#include "core/lock.h"
#include "core/quota.h"
#include "cuda/launch.h"
#include "cuda/memory.h"

#include <stddef.h>
#include <stdlib.h>

struct pool {
    struct pool *next;
    CUmemoryPool handle; /* NULL: destroyed, kept alive by what is not freed yet; or the memory of a device's graphs */
    bool of_graphs;
    CUdevice ordinal;           /* of_graphs */
    struct vgpu_device *device; /* NULL: not on a device (host memory) */
    uint64_t charged_bytes;
    uint64_t live_bytes;   /* allocations that were not freed */
    uint64_t coming_bytes; /* that launches may take which the driver is at: not to be given back meanwhile */
};

static struct vgpu_lock lock = VGPU_UNLOCKED;
static struct pool *pools;

void vgpu__pools_forget(void) {
    vgpu_lock_renew(&lock);
    pools = NULL;
}

/* ---- Records; the lock is held ---- */

static struct pool *remember(CUmemoryPool handle, struct vgpu_device *device) {
    struct pool *pool = calloc(1, sizeof *pool);
    if (pool != NULL) {
        *pool = (struct pool){.next = pools, .handle = handle, .device = device};
        pools = pool;
    }
    return pool;
}

/* A pool that we did not see being made is some device's own. */
static struct vgpu_device *device_of_own_pool(CUmemoryPool handle) {
    CUresult result = CUDA_SUCCESS;
    for (CUdevice ordinal = 0; ordinal < VGPU_MAX_ORDINALS && result == CUDA_SUCCESS; ordinal++) {
        CUmemoryPool own;
        VGPU_CALL(result, cuDeviceGetDefaultMemPool, &own, ordinal);
        if (result == CUDA_SUCCESS && own == handle)
            return vgpu__cuda_device(ordinal, &result);
    }
    CUcontext context;
    return vgpu__cuda_current(&context, &result);
}

static struct pool *pool_of(CUmemoryPool handle) {
    for (struct pool *pool = pools; pool != NULL; pool = pool->next)
        if (pool->handle == handle && !pool->of_graphs)
            return pool;
    return remember(handle, device_of_own_pool(handle));
}

/* What the pool holds of the card; where the driver can't say, what the application has of it. */
static uint64_t held_bytes(const struct pool *pool) {
    unsigned long long held = 0;
    CUresult result = CUDA_ERROR_INVALID_HANDLE;
    if (pool->of_graphs)
        VGPU_CALL(result, cuDeviceGetGraphMemAttribute, pool->ordinal, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, &held);
    else if (pool->handle != NULL)
        VGPU_CALL(result, cuMemPoolGetAttribute, pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &held);
    return result == CUDA_SUCCESS ? held : pool->live_bytes;
}

static void trim(const struct pool *pool) {
    CUresult result = CUDA_SUCCESS;
    if (pool->of_graphs)
        VGPU_CALL(result, cuDeviceGraphMemTrim, pool->ordinal);
    else if (pool->handle != NULL)
        VGPU_CALL(result, cuMemPoolTrimTo, pool->handle, 0);
    (void)result; /* what it could not trim it still holds: settle() sees that */
}

static bool settle(struct pool *pool) {
    uint64_t held = held_bytes(pool) + pool->coming_bytes;
    if (pool->device == NULL || held >= pool->charged_bytes)
        return false;
    vgpu_credit(pool->device, pool->charged_bytes - held);
    pool->charged_bytes = held;
    return true;
}

/* The record of a destroyed pool goes with the last allocation of it. */
static void drop_if_unused(struct pool *pool) {
    if (pool->handle != NULL || pool->of_graphs || pool->live_bytes > 0)
        return;
    struct pool **link = &pools;
    while (*link != pool)
        link = &(*link)->next;
    *link = pool->next;
    free(pool);
}

static bool shrink(struct vgpu_device *device, bool trim_first) {
    bool progress = false;
    for (struct pool *pool = pools; pool != NULL; pool = pool->next) {
        if (pool->device != device)
            continue;
        if (trim_first)
            trim(pool);
        progress |= settle(pool);
    }
    return progress;
}

void vgpu__pools_settle(struct vgpu_device *device) {
    if (__atomic_load_n(&pools, __ATOMIC_ACQUIRE) == NULL)
        return;
    vgpu_lock(&lock);
    shrink(device, false);
    vgpu_unlock(&lock);
}

bool vgpu__pools_shrink(struct vgpu_device *device) {
    if (__atomic_load_n(&pools, __ATOMIC_ACQUIRE) == NULL)
        return false;
    vgpu_lock(&lock);
    bool progress = shrink(device, true);
    vgpu_unlock(&lock);
    return progress;
}

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
static bool reserve(struct pool *pool, uint64_t bytes, uint64_t *reserved) {
    *reserved = bytes;
    if (vgpu_reserve(pool->device, bytes) == VGPU_OK)
        return true;
    if (shrink(pool->device, true) && vgpu_reserve(pool->device, bytes) == VGPU_OK)
        return true;
    /* What is freed on a stream but not done yet cannot be trimmed, but can be used again in stream order. */
    *reserved = 0;
    return pool->charged_bytes >= pool->live_bytes && pool->charged_bytes - pool->live_bytes >= bytes;
}

/* The driver has allocated: charge exactly what the pool holds now. False: it holds more than the share has. That is
 * charged too: the books say what is, and nobody gets anything until it is given back. */
static bool charge_growth(struct pool *pool, uint64_t reserved) {
    uint64_t held = held_bytes(pool) + pool->coming_bytes, have = pool->charged_bytes + reserved;
    bool fits = held <= have || vgpu_reserve(pool->device, held - have) == VGPU_OK;
    if (!fits)
        vgpu_charge(pool->device, held - have);
    if (held < have)
        vgpu_credit(pool->device, have - held);
    pool->charged_bytes = held;
    return fits;
}

static CUresult allocate_from(struct pool *pool, const struct request *r) {
    uint64_t reserved;
    if (!reserve(pool, r->bytes, &reserved))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = forward(r);
    if (result != CUDA_SUCCESS) {
        vgpu_credit(pool->device, reserved);
        return result;
    }
    pool->live_bytes += r->bytes;
    struct vgpu_charge replaced,
        charge = {.key = *r->dptr, .kind = VGPU_KIND_POOLED, .bytes = r->bytes, .device = pool->device, .owner = pool};
    if (charge_growth(pool, reserved) && vgpu_ptrmap_put(&charge, &replaced))
        return CUDA_SUCCESS;
    pool->live_bytes -= r->bytes;
    undo(r);
    shrink(pool->device, true);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult allocate(struct request r) {
    CUresult result = CUDA_SUCCESS;
    CUcontext context;
    CUmemoryPool handle = r.pool;
    if (vgpu__inside > 0 || vgpu__launch_captured(r.per_thread ? vgpu__per_thread(r.stream) : r.stream))
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
    vgpu_lock(&lock);
    struct pool *pool = pool_of(handle);
    if (pool == NULL)
        result = CUDA_ERROR_OUT_OF_MEMORY;
    else if (pool->device == NULL)
        result = forward(&r);
    else
        result = allocate_from(pool, &r);
    vgpu_unlock(&lock);
    return result;
}

CUresult cuMemAllocAsync(CUdeviceptr *dptr, size_t bytes, CUstream hStream) {
    return allocate((struct request){dptr, bytes, NULL, hStream, false});
}

CUresult cuMemAllocAsync_ptsz(CUdeviceptr *dptr, size_t bytes, CUstream hStream) {
    return allocate((struct request){dptr, bytes, NULL, hStream, true});
}

CUresult cuMemAllocFromPoolAsync(CUdeviceptr *dptr, size_t bytes, CUmemoryPool pool, CUstream hStream) {
    if (pool == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    return allocate((struct request){dptr, bytes, pool, hStream, false});
}

CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *dptr, size_t bytes, CUmemoryPool pool, CUstream hStream) {
    if (pool == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    return allocate((struct request){dptr, bytes, pool, hStream, true});
}

/* ---- Freeing ---- */

void vgpu__pooled_freed(const struct vgpu_charge *charge) {
    struct pool *pool = charge->owner;
    if (pool == NULL)
        return;
    vgpu_lock(&lock);
    pool->live_bytes -= charge->bytes < pool->live_bytes ? charge->bytes : pool->live_bytes;
    settle(pool);
    drop_if_unused(pool);
    vgpu_unlock(&lock);
}

/* Memory that is not from a pool may be freed in stream order too. */
#define FREE(symbol, dptr, hStream, stream)                                                                            \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        if (vgpu__launch_captured(stream))                                                                             \
            return VGPU_REAL(symbol)(dptr, hStream);                                                                   \
        struct vgpu_charge plain = vgpu__give(VGPU_KIND_POINTER, dptr), pooled = vgpu__give(VGPU_KIND_POOLED, dptr);   \
        struct vgpu_charge managed = vgpu__give(VGPU_KIND_MANAGED, dptr), host = vgpu__give(VGPU_KIND_HOSTED, dptr);   \
        VGPU_CALL(result, symbol, dptr, hStream);                                                                      \
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

/* ---- Memory of graphs ---- */

static struct pool *pool_of_graphs(CUdevice ordinal, struct vgpu_device *device) {
    for (struct pool *pool = pools; pool != NULL; pool = pool->next)
        if (pool->of_graphs && pool->ordinal == ordinal)
            return pool;
    struct pool *pool = remember(NULL, device);
    if (pool != NULL) {
        pool->of_graphs = true;
        pool->ordinal = ordinal;
    }
    return pool;
}

static uint64_t used_by_graphs(CUdevice ordinal) {
    unsigned long long used = 0;
    CUresult result;
    VGPU_CALL(result, cuDeviceGetGraphMemAttribute, ordinal, CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT, &used);
    return result == CUDA_SUCCESS ? used : 0;
}

/* Reserve for a graph what the pool does not have for it already. Trimming to make room takes of that, too. */
static bool reserve_for_graph(struct pool *pool, uint64_t bytes) {
    do {
        uint64_t kept = pool->live_bytes + pool->coming_bytes;
        uint64_t have = pool->charged_bytes > kept ? pool->charged_bytes - kept : 0;
        uint64_t missing = bytes > have ? bytes - have : 0;
        if (vgpu_reserve(pool->device, missing) == VGPU_OK) {
            pool->charged_bytes += missing;
            return true;
        }
    } while (shrink(pool->device, true));
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
    vgpu_lock(&lock);
    struct pool *pool = pool_of_graphs(ordinal, device);
    if (pool != NULL)
        pool->live_bytes = first ? used_by_graphs(ordinal) : 0;
    if (pool == NULL || !reserve_for_graph(pool, bytes)) {
        vgpu_unlock(&lock);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    pool->coming_bytes += bytes; /* what is held may be trimmed before the driver takes it */
    vgpu_unlock(&lock);
    result = launch(argument);
    vgpu_lock(&lock);
    pool->coming_bytes -= bytes;
    if (pool->coming_bytes == 0)
        charge_growth(pool, 0);
    else
        settle(pool);
    vgpu_unlock(&lock);
    return result;
}

CUresult cuDeviceGraphMemTrim(CUdevice ordinal) {
    CUresult result;
    bool ours = vgpu__ours();
    VGPU_CALL(result, cuDeviceGraphMemTrim, ordinal);
    if (result == CUDA_SUCCESS && ours) {
        vgpu_lock(&lock);
        for (struct pool *pool = pools; pool != NULL; pool = pool->next)
            if (pool->of_graphs && pool->ordinal == ordinal)
                settle(pool);
        vgpu_unlock(&lock);
    }
    return result;
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
    if (!vgpu__ours())
        return VGPU_REAL(cuMemPoolCreate)(handle, props);
    if (!device_of_pool(props, &device, &result))
        return result;
    vgpu_lock(&lock);
    VGPU_CALL(result, cuMemPoolCreate, handle, props);
    if (result == CUDA_SUCCESS)
        remember(*handle, device);
    vgpu_unlock(&lock);
    return result;
}

/* What is still in use of a destroyed pool lives on until it is freed. */
CUresult cuMemPoolDestroy(CUmemoryPool handle) {
    CUresult result;
    if (!vgpu__ours())
        return VGPU_REAL(cuMemPoolDestroy)(handle);
    vgpu_lock(&lock);
    struct pool *pool = pools;
    while (pool != NULL && (pool->handle != handle || pool->of_graphs))
        pool = pool->next;
    VGPU_CALL(result, cuMemPoolDestroy, handle);
    if (result == CUDA_SUCCESS && pool != NULL) {
        pool->handle = NULL;
        settle(pool);
        drop_if_unused(pool);
    }
    vgpu_unlock(&lock);
    return result;
}

CUresult cuMemPoolTrimTo(CUmemoryPool handle, size_t keep_bytes) {
    CUresult result;
    bool ours = vgpu__ours();
    VGPU_CALL(result, cuMemPoolTrimTo, handle, keep_bytes);
    if (result == CUDA_SUCCESS && ours) {
        vgpu_lock(&lock);
        for (struct pool *pool = pools; pool != NULL; pool = pool->next)
            if (pool->handle == handle && !pool->of_graphs)
                settle(pool);
        vgpu_unlock(&lock);
    }
    return result;
}
