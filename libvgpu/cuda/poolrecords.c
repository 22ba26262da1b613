/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda/poolrecords.h"

#include "core/lock.h"
#include "core/quota.h"
#include "cuda/device.h"
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
    vgpu_lock(&lock);
    vgpu__holding++;
    held_here = true;
}

void vgpu__pools_leave(void) {
    held_here = false;
    vgpu__holding--;
    vgpu_unlock(&lock);
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

void vgpu__pool_drop_if_unused(struct vgpu__pool *pool) {
    if (pool->handle != NULL || pool->of_graphs || pool->live_bytes > 0)
        return;
    struct vgpu__pool **link = &pools;
    while (*link != pool)
        link = &(*link)->next;
    *link = pool->next;
    free(pool);
}

/* ---- What they hold ---- */

/* What the pool holds of the card; of a destroyed one, what the application has of it. False: the driver can't say. */
static bool ask_held(const struct vgpu__pool *pool, uint64_t *bytes) {
    unsigned long long held = pool->live_bytes;
    CUresult result = CUDA_SUCCESS;
    if (pool->of_graphs)
        VGPU_CALL(result, cuDeviceGetGraphMemAttribute, pool->ordinal, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, &held);
    else if (pool->handle != NULL)
        VGPU_CALL(result, cuMemPoolGetAttribute, pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &held);
    *bytes = held + pool->coming_bytes;
    return result == CUDA_SUCCESS;
}

static void trim(const struct vgpu__pool *pool) {
    CUresult result = CUDA_SUCCESS;
    if (pool->of_graphs)
        VGPU_CALL(result, cuDeviceGraphMemTrim, pool->ordinal);
    else if (pool->handle != NULL)
        VGPU_CALL(result, cuMemPoolTrimTo, pool->handle, 0);
    (void)result; /* what it could not trim it still holds: vgpu__pool_settle() sees that */
}

bool vgpu__pool_settle(struct vgpu__pool *pool) {
    uint64_t held;
    if (pool->device == NULL || !ask_held(pool, &held) || held >= pool->charged_bytes)
        return false;
    vgpu_credit(pool->device, pool->charged_bytes - held);
    pool->charged_bytes = held;
    return true;
}

bool vgpu__pool_shrink_all(struct vgpu_device *device, bool trim_first) {
    bool progress = false;
    for (struct vgpu__pool *pool = pools; pool != NULL; pool = pool->next) {
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
    pool->charged_bytes = held;
    return fits;
}

/* ---- For the other files of this folder ---- */

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
