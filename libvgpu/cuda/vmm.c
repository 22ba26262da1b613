/* SPDX-License-Identifier: Apache-2.0
 *
 * cuMemCreate and what keeps its memory alive. Releasing a handle frees nothing while the memory is mapped, and
 * unmapping frees nothing while there is a handle; applications do it in both orders. So a record counts both, and the
 * charge goes back with the last. A binding to a multicast object counts as a mapping: the driver does not say whether
 * it keeps the memory, so it is taken to. So does a descriptor that it was exported by, while that is open anywhere.
 * These calls take microseconds in the driver, and a process may have many thousands of handles: one mutex, under which
 * nothing takes longer the more there are. Handles are found by their value, mappings by their address.
 */
#include "cuda/vmm.h"

#include "core/ptrmap.h"
#include "core/quota.h"
#include "cuda/exported.h"
#include "cuda/footprint.h"
#include "cuda/memory.h"

#include <search.h>
#include <stddef.h>
#include <stdlib.h>

enum { ANY_DEVICE = -1 };

struct block {                           /* physical memory, or a multicast object (device is NULL) */
    struct block *next, **link;          /* link: what points to it */
    CUmemGenericAllocationHandle handle; /* of a multicast object */
    unsigned int handles, mappings;
    struct vgpu_device *device;
    CUdevice ordinal;
    uint64_t bytes;
    struct vgpu__exported *exported; /* descriptors that keep it too */
};

struct mapping {
    struct mapping *next;                /* of those that are bound */
    CUmemGenericAllocationHandle object; /* multicast object that it is bound to; 0: it is mapped */
    CUdeviceptr start;                   /* address, or offset in the object */
    size_t size;
    struct block *block;
};

static struct vgpu_lock lock = VGPU_UNLOCKED;
static struct block *blocks;
static struct mapping *bound;
static void *mapped;  /* a search tree by address: mappings do not overlap */
static int lingering; /* some blocks had only descriptors, the last time */

void vgpu__vmm_forget(void) {
    vgpu_lock_renew(&lock);
    blocks = NULL;
    bound = NULL;
    mapped = NULL;
    lingering = 0;
}

static void add_block(struct block *block) {
    block->link = &blocks;
    block->next = blocks;
    if (blocks != NULL)
        blocks->link = &block->next;
    blocks = block;
}

/* A handle's value may come again while the old memory is still mapped: it means a block only as long as it has been
 * handed out more often than it was released. */
static struct block *block_of_handle(CUmemGenericAllocationHandle handle) {
    struct vgpu_charge known;
    return vgpu_ptrmap_look(handle, VGPU_KIND_HANDLE, &known) ? known.owner : NULL;
}

/* What cannot be remembered is never released: its block stays charged. */
static void add_handle(struct block *block, CUmemGenericAllocationHandle handle) {
    struct vgpu_charge replaced, known = {.bytes = 0};
    bool again = vgpu_ptrmap_look(handle, VGPU_KIND_HANDLE, &known) && known.owner == block;
    known = (struct vgpu_charge){
        .key = handle, .kind = VGPU_KIND_HANDLE, .owner = block, .bytes = again ? known.bytes + 1 : 1};
    vgpu_ptrmap_put(&known, &replaced);
    block->handles++;
}

static struct block *remove_handle(CUmemGenericAllocationHandle handle) {
    struct vgpu_charge known, replaced;
    if (!vgpu_ptrmap_take(handle, VGPU_KIND_HANDLE, &known))
        return NULL;
    struct block *block = known.owner;
    block->handles--;
    if (--known.bytes > 0)
        vgpu_ptrmap_put(&known, &replaced);
    return block;
}

/* Ranges that overlap are alike. */
static int compare(const void *one, const void *other) {
    const struct mapping *a = one, *b = other;
    if (a->start < b->start)
        return b->start - a->start >= a->size ? -1 : 0;
    return a->start - b->start >= b->size ? 1 : 0;
}

static struct mapping *mapping_in(CUdeviceptr start, size_t size) {
    struct mapping range = {.start = start, .size = size}, *const *found = tfind(&range, &mapped, compare);
    return found != NULL ? *found : NULL;
}

static struct mapping *mapping_at(CUdeviceptr address) {
    return mapping_in(address, 1);
}

static void drop_bindings(CUmemGenericAllocationHandle object, CUdevice ordinal, CUdeviceptr start, size_t size);

/* True if it is gone. */
static bool drop_if_unused(struct block *block) {
    if (block->handles > 0 || block->mappings > 0)
        return false;
    if (vgpu__exported_open(&block->exported)) {
        __atomic_store_n(&lingering, 1, __ATOMIC_RELAXED);
        return false;
    }
    *block->link = block->next;
    if (block->next != NULL)
        block->next->link = block->link;
    if (block->device != NULL)
        vgpu_credit(block->device, block->bytes);
    else
        drop_bindings(block->handle, ANY_DEVICE, 0, SIZE_MAX);
    free(block);
    return true;
}

static void drop(struct mapping *mapping) {
    struct block *block = mapping->block;
    free(mapping);
    block->mappings--;
    drop_if_unused(block);
}

/* One call may unmap several neighbours. */
static void drop_mappings(CUdeviceptr start, size_t size) {
    for (struct mapping *mapping; (mapping = mapping_in(start, size)) != NULL; drop(mapping))
        tdelete(mapping, &mapped, compare);
}

/* Drop what begins in a range: one call may unbind several neighbours. */
static void drop_bindings(CUmemGenericAllocationHandle object, CUdevice ordinal, CUdeviceptr start, size_t size) {
    for (struct mapping **link = &bound; *link != NULL;) {
        struct mapping *mapping = *link;
        if (mapping->object != object || mapping->start < start || mapping->start - start >= size ||
            (ordinal != ANY_DEVICE && mapping->block->ordinal != ordinal)) {
            link = &mapping->next;
            continue;
        }
        *link = mapping->next;
        drop(mapping);
        link = &bound; /* dropping a multicast object drops more */
    }
}

bool vgpu__vmm_settle(void) {
    bool progress = false;
    if (!__atomic_load_n(&lingering, __ATOMIC_RELAXED) || vgpu__holding > 0)
        return false;
    vgpu__enter(&lock);
    __atomic_store_n(&lingering, 0, __ATOMIC_RELAXED);
    for (struct block *block = blocks, *next; block != NULL; block = next) {
        next = block->next;
        progress |= block->device != NULL && drop_if_unused(block);
    }
    vgpu__leave(&lock);
    return progress;
}

/* What the driver maps takes the place of whatever was there. Without memory to find it by its address it is never
 * unmapped: its block stays charged. */
static void remember_mapping(struct mapping *mapping, struct mapping what) {
    what.block->mappings++;
    *mapping = what;
    if (what.object != 0) {
        mapping->next = bound;
        bound = mapping;
        return;
    }
    drop_mappings(what.start, what.size);
    tsearch(mapping, &mapped, compare);
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                     unsigned long long flags) {
    struct vgpu__taking taking = {0};
    CUresult result = CUDA_SUCCESS;
    struct block *block = NULL;
    CUmemGenericAllocationHandle made = 0;
    CUmemAllocationProp kept; /* another thread may write to the application's */
    VGPU_ENTER(cuMemCreate, handle, size, prop, flags);
    if (prop != NULL)
        kept = *prop;
    if (prop != NULL && kept.location.type == CU_MEM_LOCATION_TYPE_DEVICE)
        result = vgpu__take_on(&taking, kept.location.id, size);
    if (result != CUDA_SUCCESS)
        return result;
    if (taking.device != NULL && (block = malloc(sizeof *block)) == NULL) {
        vgpu_credit(taking.device, taking.bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    VGPU_CALL(result, cuMemCreate, VGPU_OUT(handle, made), size, VGPU_OUT(prop, kept), flags);
    if (result == CUDA_SUCCESS)
        *handle = made;
    if (block == NULL)
        return result;
    if (result != CUDA_SUCCESS) {
        vgpu_credit(taking.device, taking.bytes);
        free(block);
        return result;
    }
    *block = (struct block){.device = taking.device, .ordinal = kept.location.id, .bytes = taking.bytes};
    vgpu__enter(&lock);
    add_block(block);
    add_handle(block, made);
    vgpu__leave(&lock);
    return result;
}

/* The driver's call is made under the lock in all of these: otherwise another thread could be given a value that we
 * still know by its old meaning. */
CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    VGPU_ENTER(cuMemRelease, handle);
    if (!vgpu__attached())
        return VGPU_REAL(cuMemRelease)(handle);
    CUresult result;
    vgpu__enter(&lock);
    VGPU_CALL(result, cuMemRelease, handle);
    struct block *block = result == CUDA_SUCCESS ? remove_handle(handle) : NULL;
    if (block != NULL)
        drop_if_unused(block);
    vgpu__leave(&lock);
    vgpu__footprint_settle_all(); /* it may have been imported, or have been exported and be imported too */
    return result;
}

CUresult cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle,
                                      CUmemAllocationHandleType type, unsigned long long flags) {
    VGPU_ENTER(cuMemExportToShareableHandle, shareable, handle, type, flags);
    if (!vgpu__attached())
        return VGPU_REAL(cuMemExportToShareableHandle)(shareable, handle, type, flags);
    CUresult result;
    vgpu__enter(&lock);
    VGPU_CALL(result, cuMemExportToShareableHandle, shareable, handle, type, flags);
    struct block *block = result == CUDA_SUCCESS ? block_of_handle(handle) : NULL;
    if (block != NULL && type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        vgpu__exported_add(&block->exported, *(int *)shareable);
    vgpu__leave(&lock);
    return result;
}

CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address) {
    VGPU_ENTER(cuMemRetainAllocationHandle, handle, address);
    if (!vgpu__attached())
        return VGPU_REAL(cuMemRetainAllocationHandle)(handle, address);
    CUresult result;
    CUmemGenericAllocationHandle made = 0;
    vgpu__enter(&lock);
    VGPU_CALL(result, cuMemRetainAllocationHandle, VGPU_OUT(handle, made), address);
    struct mapping *mapping = result == CUDA_SUCCESS ? mapping_at((CUdeviceptr)(uintptr_t)address) : NULL;
    if (mapping != NULL)
        add_handle(mapping->block, made);
    vgpu__leave(&lock);
    if (result == CUDA_SUCCESS)
        *handle = made;
    return result;
}

CUresult cuMemMap(CUdeviceptr dptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags) {
    VGPU_ENTER(cuMemMap, dptr, size, offset, handle, flags);
    if (!vgpu__attached())
        return VGPU_REAL(cuMemMap)(dptr, size, offset, handle, flags);
    CUresult result;
    struct mapping *mapping = malloc(sizeof *mapping);
    if (mapping == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    vgpu__enter(&lock);
    VGPU_CALL(result, cuMemMap, dptr, size, offset, handle, flags);
    struct block *block = result == CUDA_SUCCESS ? block_of_handle(handle) : NULL;
    if (block != NULL)
        remember_mapping(mapping, (struct mapping){.start = dptr, .size = size, .block = block});
    vgpu__leave(&lock);
    if (block == NULL)
        free(mapping);
    return result;
}

CUresult cuMemUnmap(CUdeviceptr dptr, size_t size) {
    VGPU_ENTER(cuMemUnmap, dptr, size);
    if (!vgpu__attached())
        return VGPU_REAL(cuMemUnmap)(dptr, size);
    CUresult result;
    vgpu__enter(&lock);
    VGPU_CALL(result, cuMemUnmap, dptr, size);
    if (result == CUDA_SUCCESS)
        drop_mappings(dptr, size);
    vgpu__leave(&lock);
    vgpu__footprint_settle_all();
    return result;
}

/* ---- Multicast objects ---- */

CUresult cuMulticastCreate(CUmemGenericAllocationHandle *handle, const CUmulticastObjectProp *prop) {
    VGPU_ENTER(cuMulticastCreate, handle, prop);
    if (!vgpu__attached())
        return VGPU_REAL(cuMulticastCreate)(handle, prop);
    CUresult result;
    CUmemGenericAllocationHandle made = 0;
    struct block *block = malloc(sizeof *block);
    if (block == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    vgpu__enter(&lock);
    VGPU_CALL(result, cuMulticastCreate, VGPU_OUT(handle, made), prop);
    if (result == CUDA_SUCCESS) {
        *handle = made;
        *block = (struct block){.handle = made, .ordinal = ANY_DEVICE};
        add_block(block);
        add_handle(block, made);
    }
    vgpu__leave(&lock);
    if (result != CUDA_SUCCESS)
        free(block);
    return result;
}

/* `block_found` is evaluated under the lock, when the driver has bound it. */
#define BIND(object_handle, offset, bound_size, block_found, symbol, ...)                                              \
    do {                                                                                                               \
        VGPU_ENTER(symbol, __VA_ARGS__);                                                                               \
        if (!vgpu__attached())                                                                                         \
            return VGPU_REAL(symbol)(__VA_ARGS__);                                                                     \
        CUresult result;                                                                                               \
        struct mapping *mapping = malloc(sizeof *mapping);                                                             \
        if (mapping == NULL)                                                                                           \
            return CUDA_ERROR_OUT_OF_MEMORY;                                                                           \
        vgpu__enter(&lock);                                                                                            \
        VGPU_CALL(result, symbol, __VA_ARGS__);                                                                        \
        struct block *block = result == CUDA_SUCCESS ? (block_found) : NULL;                                           \
        if (block != NULL)                                                                                             \
            remember_mapping(                                                                                          \
                mapping,                                                                                               \
                (struct mapping){.object = (object_handle), .start = (offset), .size = (bound_size), .block = block}); \
        vgpu__leave(&lock);                                                                                            \
        if (block == NULL)                                                                                             \
            free(mapping);                                                                                             \
        return result;                                                                                                 \
    } while (0)

static struct block *block_at(CUdeviceptr address) {
    struct mapping *mapping = mapping_at(address);
    return mapping != NULL ? mapping->block : NULL;
}

CUresult cuMulticastBindMem(CUmemGenericAllocationHandle handle, size_t offset, CUmemGenericAllocationHandle memory,
                            size_t memory_offset, size_t size, unsigned long long flags) {
    BIND(handle, offset, size, block_of_handle(memory), cuMulticastBindMem, handle, offset, memory, memory_offset, size,
         flags);
}

CUresult cuMulticastBindMem_v2(CUmemGenericAllocationHandle handle, CUdevice dev, size_t offset,
                               CUmemGenericAllocationHandle memory, size_t memory_offset, size_t size,
                               unsigned long long flags) {
    BIND(handle, offset, size, block_of_handle(memory), cuMulticastBindMem_v2, handle, dev, offset, memory,
         memory_offset, size, flags);
}

CUresult cuMulticastBindAddr(CUmemGenericAllocationHandle handle, size_t offset, CUdeviceptr dptr, size_t size,
                             unsigned long long flags) {
    BIND(handle, offset, size, block_at(dptr), cuMulticastBindAddr, handle, offset, dptr, size, flags);
}

CUresult cuMulticastBindAddr_v2(CUmemGenericAllocationHandle handle, CUdevice dev, size_t offset, CUdeviceptr dptr,
                                size_t size, unsigned long long flags) {
    BIND(handle, offset, size, block_at(dptr), cuMulticastBindAddr_v2, handle, dev, offset, dptr, size, flags);
}

CUresult cuMulticastUnbind(CUmemGenericAllocationHandle handle, CUdevice dev, size_t offset, size_t size) {
    VGPU_ENTER(cuMulticastUnbind, handle, dev, offset, size);
    if (!vgpu__attached())
        return VGPU_REAL(cuMulticastUnbind)(handle, dev, offset, size);
    CUresult result;
    vgpu__enter(&lock);
    VGPU_CALL(result, cuMulticastUnbind, handle, dev, offset, size);
    if (result == CUDA_SUCCESS)
        drop_bindings(handle, dev, offset, size);
    vgpu__leave(&lock);
    return result;
}
