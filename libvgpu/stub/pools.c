/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory pools: what they hold, and how they are asked and told. poolmemory.c allocates from them.
 *
 * What a pool holds is charged to the card in chunks (card.h: pool_chunk_bytes) and stays charged after a free, until
 * the next synchronisation brings the pool down to its release threshold, the pool is trimmed, or this process needs
 * the memory elsewhere. Memory freed on a stream can be taken again on that stream at once, on others when the free was
 * reached. (CUDA programming guide, stream-ordered memory allocator: physical page caching, resource usage policies.)
 */
#include "pools.h"

#include <stdlib.h>

struct pending_free {
    CUmemoryPool pool;
    CUstream stream;
    uint64_t bytes;
    struct pending_free *next;
};

static pthread_mutex_t pools_lock = PTHREAD_MUTEX_INITIALIZER;
static CUmemoryPool pools; /* of all devices */

void pools_forget_all(void) {
    pthread_mutex_init(&pools_lock, NULL);
    pools = NULL;
}

/* ---- Bytes of a pool. Under pools_lock unless said otherwise ---- */

static void note_idle(CUmemoryPool pool, int64_t change) {
    __atomic_fetch_add(&pool->device->card.slot->pool_idle_bytes, (uint64_t)change, __ATOMIC_RELAXED);
}

static uint64_t pending_bytes(CUmemoryPool pool, CUstream but_not) {
    uint64_t bytes = 0;
    for (struct pending_free *at = pool->pending; at; at = at->next)
        if (at->stream != but_not)
            bytes += at->bytes;
    return bytes;
}

/* Nobody uses these bytes, and no free of them is still on its way on another stream. */
static uint64_t available(CUmemoryPool pool, CUstream stream) {
    return pool->reserved - pool->used - pending_bytes(pool, stream);
}

/* Memory of pending frees on this stream that is taken again is no longer pending. */
static void consume_pending(CUmemoryPool pool, uint64_t bytes, CUstream stream) {
    uint64_t free_now = available(pool, NULL);
    uint64_t needed = bytes > free_now ? bytes - free_now : 0;
    for (struct pending_free *at = pool->pending; at && needed; at = at->next) {
        if (at->stream != stream)
            continue;
        uint64_t part = at->bytes < needed ? at->bytes : needed;
        at->bytes -= part;
        needed -= part;
    }
}

static uint64_t round_up(uint64_t bytes, uint64_t step) {
    return step > 1 ? (bytes + step - 1) / step * step : bytes;
}

bool pool_take(CUmemoryPool pool, uint64_t bytes, CUstream stream) {
    pthread_mutex_lock(&pools_lock);
    uint64_t there;
    while ((there = available(pool, stream)) < bytes) {
        uint64_t grow = round_up(bytes - there, pool->device->card.shared->pool_chunk_bytes);
        bool allowed = !pool->props.maxSize || pool->reserved + grow <= pool->props.maxSize;
        pthread_mutex_unlock(&pools_lock);
        if (!allowed || !device_charge(pool->device, grow))
            return false;
        pthread_mutex_lock(&pools_lock);
        pool->reserved += grow;
        note_idle(pool, (int64_t)grow);
    }
    consume_pending(pool, bytes, stream);
    pool->used += bytes;
    note_idle(pool, -(int64_t)bytes);
    pool->used_high = pool->used > pool->used_high ? pool->used : pool->used_high;
    pool->reserved_high = pool->reserved > pool->reserved_high ? pool->reserved : pool->reserved_high;
    pthread_mutex_unlock(&pools_lock);
    return true;
}

struct pending_free *pool_give(CUmemoryPool pool, uint64_t bytes, CUstream stream) {
    struct pending_free *pending = stream ? malloc(sizeof *pending) : NULL;
    pthread_mutex_lock(&pools_lock);
    pool->used -= bytes;
    note_idle(pool, (int64_t)bytes);
    if (pending) {
        *pending = (struct pending_free){pool, stream, bytes, pool->pending};
        pool->pending = pending;
    }
    pthread_mutex_unlock(&pools_lock);
    return pending;
}

void pool_give_done(struct pending_free *pending) {
    if (!pending)
        return;
    pthread_mutex_lock(&pools_lock);
    for (struct pending_free **at = &pending->pool->pending; *at; at = &(*at)->next) {
        if (*at == pending) {
            *at = pending->next;
            break;
        }
    }
    pthread_mutex_unlock(&pools_lock);
    free(pending);
}

/* Gives back to the card what is free above keep_bytes, in whole chunks. */
static bool shrink(CUmemoryPool pool, uint64_t keep_bytes) {
    uint64_t free_bytes = available(pool, NULL);
    uint64_t above = pool->reserved > keep_bytes ? pool->reserved - keep_bytes : 0;
    uint64_t bytes = free_bytes < above ? free_bytes : above;
    uint64_t chunk = pool->device->card.shared->pool_chunk_bytes;
    bytes = chunk > 1 ? bytes / chunk * chunk : bytes;
    if (bytes == 0)
        return false;
    pool->reserved -= bytes;
    note_idle(pool, -(int64_t)bytes);
    device_credit(pool->device, bytes);
    return true;
}

void pool_trim(CUmemoryPool pool, uint64_t keep_bytes) {
    pthread_mutex_lock(&pools_lock);
    shrink(pool, keep_bytes);
    pthread_mutex_unlock(&pools_lock);
}

void pools_settle(struct device *device) {
    if (!__atomic_load_n(&pools, __ATOMIC_ACQUIRE))
        return;
    pthread_mutex_lock(&pools_lock);
    for (CUmemoryPool pool = pools; pool; pool = pool->next)
        if (pool->device == device)
            shrink(pool, pool->threshold);
    pthread_mutex_unlock(&pools_lock);
}

bool pools_trim_all(struct device *device) {
    bool any = false;
    pthread_mutex_lock(&pools_lock);
    for (CUmemoryPool pool = pools; pool; pool = pool->next)
        if (pool->device == device && pool != device->graph_pool)
            any |= shrink(pool, 0);
    pthread_mutex_unlock(&pools_lock);
    return any;
}

/* ---- Pools as objects ---- */

static CUmemoryPool pool_make(struct device *device, const CUmemPoolProps *props, bool implicit) {
    CUmemoryPool pool = handle_take(HANDLE_POOL, sizeof *pool);
    if (!pool)
        return NULL;
    pool->device = device;
    pool->props = *props;
    pool->implicit = implicit;
    for (int i = 1; i < 4; i++)
        pool->reuse[i] = 1;
    pthread_mutex_lock(&pools_lock);
    pool->next = pools;
    __atomic_store_n(&pools, pool, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&pools_lock);
    return pool;
}

bool pool_lives(CUmemoryPool pool) {
    return handle_lives(pool) && !__atomic_load_n(&pool->gone, __ATOMIC_RELAXED);
}

void pool_joined(CUmemoryPool pool) {
    pthread_mutex_lock(&pools_lock);
    pool->live++;
    pthread_mutex_unlock(&pools_lock);
}

void pool_left(CUmemoryPool pool) {
    pthread_mutex_lock(&pools_lock);
    bool ends = --pool->live == 0 && pool->gone;
    if (pool->gone)
        shrink(pool, 0);
    for (CUmemoryPool *at = &pools; ends && *at; at = &(*at)->next) {
        if (*at == pool) {
            __atomic_store_n(at, pool->next, __ATOMIC_RELEASE);
            break;
        }
    }
    pthread_mutex_unlock(&pools_lock);
    if (ends)
        handle_give(pool);
}

static CUmemoryPool implicit_pool(struct device *device, CUmemoryPool *place, uint64_t threshold) {
    pthread_mutex_lock(&driver.lock);
    if (!*place && device_join(device) == CUDA_SUCCESS) {
        CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, device->ordinal}};
        *place = pool_make(device, &props, true);
        if (*place)
            (*place)->threshold = threshold;
    }
    pthread_mutex_unlock(&driver.lock);
    return *place;
}

CUmemoryPool pool_of_graphs(struct device *device) {
    return implicit_pool(device, &device->graph_pool, UINT64_MAX); /* kept until cuDeviceGraphMemTrim */
}

CUresult stub_cuDeviceGetDefaultMemPool(CUmemoryPool *out, CUdevice ordinal) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    REQUIRE(out, CUDA_ERROR_INVALID_VALUE);
    *out = implicit_pool(device, &device->default_pool, 0);
    return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult stub_cuDeviceGetMemPool(CUmemoryPool *out, CUdevice ordinal) {
    TRY(stub_cuDeviceGetDefaultMemPool(out, ordinal));
    if (driver.devices[ordinal].current_pool)
        *out = driver.devices[ordinal].current_pool;
    return CUDA_SUCCESS;
}

CUresult stub_cuDeviceSetMemPool(CUdevice ordinal, CUmemoryPool pool) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    REQUIRE(pool_lives(pool) && pool->device == device, CUDA_ERROR_INVALID_VALUE);
    device->current_pool = pool;
    return CUDA_SUCCESS;
}

CUresult stub_cuMemPoolCreate(CUmemoryPool *out, const CUmemPoolProps *props) {
    struct device *device;
    REQUIRE(out && props, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(props->allocType == CU_MEM_ALLOCATION_TYPE_PINNED || props->allocType == CU_MEM_ALLOCATION_TYPE_MANAGED,
            CUDA_ERROR_INVALID_VALUE);
    REQUIRE(props->location.type == CU_MEM_LOCATION_TYPE_DEVICE, CUDA_ERROR_NOT_SUPPORTED);
    TRY(device_of(props->location.id, &device));
    pthread_mutex_lock(&driver.lock);
    CUresult result = device_join(device);
    pthread_mutex_unlock(&driver.lock);
    TRY(result);
    *out = pool_make(device, props, false);
    return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* Allocations that live on keep their memory; what they give back later goes to the card at once. */
CUresult stub_cuMemPoolDestroy(CUmemoryPool pool) {
    REQUIRE(pool_lives(pool) && !pool->implicit, CUDA_ERROR_INVALID_VALUE);
    if (pool->device->current_pool == pool)
        pool->device->current_pool = NULL;
    pthread_mutex_lock(&pools_lock);
    pool->threshold = 0;
    pool->live++; /* until here */
    __atomic_store_n(&pool->gone, true, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&pools_lock);
    pool_left(pool);
    return CUDA_SUCCESS;
}

CUresult stub_cuMemPoolTrimTo(CUmemoryPool pool, size_t keep_bytes) {
    REQUIRE(pool_lives(pool), CUDA_ERROR_INVALID_VALUE);
    pool_trim(pool, keep_bytes);
    return CUDA_SUCCESS;
}

static CUresult get_attribute(CUmemoryPool pool, CUmemPool_attribute attribute, void *value) {
    uint64_t *number = value;
    switch (attribute) {
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
        *number = pool->threshold;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
        *number = pool->reserved;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
        *number = pool->reserved_high;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
        *number = pool->used;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
        *number = pool->used_high;
        return CUDA_SUCCESS;
    default:
        REQUIRE(attribute >= 1 && attribute <= 3, CUDA_ERROR_INVALID_VALUE);
        *(int *)value = (int)pool->reuse[attribute];
        return CUDA_SUCCESS;
    }
}

static CUresult set_attribute(CUmemoryPool pool, CUmemPool_attribute attribute, const void *value) {
    switch (attribute) {
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
        pool->threshold = *(const uint64_t *)value;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
        REQUIRE(*(const uint64_t *)value == 0, CUDA_ERROR_INVALID_VALUE); /* can only be reset */
        pool->reserved_high = attribute == CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH ? pool->reserved : pool->reserved_high;
        pool->used_high = attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH ? pool->used : pool->used_high;
        return CUDA_SUCCESS;
    default:
        REQUIRE(attribute >= 1 && attribute <= 3, CUDA_ERROR_INVALID_VALUE);
        pool->reuse[attribute] = *(const int *)value != 0;
        return CUDA_SUCCESS;
    }
}

CUresult stub_cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void *value) {
    REQUIRE(pool_lives(pool) && value, CUDA_ERROR_INVALID_VALUE);
    pthread_mutex_lock(&pools_lock);
    CUresult result = get_attribute(pool, attribute, value);
    pthread_mutex_unlock(&pools_lock);
    return result;
}

CUresult stub_cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void *value) {
    REQUIRE(pool_lives(pool) && value, CUDA_ERROR_INVALID_VALUE);
    pthread_mutex_lock(&pools_lock);
    CUresult result = set_attribute(pool, attribute, value);
    pthread_mutex_unlock(&pools_lock);
    return result;
}

CUresult stub_cuMemPoolSetAccess(CUmemoryPool pool, const CUmemAccessDesc *map, size_t count) {
    return pool_lives(pool) && (map || !count) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult stub_cuMemPoolGetAccess(CUmemAccess_flags *flags, CUmemoryPool pool, CUmemLocation *location) {
    REQUIRE(flags && pool_lives(pool) && location, CUDA_ERROR_INVALID_VALUE);
    *flags = location->id == pool->device->ordinal ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : 0;
    return CUDA_SUCCESS;
}
