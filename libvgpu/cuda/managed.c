/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda/managed.h"

#include "core/lock.h"
#include "core/quota.h"
#include "cuda/memory.h"
#include "cuda/oversubscribe.h"
#include "cuda/pools.h"

#include <stddef.h>
#include <stdlib.h>

static struct vgpu_lock lock = VGPU_UNLOCKED; /* who charges a visit first */
static int visited;

void vgpu__managed_forget(void) {
    vgpu_lock_renew(&lock);
    visited = 0;
}

static uint64_t key_of(CUdeviceptr base, CUdevice ordinal) {
    return base + 1 + (uint64_t)ordinal; /* allocations are further apart */
}

void vgpu__visits_give(CUdeviceptr dptr, struct vgpu__visits *visits) {
    visits->count = 0;
    if (!__atomic_load_n(&visited, __ATOMIC_RELAXED) || !vgpu__attached())
        return;
    for (CUdevice ordinal = 0; ordinal < VGPU_MAX_ORDINALS; ordinal++)
        if (vgpu_ptrmap_take(key_of(dptr, ordinal), VGPU_KIND_VISITING, &visits->charges[visits->count]))
            visits->count++;
}

void vgpu__visits_given(const struct vgpu__visits *visits, CUresult result) {
    for (uint32_t i = 0; i < visits->count; i++)
        vgpu__given(&visits->charges[i], result);
}

/* ---- What moves it ---- */

/* One range on its way to a device. */
struct coming {
    uint64_t key; /* of the charge that was made for it; 0: none was needed */
};

enum course { GO, STAY }; /* STAY: the driver is not asked, *result says what to return */

/* Charge a range on a device that is not its own. */
static CUresult visit(CUdeviceptr base, uint64_t bytes, CUdevice ordinal, struct coming *coming) {
    CUresult result;
    struct vgpu_charge own, charge, replaced;
    struct vgpu_device *device = vgpu__cuda_device(ordinal, &result);
    if (device == NULL)
        return result;
    bool moves = vgpu_ptrmap_look(base, VGPU_KIND_MANAGED, &own) || vgpu__pool_moves(base, &own);
    if (!moves || own.device == device)
        return CUDA_SUCCESS;
    charge = (struct vgpu_charge){
        .key = key_of(base, ordinal), .kind = VGPU_KIND_VISITING, .bytes = bytes, .device = device, .owner = own.owner};
    result = CUDA_SUCCESS;
    vgpu__enter(&lock);
    __atomic_store_n(&visited, 1, __ATOMIC_RELAXED);
    if (!vgpu_ptrmap_look(charge.key, VGPU_KIND_VISITING, &replaced)) {
        if (vgpu__reserve(device, bytes) != VGPU_OK) {
            result = CUDA_ERROR_OUT_OF_MEMORY;
        } else {
            vgpu__footprint_managed(device, (int64_t)bytes);
            vgpu_ptrmap_put(&charge, &replaced); /* forgotten: it stays charged */
            coming->key = charge.key;
        }
    }
    vgpu__leave(&lock);
    return result;
}

/* Memory that the driver did not give out: it moves by itself where devices reach all of the host's. */
static enum course application_memory(CUdevice ordinal, CUresult *result) {
    int reached = 0;
    CUresult asked;
    VGPU_CALL(asked, cuDeviceGetAttribute, &reached, CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS, ordinal);
    *result = CUDA_SUCCESS;
    return asked == CUDA_SUCCESS && reached ? STAY : GO; /* else the driver says what is wrong */
}

enum { HOST = -1 };

/* A range shall go to a device, or to the host. What lies on the host for want of room stays there, and what nobody
 * could charge where it is: other wishes are hints, and passed over. */
static enum course come(CUdeviceptr dptr, CUdevice ordinal, struct coming *coming, CUresult *result) {
    CUdeviceptr base;
    size_t size;
    struct vgpu_charge charge;
    *coming = (struct coming){0};
    *result = CUDA_SUCCESS;
    if (!vgpu__attached() || (ordinal < 0 && !vgpu__oversubscribed()))
        return GO;
    VGPU_CALL(*result, cuMemGetAddressRange_v2, &base, &size, dptr);
    if (*result == CUDA_ERROR_INVALID_VALUE || *result == CUDA_ERROR_NOT_FOUND)
        return ordinal < 0 ? GO : application_memory(ordinal, result);
    if (*result != CUDA_SUCCESS || vgpu_ptrmap_look(base, VGPU_KIND_HOSTED, &charge))
        return STAY;
    if (ordinal >= 0)
        *result = visit(base, size, ordinal, coming);
    return *result == CUDA_SUCCESS ? GO : STAY;
}

/* It did not go. */
static void turn_back(const struct coming *coming) {
    struct vgpu_charge charge;
    if (coming->key != 0 && vgpu_ptrmap_take(coming->key, VGPU_KIND_VISITING, &charge))
        vgpu__given(&charge, CUDA_SUCCESS);
}

#define MOVE(ordinal, symbol, ...)                                                                                     \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        struct coming coming;                                                                                          \
        VGPU_ENTER(symbol, __VA_ARGS__);                                                                               \
        if (come(dptr, ordinal, &coming, &result) == STAY)                                                             \
            return result;                                                                                             \
        VGPU_CALL(result, symbol, __VA_ARGS__);                                                                        \
        if (result != CUDA_SUCCESS)                                                                                    \
            turn_back(&coming);                                                                                        \
        return result;                                                                                                 \
    } while (0)

static CUdevice device_at(CUmemLocation location) {
    return location.type == CU_MEM_LOCATION_TYPE_DEVICE ? location.id : HOST;
}

/* Only a preferred location moves anything. */
static CUdevice advised(CUmem_advise advice, CUdevice ordinal) {
    enum { SET_PREFERRED_LOCATION = 3 };
    return advice == SET_PREFERRED_LOCATION ? ordinal : HOST;
}

CUresult cuMemAdvise(CUdeviceptr dptr, size_t bytes, CUmem_advise advice, CUdevice dev) {
    MOVE(advised(advice, dev), cuMemAdvise, dptr, bytes, advice, dev);
}

CUresult cuMemAdvise_v2(CUdeviceptr dptr, size_t bytes, CUmem_advise advice, CUmemLocation location) {
    MOVE(advised(advice, device_at(location)), cuMemAdvise_v2, dptr, bytes, advice, location);
}

CUresult cuMemPrefetchAsync(CUdeviceptr dptr, size_t bytes, CUdevice dev, CUstream hStream) {
    MOVE(dev, cuMemPrefetchAsync, dptr, bytes, dev, hStream);
}

CUresult cuMemPrefetchAsync_ptsz(CUdeviceptr dptr, size_t bytes, CUdevice dev, CUstream hStream) {
    MOVE(dev, cuMemPrefetchAsync_ptsz, dptr, bytes, dev, hStream);
}

CUresult cuMemPrefetchAsync_v2(CUdeviceptr dptr, size_t bytes, CUmemLocation location, unsigned int flags,
                               CUstream hStream) {
    MOVE(device_at(location), cuMemPrefetchAsync_v2, dptr, bytes, location, flags, hStream);
}

CUresult cuMemPrefetchAsync_v2_ptsz(CUdeviceptr dptr, size_t bytes, CUmemLocation location, unsigned int flags,
                                    CUstream hStream) {
    MOVE(device_at(location), cuMemPrefetchAsync_v2_ptsz, dptr, bytes, location, flags, hStream);
}

/* ---- Many ranges at once ---- */

/* Which location a range goes to: `indices` say from which range on one counts. */
struct batch {
    CUdeviceptr *dptrs;
    size_t count;
    CUmemLocation *locations;
    size_t *indices;
    size_t location_count;
};

static CUresult come_all(const struct batch *batch, struct coming *coming) {
    for (size_t i = 0, at = 0; i < batch->count; i++) {
        CUresult result;
        at += at + 1 < batch->location_count && batch->indices[at + 1] == i;
        if (come(batch->dptrs[i], device_at(batch->locations[at]), &coming[i], &result) == STAY)
            return result == CUDA_SUCCESS ? CUDA_ERROR_NOT_SUPPORTED : result; /* one stays: none goes */
    }
    return CUDA_SUCCESS;
}

#define BATCH(symbol)                                                                                                  \
    CUresult symbol(CUdeviceptr *dptrs, size_t *sizes, size_t count, CUmemLocation *locations, size_t *indices,        \
                    size_t location_count, unsigned long long flags, CUstream hStream) {                               \
        VGPU_ENTER(symbol, dptrs, sizes, count, locations, indices, location_count, flags, hStream);                   \
        struct batch batch = {dptrs, count, locations, indices, location_count};                                       \
        if (dptrs == NULL || locations == NULL || indices == NULL || location_count == 0 || count == SIZE_MAX)         \
            return CUDA_ERROR_INVALID_VALUE;                                                                           \
        struct coming *coming = calloc(count + 1, sizeof *coming);                                                     \
        if (coming == NULL)                                                                                            \
            return CUDA_ERROR_OUT_OF_MEMORY;                                                                           \
        CUresult result = come_all(&batch, coming);                                                                    \
        if (result == CUDA_SUCCESS)                                                                                    \
            VGPU_CALL(result, symbol, dptrs, sizes, count, locations, indices, location_count, flags, hStream);        \
        for (size_t i = 0; i < count && result != CUDA_SUCCESS; i++)                                                   \
            turn_back(&coming[i]);                                                                                     \
        free(coming);                                                                                                  \
        return result;                                                                                                 \
    }

BATCH(cuMemPrefetchBatchAsync)
BATCH(cuMemPrefetchBatchAsync_ptsz)
BATCH(cuMemDiscardAndPrefetchBatchAsync)
BATCH(cuMemDiscardAndPrefetchBatchAsync_ptsz)
