/* SPDX-License-Identifier: Apache-2.0
 *
 * cuMemCreate and what keeps its memory alive. Releasing a handle frees nothing while the memory is mapped, and
 * unmapping frees nothing while there is a handle; applications do it in both orders. So a record counts both, and the
 * charge goes back with the last. These calls take microseconds in the driver: one mutex over short lists is enough.
 */
#include "cuda/vmm.h"

#include "core/quota.h"
#include "cuda/memory.h"

#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>

struct block { /* physical memory */
    struct block *next;
    CUmemGenericAllocationHandle handle;
    unsigned int handles, mappings;
    struct vgpu_device *device;
    uint64_t bytes;
};

struct mapping {
    struct mapping *next;
    CUdeviceptr start;
    size_t size;
    struct block *block;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct block *blocks;
static struct mapping *mappings;

void vgpu__vmm_forget(void) {
    pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    lock = fresh;
    blocks = NULL;
    mappings = NULL;
}

/* A handle's value may come again while the old memory is still mapped: only a block with handles is meant. */
static struct block *block_of_handle(CUmemGenericAllocationHandle handle) {
    struct block *block = blocks;
    while (block != NULL && (block->handle != handle || block->handles == 0))
        block = block->next;
    return block;
}

static void drop_if_unused(struct block *block) {
    if (block->handles > 0 || block->mappings > 0)
        return;
    struct block **link = &blocks;
    while (*link != block)
        link = &(*link)->next;
    *link = block->next;
    vgpu_credit(block->device, block->bytes);
    free(block);
}

static struct mapping *mapping_at(CUdeviceptr address) {
    struct mapping *mapping = mappings;
    while (mapping != NULL && (address < mapping->start || address - mapping->start >= mapping->size))
        mapping = mapping->next;
    return mapping;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                     unsigned long long flags) {
    struct vgpu__taking taking = {0};
    CUresult result = CUDA_SUCCESS;
    struct block *block = NULL;
    if (prop != NULL && prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE)
        result = vgpu__take_on(&taking, prop->location.id, size);
    if (result != CUDA_SUCCESS)
        return result;
    if (taking.device != NULL && (block = malloc(sizeof *block)) == NULL) {
        vgpu_credit(taking.device, taking.bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    VGPU_CALL(result, cuMemCreate, handle, size, prop, flags);
    if (block == NULL)
        return result;
    if (result != CUDA_SUCCESS) {
        vgpu_credit(taking.device, taking.bytes);
        free(block);
        return result;
    }
    *block = (struct block){.handle = *handle, .handles = 1, .device = taking.device, .bytes = taking.bytes};
    pthread_mutex_lock(&lock);
    block->next = blocks;
    blocks = block;
    pthread_mutex_unlock(&lock);
    return result;
}

/* The driver's call is made under the lock in all of these: otherwise another thread could be given a value that we
 * still know by its old meaning. */
CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    if (vgpu__inside > 0)
        return VGPU_REAL(cuMemRelease)(handle);
    CUresult result;
    pthread_mutex_lock(&lock);
    VGPU_CALL(result, cuMemRelease, handle);
    struct block *block = result == CUDA_SUCCESS ? block_of_handle(handle) : NULL;
    if (block != NULL) {
        block->handles--;
        drop_if_unused(block);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address) {
    if (vgpu__inside > 0)
        return VGPU_REAL(cuMemRetainAllocationHandle)(handle, address);
    CUresult result;
    pthread_mutex_lock(&lock);
    VGPU_CALL(result, cuMemRetainAllocationHandle, handle, address);
    struct mapping *mapping = result == CUDA_SUCCESS ? mapping_at((CUdeviceptr)(uintptr_t)address) : NULL;
    if (mapping != NULL) {
        mapping->block->handle = *handle;
        mapping->block->handles++;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

CUresult cuMemMap(CUdeviceptr dptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags) {
    if (vgpu__inside > 0)
        return VGPU_REAL(cuMemMap)(dptr, size, offset, handle, flags);
    CUresult result;
    struct mapping *mapping = malloc(sizeof *mapping);
    if (mapping == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    VGPU_CALL(result, cuMemMap, dptr, size, offset, handle, flags);
    struct block *block = result == CUDA_SUCCESS ? block_of_handle(handle) : NULL;
    if (block != NULL) {
        *mapping = (struct mapping){.next = mappings, .start = dptr, .size = size, .block = block};
        mappings = mapping;
        block->mappings++;
    }
    pthread_mutex_unlock(&lock);
    if (block == NULL)
        free(mapping);
    return result;
}

/* One call may unmap several neighbouring mappings. */
CUresult cuMemUnmap(CUdeviceptr dptr, size_t size) {
    if (vgpu__inside > 0)
        return VGPU_REAL(cuMemUnmap)(dptr, size);
    CUresult result;
    pthread_mutex_lock(&lock);
    VGPU_CALL(result, cuMemUnmap, dptr, size);
    for (struct mapping **link = &mappings; result == CUDA_SUCCESS && *link != NULL;) {
        struct mapping *mapping = *link;
        if (mapping->start < dptr || mapping->start - dptr >= size) {
            link = &mapping->next;
            continue;
        }
        *link = mapping->next;
        mapping->block->mappings--;
        drop_if_unused(mapping->block);
        free(mapping);
    }
    pthread_mutex_unlock(&lock);
    return result;
}
