/* SPDX-License-Identifier: Apache-2.0
 *
 * Linear memory: cuMemAlloc, Pitch, Managed, cuMemFree, in all versions.
 */
#include "cuda/memory.h"

#include "core/quota.h"
#include "cuda/blocks.h"
#include "cuda/footprint.h"
#include "cuda/launch.h"
#include "cuda/managed.h"
#include "cuda/oversubscribe.h"
#include "cuda/pools.h"
#include "cuda/vmm.h"

#include <stddef.h>

int vgpu__reserve(struct vgpu_device *device, uint64_t bytes) {
    vgpu__footprint_before(bytes);
    int result = vgpu_reserve(device, bytes);
    bool again = result != VGPU_OK && vgpu__vmm_settle();
    if (result != VGPU_OK && (vgpu__pools_shrink(device) || again)) {
        vgpu_not_refused(device); /* the second answer counts */
        result = vgpu_reserve(device, bytes);
    }
    return result;
}

static CUresult reserve(struct vgpu__taking *taking, struct vgpu_device *device, uint64_t bytes, CUresult refused) {
    if (device == NULL)
        return refused;
    if (vgpu__reserve(device, bytes) != VGPU_OK)
        return CUDA_ERROR_OUT_OF_MEMORY;
    taking->device = device;
    taking->bytes = bytes;
    return CUDA_SUCCESS;
}

/* Inside of a call of the driver too: a tenant's signal handler or allocator can be there. Where it is the driver that
 * calls, the memory has one key, and the second charge takes the place of the first. */
CUresult vgpu__take(struct vgpu__taking *taking, uint64_t bytes) {
    CUresult result = CUDA_SUCCESS;
    *taking = (struct vgpu__taking){0};
    struct vgpu_device *device = vgpu__cuda_current(&taking->context, &result);
    return reserve(taking, device, bytes, result);
}

static CUresult reserve_small(struct vgpu__taking *taking, struct vgpu_device *device, uint64_t bytes) {
    if (vgpu__block_coming(device, bytes, &taking->bytes) != VGPU_OK)
        return CUDA_ERROR_OUT_OF_MEMORY;
    taking->device = device;
    taking->small_bytes = bytes;
    return CUDA_SUCCESS;
}

/* Reserve for a plain allocation what the driver rounds it up to, or the block that it may lie in. */
static CUresult take_rounded(struct vgpu__taking *taking, uint64_t bytes) {
    CUresult result = CUDA_SUCCESS;
    *taking = (struct vgpu__taking){0};
    struct vgpu_device *device = vgpu__cuda_current(&taking->context, &result);
    if (device == NULL)
        return result;
    if (vgpu__rounding_shares(device, bytes))
        result = reserve_small(taking, device, bytes);
    else
        result = reserve(taking, device, vgpu__rounded(device, bytes), result);
    if (result == CUDA_SUCCESS && taking->bytes > 0 && vgpu__rounding_watch(device, bytes, &taking->before))
        taking->watched_bytes = bytes;
    return result;
}

/* The driver has allocated what was watched: from now on it is `taken` that is charged. */
static void learn(struct vgpu__taking *taking) {
    uint64_t taken;
    if (taking->small_bytes == 0)
        taken = vgpu__rounding_learn(taking->device, taking->watched_bytes, &taking->before);
    else if (vgpu__rounding_learn_small(taking->device, taking->watched_bytes, &taking->before))
        taken = taking->small_bytes;
    else
        return;
    if (taking->small_bytes > 0)
        vgpu__block_alone(taking->device, taking->bytes);
    taking->small_bytes = 0;
    if (taken < taking->bytes) {
        vgpu_credit(taking->device, taking->bytes - taken);
        taking->bytes = taken;
    }
}

CUresult vgpu__take_on(struct vgpu__taking *taking, CUdevice ordinal, uint64_t bytes) {
    CUresult result = CUDA_SUCCESS;
    *taking = (struct vgpu__taking){0};
    struct vgpu_device *device = vgpu__cuda_device(ordinal, &result);
    return reserve(taking, device, bytes, result);
}

static void give_back(const struct vgpu_charge *charge) {
    if (charge->kind == VGPU_KIND_HOSTED) {
        vgpu_credit_host(charge->device, charge->bytes);
        return;
    }
    if (charge->bytes & VGPU_IN_BLOCK) {
        vgpu__footprint_freed(charge->device);
        vgpu__block_left(charge->device, charge->key, charge->bytes & ~VGPU_IN_BLOCK);
        return;
    }
    if (charge->kind == VGPU_KIND_MANAGED || charge->kind == VGPU_KIND_VISITING)
        vgpu__footprint_managed(charge->device, -(int64_t)charge->bytes);
    if (charge->kind != VGPU_KIND_LIMIT && charge->kind != VGPU_KIND_LOCAL && charge->kind != VGPU_KIND_VISITING)
        vgpu__footprint_freed(charge->device);
    vgpu_credit(charge->device, charge->bytes);
}

/* A small allocation lies somewhere: where that is decides what it takes. */
static CUresult settle_small(struct vgpu__taking *taking, CUdeviceptr dptr) {
    CUresult freed;
    if (vgpu__block_came(taking->device, dptr, taking->small_bytes, taking->bytes) == VGPU_OK)
        return CUDA_SUCCESS;
    VGPU_CALL(freed, cuMemFree_v2, dptr);
    if (freed == CUDA_SUCCESS)
        return CUDA_ERROR_OUT_OF_MEMORY;
    vgpu_charge(taking->device, VGPU_BLOCK_BYTES); /* it is there, and charged */
    return vgpu__block_came(taking->device, dptr, taking->small_bytes, VGPU_BLOCK_BYTES) == VGPU_OK
               ? CUDA_SUCCESS
               : CUDA_ERROR_OUT_OF_MEMORY;
}

static void untake(const struct vgpu__taking *taking) {
    if (taking->small_bytes > 0)
        vgpu__block_failed(taking->device, taking->bytes);
    else
        vgpu_credit(taking->device, taking->bytes);
}

CUresult vgpu__taken(struct vgpu__taking *taking, CUresult result, enum vgpu_kind kind, uint64_t key) {
    if (taking->device == NULL)
        return result;
    if (result != CUDA_SUCCESS) {
        untake(taking);
        return result;
    }
    if (taking->watched_bytes > 0)
        learn(taking);
    if (taking->small_bytes > 0) {
        if ((result = settle_small(taking, key)) != CUDA_SUCCESS)
            return result;
        taking->bytes = taking->small_bytes | VGPU_IN_BLOCK;
    }
    struct vgpu_charge replaced,
        charge = {.key = key, .kind = kind, .bytes = taking->bytes, .device = taking->device, .owner = taking->context};
    /* The driver hands out a key that we still hold: it was freed on a way that we did not see. Without memory to
     * remember a charge it stays charged until the process ends. */
    if (vgpu_ptrmap_put(&charge, &replaced) && replaced.bytes > 0)
        give_back(&replaced);
    vgpu__footprint_allocated(taking->device);
    return result;
}

struct vgpu_charge vgpu__give(enum vgpu_kind kind, uint64_t key) {
    struct vgpu_charge charge = {0};
    if (vgpu_process() != NULL)
        vgpu_ptrmap_take(key, kind, &charge);
    return charge;
}

CUresult vgpu__given(const struct vgpu_charge *charge, CUresult result) {
    struct vgpu_charge replaced;
    if (charge->device == NULL)
        return result; /* not ours: imported, or the parent's */
    if (result == CUDA_SUCCESS && charge->kind == VGPU_KIND_POOLED)
        vgpu__pooled_freed(charge);
    else if (result == CUDA_SUCCESS)
        give_back(charge);
    else if (vgpu_ptrmap_put(charge, &replaced) && replaced.bytes > 0)
        give_back(&replaced);
    return result;
}

void vgpu__memory_gone(void *owner) {
    struct vgpu_charge charge;
    while (vgpu_ptrmap_take_owned(owner, &charge)) {
        if (charge.kind == VGPU_KIND_CAPTURE)
            vgpu__launch_capture(-1);
        else
            give_back(&charge);
    }
}

void vgpu__memory_forget(void) {
    vgpu_ptrmap_forget();
}

CUresult cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytes) {
    struct vgpu__taking taking;
    CUdeviceptr made = 0;
    CUresult result = take_rounded(&taking, bytes);
    if (result != CUDA_SUCCESS)
        return vgpu__oversubscribe(dptr, bytes, result);
    VGPU_CALL(result, cuMemAlloc_v2, VGPU_OUT(dptr, made), bytes);
    result = vgpu__taken(&taking, result, VGPU_KIND_POINTER, made);
    if (result == CUDA_SUCCESS)
        *dptr = made;
    return result;
}

CUresult cuMemAlloc(CUdeviceptr_v1 *dptr, unsigned int bytes) {
    struct vgpu__taking taking;
    CUdeviceptr_v1 made = 0;
    CUresult result = take_rounded(&taking, bytes);
    if (result != CUDA_SUCCESS)
        return result;
    VGPU_CALL(result, cuMemAlloc, VGPU_OUT(dptr, made), bytes);
    result = vgpu__taken(&taking, result, VGPU_KIND_POINTER, made);
    if (result == CUDA_SUCCESS)
        *dptr = made;
    return result;
}

/* The driver chooses the pitch. What the smallest pitch needs is reserved before, the rest as soon as the pitch is
 * known. */
static CUresult settle_pitch(struct vgpu__taking *taking, CUdeviceptr dptr, uint64_t bytes) {
    if (taking->watched_bytes > 0)
        taking->watched_bytes = bytes;
    if (taking->device == NULL)
        return CUDA_SUCCESS;
    if (taking->small_bytes > 0 && vgpu__rounding_shares(taking->device, bytes)) {
        taking->small_bytes = bytes;
        return CUDA_SUCCESS;
    }
    if (taking->small_bytes > 0)
        vgpu__block_alone(taking->device, taking->bytes);
    taking->small_bytes = 0; /* it is too large for a block */
    if ((bytes = vgpu__rounded(taking->device, bytes)) <= taking->bytes)
        return CUDA_SUCCESS;
    if (vgpu__reserve(taking->device, bytes - taking->bytes) == VGPU_OK) {
        taking->bytes = bytes;
        return CUDA_SUCCESS;
    }
    CUresult freed;
    VGPU_CALL(freed, cuMemFree_v2, dptr);
    if (freed == CUDA_SUCCESS)
        return CUDA_ERROR_OUT_OF_MEMORY;
    vgpu_charge(taking->device, bytes - taking->bytes); /* it is there, and charged */
    taking->bytes = bytes;
    return CUDA_SUCCESS;
}

/* a * b, or more than any limit where that does not fit. */
static uint64_t area(uint64_t a, uint64_t b) {
    uint64_t product;
    return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}

/* On the host: with a pitch that any device takes. */
static CUresult oversubscribe_pitch(CUdeviceptr *dptr, size_t *pitch, uint64_t width, uint64_t height,
                                    CUresult refused) {
    enum { PITCH = 512 };
    uint64_t row = width > UINT64_MAX - PITCH ? UINT64_MAX : (width + PITCH - 1) / PITCH * PITCH;
    CUresult result = pitch != NULL ? vgpu__oversubscribe(dptr, area(row, height), refused) : refused;
    if (result == CUDA_SUCCESS)
        *pitch = row;
    return result;
}

CUresult cuMemAllocPitch_v2(CUdeviceptr *dptr, size_t *pitch, size_t width_bytes, size_t height,
                            unsigned int element_bytes) {
    struct vgpu__taking taking;
    CUdeviceptr made = 0;
    size_t row = 0;
    CUresult result = take_rounded(&taking, area(width_bytes, height));
    if (result != CUDA_SUCCESS)
        return oversubscribe_pitch(dptr, pitch, width_bytes, height, result);
    VGPU_CALL(result, cuMemAllocPitch_v2, VGPU_OUT(dptr, made), VGPU_OUT(pitch, row), width_bytes, height,
              element_bytes);
    if (result == CUDA_SUCCESS)
        result = settle_pitch(&taking, made, area(row, height));
    result = vgpu__taken(&taking, result, VGPU_KIND_POINTER, made);
    if (result == CUDA_SUCCESS) {
        *dptr = made;
        *pitch = row;
    }
    return result;
}

CUresult cuMemAllocPitch(CUdeviceptr_v1 *dptr, unsigned int *pitch, unsigned int width_bytes, unsigned int height,
                         unsigned int element_bytes) {
    struct vgpu__taking taking;
    CUdeviceptr_v1 made = 0;
    unsigned int row = 0;
    CUresult result = take_rounded(&taking, area(width_bytes, height));
    if (result != CUDA_SUCCESS)
        return result;
    VGPU_CALL(result, cuMemAllocPitch, VGPU_OUT(dptr, made), VGPU_OUT(pitch, row), width_bytes, height, element_bytes);
    if (result == CUDA_SUCCESS)
        result = settle_pitch(&taking, made, area(row, height));
    result = vgpu__taken(&taking, result, VGPU_KIND_POINTER, made);
    if (result == CUDA_SUCCESS) {
        *dptr = made;
        *pitch = row;
    }
    return result;
}

CUresult cuMemAllocManaged(CUdeviceptr *dptr, size_t bytes, unsigned int flags) {
    struct vgpu__taking taking;
    CUdeviceptr made = 0;
    CUresult result = vgpu__take(&taking, bytes);
    if (result != CUDA_SUCCESS)
        return flags == CU_MEM_ATTACH_GLOBAL ? vgpu__oversubscribe(dptr, bytes, result) : result;
    VGPU_CALL(result, cuMemAllocManaged, VGPU_OUT(dptr, made), bytes, flags);
    if (result == CUDA_SUCCESS && taking.device != NULL)
        vgpu__footprint_managed(taking.device, (int64_t)bytes);
    result = vgpu__taken(&taking, result, VGPU_KIND_MANAGED, made);
    if (result == CUDA_SUCCESS)
        *dptr = made;
    return result;
}

/* Stream-ordered memory may be freed this way too. */
CUresult cuMemFree_v2(CUdeviceptr dptr) {
    CUresult result;
    struct vgpu__visits visits = {.count = 0};
    VGPU_ENTER(cuMemFree_v2, dptr);
    struct vgpu_charge charge = vgpu__give(VGPU_KIND_POINTER, dptr);
    if (charge.device == NULL)
        charge = vgpu__give(VGPU_KIND_POOLED, dptr);
    if (charge.device == NULL)
        charge = vgpu__give(VGPU_KIND_MANAGED, dptr);
    if (charge.kind == VGPU_KIND_MANAGED || charge.kind == VGPU_KIND_POOLED)
        vgpu__visits_give(dptr, &visits);
    if (charge.device == NULL)
        charge = vgpu__give(VGPU_KIND_HOSTED, dptr);
    VGPU_CALL(result, cuMemFree_v2, dptr);
    vgpu__visits_given(&visits, result);
    return vgpu__given(&charge, result);
}

CUresult cuMemFree(CUdeviceptr_v1 dptr) {
    CUresult result;
    VGPU_ENTER(cuMemFree, dptr);
    struct vgpu_charge charge = vgpu__give(VGPU_KIND_POINTER, dptr);
    VGPU_CALL(result, cuMemFree, dptr);
    return vgpu__given(&charge, result);
}
