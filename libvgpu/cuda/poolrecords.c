/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda/poolrecords.h"

#include "core/quota.h"
#include "cuda/device.h"
#include "cuda/footprint.h"
#include "cuda/kinds.h"
#include "cuda/pools.h"

#include <stddef.h>
#include <stdlib.h>

static struct vgpu_lock lock = VGPU_UNLOCKED;
static struct vgpu__pool *pools;
static __thread bool held_here __attribute__((tls_model("initial-exec")));

void vgpu__pools_forget(void) {
    vgpu_lock_renew(&lock);
    pools = NULL;
    held_here = false;
}

void vgpu__pools_enter(void) {
    vgpu__enter(&lock);
    held_here = true;
}

void vgpu__pools_leave(void) {
    held_here = false;
    vgpu__leave(&lock);
}

/* ---- Records ---- */

struct vgpu__pool *vgpu__pool_remember(CUmemoryPool handle, struct vgpu_device *device) {
    struct vgpu__pool *pool = calloc(1, sizeof *pool);
    if (pool != NULL) {
        *pool = (struct vgpu__pool){.next = pools, .handle = handle, .device = device};
        pools = pool;
    }
    return pool;
}

struct vgpu__pool *vgpu__pool_find(CUmemoryPool handle) {
    struct vgpu__pool *pool = pools;
    while (pool != NULL && (pool->handle != handle || pool->of_graphs))
        pool = pool->next;
    return pool;
}

struct vgpu__pool *vgpu__pool_find_of_graphs(CUdevice ordinal) {
    struct vgpu__pool *pool = pools;
    while (pool != NULL && (!pool->of_graphs || pool->ordinal != ordinal))
        pool = pool->next;
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

struct vgpu__pool *vgpu__pool_of(CUmemoryPool handle) {
    struct vgpu__pool *pool = vgpu__pool_find(handle);
    return pool != NULL ? pool : vgpu__pool_remember(handle, device_of_own_pool(handle));
}

struct vgpu__pool *vgpu__pool_of_graphs(CUdevice ordinal, struct vgpu_device *device) {
    struct vgpu__pool *pool = vgpu__pool_find_of_graphs(ordinal);
    if (pool == NULL && (pool = vgpu__pool_remember(NULL, device)) != NULL) {
        pool->of_graphs = true;
        pool->ordinal = ordinal;
    }
    return pool;
}

/* ---- What they hold ---- */

/* What the pool holds of the card. False: the driver can't say. */
static bool ask_held(const struct vgpu__pool *pool, uint64_t *bytes) {
    unsigned long long held = 0;
    CUresult result;
    if (pool->of_graphs)
        VGPU_CALL(result, cuDeviceGetGraphMemAttribute, pool->ordinal, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, &held);
    else
        VGPU_CALL(result, cuMemPoolGetAttribute, pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &held);
    *bytes = held + pool->coming_bytes;
    return result == CUDA_SUCCESS;
}

/* Drivers take 32 MiB at a time, which none of their documentation promises: it is taken for granted until they are
 * seen to take less, apart for what is larger than that itself. */
#define LARGEST_STEP (32ull << 20)
static uint64_t steps[2] = {LARGEST_STEP, LARGEST_STEP};

static uint64_t round_up(uint64_t bytes, uint64_t step) {
    return bytes > UINT64_MAX - step ? UINT64_MAX : (bytes + step - 1) / step * step;
}

uint64_t vgpu__pool_growth(uint64_t bytes) {
    return round_up(bytes, steps[bytes >= LARGEST_STEP]);
}

void vgpu__pool_grown(const struct vgpu__pool *pool, uint64_t bytes) {
    uint64_t held, *step = &steps[bytes >= LARGEST_STEP];
    if (pool->charged_bytes > 0 || !ask_held(pool, &held) || held < bytes)
        return; /* some of it was there before */
    uint64_t seen = LARGEST_STEP;
    while (seen > 1 && round_up(bytes, seen) > held)
        seen /= 2;
    *step = seen;
}

static void trim(const struct vgpu__pool *pool) {
    CUresult result = CUDA_SUCCESS;
    if (pool->of_graphs)
        VGPU_CALL(result, cuDeviceGraphMemTrim, pool->ordinal);
    else
        VGPU_CALL(result, cuMemPoolTrimTo, pool->handle, 0);
    (void)result; /* what it could not trim it still holds: vgpu__pool_settle() sees that */
}

/* The driver may not want to: then it stays as it is until the next time. */
CUresult vgpu__pool_end(struct vgpu__pool *pool) {
    CUresult result;
    VGPU_CALL(result, cuMemPoolDestroy, pool->handle);
    if (result != CUDA_SUCCESS)
        return result;
    struct vgpu__pool **link = &pools;
    while (*link != pool)
        link = &(*link)->next;
    *link = pool->next;
    free(pool);
    return result;
}

/* What is managed may lie on the device or not. */
static void set_charged(struct vgpu__pool *pool, uint64_t bytes) {
    if (pool->managed)
        vgpu__footprint_managed(pool->device, (int64_t)bytes - (int64_t)pool->charged_bytes);
    pool->charged_bytes = bytes;
}

bool vgpu__pool_settle(struct vgpu__pool *pool) {
    uint64_t held;
    if (pool->device == NULL || !ask_held(pool, &held))
        return false;
    bool progress = held < pool->charged_bytes;
    if (progress) {
        vgpu_credit(pool->device, pool->charged_bytes - held);
        set_charged(pool, held);
    }
    if (pool->destroyed && held == 0 && pool->live_bytes == 0)
        vgpu__pool_end(pool);
    return progress;
}

/* As the driver does it, where it is asked to destroy the pool that a device uses: the device's own takes its place. */
static CUresult leave_device(const struct vgpu__pool *pool) {
    CUresult result;
    CUmemoryPool now, own;
    VGPU_CALL(result, cuDeviceGetMemPool, &now, pool->ordinal);
    if (result != CUDA_SUCCESS || now != pool->handle)
        return result;
    VGPU_CALL(result, cuDeviceGetDefaultMemPool, &own, pool->ordinal);
    if (result == CUDA_SUCCESS)
        VGPU_CALL(result, cuDeviceSetMemPool, pool->ordinal, own);
    return result;
}

CUresult vgpu__pool_destroy(struct vgpu__pool *pool) {
    CUresult result, ignored;
    unsigned long long nothing = 0;
    if (pool->destroyed)
        return CUDA_ERROR_INVALID_VALUE;
    if (pool->device == NULL)
        return vgpu__pool_end(pool);
    if ((result = leave_device(pool)) != CUDA_SUCCESS)
        return result;
    VGPU_CALL(ignored, cuMemPoolSetAttribute, pool->handle, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &nothing);
    (void)ignored; /* it is trimmed whenever somebody looks */
    pool->destroyed = true;
    trim(pool);
    vgpu__pool_settle(pool);
    return CUDA_SUCCESS;
}

void vgpu__pool_freed(struct vgpu__pool *pool, uint64_t bytes) {
    pool->live_bytes -= bytes < pool->live_bytes ? bytes : pool->live_bytes;
    if (pool->destroyed)
        trim(pool);
    vgpu__pool_settle(pool);
}

bool vgpu__pool_shrink_all(struct vgpu_device *device, bool trim_first) {
    bool progress = false;
    for (struct vgpu__pool *pool = pools, *next; pool != NULL; pool = next) {
        next = pool->next;
        if (pool->device != device)
            continue;
        if (trim_first)
            trim(pool);
        progress |= vgpu__pool_settle(pool);
    }
    return progress;
}

bool vgpu__pool_charge_growth(struct vgpu__pool *pool, uint64_t reserved) {
    uint64_t held, have = pool->charged_bytes + reserved;
    if (!ask_held(pool, &held))
        held = have; /* what it may hold; it is asked again */
    bool fits = held <= have || vgpu_reserve(pool->device, held - have) == VGPU_OK;
    if (!fits)
        vgpu_charge(pool->device, held - have);
    if (held < have)
        vgpu_credit(pool->device, have - held);
    set_charged(pool, held);
    return fits;
}

/* ---- For the other files of this folder ---- */

bool vgpu__pool_moves(CUdeviceptr dptr, struct vgpu_charge *charge) {
    vgpu__pools_enter();
    bool known = vgpu_ptrmap_look(dptr, VGPU_KIND_POOLED, charge);
    const struct vgpu__pool *pool = known ? charge->owner : NULL;
    bool managed = pool != NULL && pool->managed;
    vgpu__pools_leave();
    charge->owner = NULL; /* the memory outlives contexts */
    return managed;
}

/* Whoever interrupts a call of the driver that is made between enter and leave does without. */
static bool nothing_to_do(void) {
    return __atomic_load_n(&pools, __ATOMIC_ACQUIRE) == NULL || held_here;
}

void vgpu__pools_settle(struct vgpu_device *device) {
    if (nothing_to_do())
        return;
    vgpu__pools_enter();
    vgpu__pool_shrink_all(device, false);
    vgpu__pools_leave();
}

bool vgpu__pools_shrink(struct vgpu_device *device) {
    if (nothing_to_do())
        return false;
    vgpu__pools_enter();
    bool progress = vgpu__pool_shrink_all(device, true);
    vgpu__pools_leave();
    return progress;
}
