/* SPDX-License-Identifier: Apache-2.0
 *
 * The virtual memory management API: address ranges, memory without an address, and mapping one to the other. The
 * memory is a memory file, so that it can be mapped in several places and handed to another process. It is charged to
 * the process that created it until the last handle and mapping there are gone, and then to who has imported it.
 */
#define _GNU_SOURCE
#include "virtual.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct mapping {
    uint64_t offset, size, memory_offset;
    struct memory *memory;
    bool accessible;
    struct mapping *next;
};

static pthread_mutex_t handles_lock = PTHREAD_MUTEX_INITIALIZER;

void memories_forget_all(void) {
    pthread_mutex_init(&handles_lock, NULL); /* a thread of the parent may have held it */
}

int memory_file(uint64_t size) {
    int fd = memfd_create("cuda-stub", MFD_CLOEXEC);
    if (fd >= 0 && ftruncate(fd, (off_t)size) != 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

bool bytes_map_file(CUdeviceptr address, size_t size, int fd, uint64_t offset) {
    int flags = fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
    return mmap(arena_bytes(address), size, PROT_READ | PROT_WRITE, flags | MAP_FIXED | MAP_NORESERVE, fd,
                (off_t)offset) != MAP_FAILED;
}

struct memory *memory_of(CUmemGenericAllocationHandle handle) {
    struct memory *memory = (struct memory *)handle;
    return handle_lives(memory) && (memory->tag == MEMORY_TAG || memory->tag == MULTICAST_TAG) ? memory : NULL;
}

/* The last handle or mapping may be gone. */
static void memory_settle(struct memory *memory) {
    pthread_mutex_lock(&handles_lock);
    bool last = memory->handles == 0 && memory->uses == 0;
    if (last)
        memory->tag = 0;
    pthread_mutex_unlock(&handles_lock);
    if (!last)
        return;
    device_credit(memory->device, memory->charged);
    holding_close(memory->holding);
    if (memory->fd >= 0)
        close(memory->fd);
    handle_give(memory);
}

static bool memory_has_file(struct memory *memory) {
    pthread_mutex_lock(&handles_lock);
    if (memory->fd < 0)
        memory->fd = memory_file(memory->size);
    pthread_mutex_unlock(&handles_lock);
    return memory->fd >= 0;
}

/* From now on others can hold it. */
static bool memory_shared(struct memory *memory) {
    pthread_mutex_lock(&handles_lock);
    if (memory->charged > 0) {
        memory->holding = holding_share(memory->device, memory->fd, memory->charged);
        memory->charged = memory->holding.entry < 0 ? memory->charged : 0;
    }
    bool shared = memory->charged == 0;
    pthread_mutex_unlock(&handles_lock);
    return shared;
}

struct memory *memory_make(struct device *device, uint32_t tag, uint64_t size, uint64_t charged) {
    struct memory *memory = handle_take(HANDLE_MEMORY, sizeof *memory);
    if (!memory)
        return NULL;
    *memory = (struct memory){.tag = tag, .handles = 1, .size = size, .charged = charged, .fd = -1, .device = device};
    memory->holding.entry = -1;
    return memory;
}

/* ---- Memory ---- */

CUresult stub_cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *prop,
                                            CUmemAllocationGranularity_flags option) {
    struct device *device;
    REQUIRE(granularity && prop && option >= 0 && option <= 1, CUDA_ERROR_INVALID_VALUE);
    TRY(device_of(prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE ? prop->location.id : 0, &device));
    *granularity = device->card.shared->vmm_bytes;
    return CUDA_SUCCESS;
}

CUresult stub_cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                          unsigned long long flags) {
    struct device *device;
    REQUIRE(handle && prop && flags == 0 && prop->type == CU_MEM_ALLOCATION_TYPE_PINNED, CUDA_ERROR_INVALID_VALUE);
    bool on_device = prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE;
    TRY(device_of(on_device ? prop->location.id : 0, &device));
    REQUIRE(size && size % device->card.shared->vmm_bytes == 0, CUDA_ERROR_INVALID_VALUE);
    pthread_mutex_lock(&driver.lock);
    CUresult joined = device_join(device);
    pthread_mutex_unlock(&driver.lock);
    TRY(joined);
    uint64_t charge = on_device ? size : 0;
    REQUIRE(device_charge(device, charge), CUDA_ERROR_OUT_OF_MEMORY);
    struct memory *memory = memory_make(device, MEMORY_TAG, size, charge);
    if (!memory) {
        device_credit(device, charge);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    memory->prop = *prop;
    *handle = (CUmemGenericAllocationHandle)memory;
    return CUDA_SUCCESS;
}

CUresult stub_cuMemRelease(CUmemGenericAllocationHandle handle) {
    struct memory *memory = memory_of(handle);
    REQUIRE(memory && memory->handles > 0, CUDA_ERROR_INVALID_VALUE);
    pthread_mutex_lock(&handles_lock);
    memory->handles--;
    pthread_mutex_unlock(&handles_lock);
    memory_settle(memory);
    return CUDA_SUCCESS;
}

CUresult stub_cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop, CUmemGenericAllocationHandle handle) {
    struct memory *memory = memory_of(handle);
    REQUIRE(prop && memory, CUDA_ERROR_INVALID_VALUE);
    *prop = memory->prop;
    return CUDA_SUCCESS;
}

CUresult stub_cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle,
                                           CUmemAllocationHandleType type, unsigned long long flags) {
    struct memory *memory = memory_of(handle);
    REQUIRE(shareable && memory && flags == 0, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR && (memory->prop.requestedHandleTypes & type),
            CUDA_ERROR_INVALID_VALUE);
    REQUIRE(memory_has_file(memory) && memory_shared(memory), CUDA_ERROR_OPERATING_SYSTEM);
    int fd = holding_descriptor(memory->fd);
    REQUIRE(fd >= 0, CUDA_ERROR_OPERATING_SYSTEM);
    *(int *)shareable = fd;
    return CUDA_SUCCESS;
}

CUresult stub_cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *os_handle,
                                             CUmemAllocationHandleType type) {
    CUcontext context;
    struct stat st;
    TRY(current_context(&context));
    REQUIRE(handle && type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, CUDA_ERROR_INVALID_VALUE);
    char path[64]; /* another description, since the lock of the descriptor goes with this one */
    snprintf(path, sizeof path, "/proc/self/fd/%d", (int)(intptr_t)os_handle);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    REQUIRE(fd >= 0 && fstat(fd, &st) == 0 && st.st_size > 0, CUDA_ERROR_INVALID_VALUE);
    struct memory *memory = memory_make(context->device, MEMORY_TAG, (uint64_t)st.st_size, 0);
    REQUIRE(memory, CUDA_ERROR_OUT_OF_MEMORY);
    memory->fd = fd;
    memory->holding = holding_open(fd);
    memory->prop = (CUmemAllocationProp){.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                         .requestedHandleTypes = type,
                                         .location = {CU_MEM_LOCATION_TYPE_DEVICE, context->device->ordinal}};
    *handle = (CUmemGenericAllocationHandle)memory;
    return CUDA_SUCCESS;
}

/* ---- Address ranges ---- */

CUresult stub_cuMemAddressReserve(CUdeviceptr *dptr, size_t size, size_t alignment, CUdeviceptr wish,
                                  unsigned long long flags) {
    CUcontext context;
    struct allocation *record;
    (void)wish; /* a hint, which the driver is free not to take */
    TRY(current_context(&context));
    REQUIRE(dptr && size && flags == 0 && (alignment & (alignment - 1)) == 0, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(size % context->device->card.shared->vmm_bytes == 0, CUDA_ERROR_INVALID_VALUE);
    TRY(allocation_make(ALLOCATION_RESERVATION, context, size < alignment ? alignment : size, 0, &record));
    *dptr = record->base;
    return CUDA_SUCCESS;
}

static struct allocation *reservation_at(CUdeviceptr dptr) {
    struct allocation *record = arena_find(dptr);
    return record && record->kind == ALLOCATION_RESERVATION ? record : NULL;
}

CUresult stub_cuMemAddressFree(CUdeviceptr dptr, size_t size) {
    pthread_mutex_lock(&memory_lock);
    struct allocation *record = reservation_at(dptr);
    bool known = record && record->base == dptr && !record->mappings;
    pthread_mutex_unlock(&memory_lock);
    REQUIRE(known && size, CUDA_ERROR_INVALID_VALUE);
    allocation_drop(record);
    return CUDA_SUCCESS;
}

static bool overlaps(const struct mapping *mapping, uint64_t offset, uint64_t size) {
    return mapping->offset < offset + size && offset < mapping->offset + mapping->size;
}

CUresult stub_cuMemMap(CUdeviceptr dptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                       unsigned long long flags) {
    struct memory *memory = memory_of(handle);
    REQUIRE(memory && flags == 0 && size && offset <= memory->size && size <= memory->size - offset,
            CUDA_ERROR_INVALID_VALUE);
    uint64_t step = memory->device->card.shared->vmm_bytes;
    REQUIRE(dptr % step == 0 && size % step == 0 && offset % step == 0, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(memory_has_file(memory), CUDA_ERROR_OPERATING_SYSTEM);
    struct mapping *mapping = malloc(sizeof *mapping);
    REQUIRE(mapping, CUDA_ERROR_OUT_OF_MEMORY);
    pthread_mutex_lock(&memory_lock);
    struct allocation *record = reservation_at(dptr);
    CUresult result = record && size <= record->size - (dptr - record->base) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    for (struct mapping *at = record ? record->mappings : NULL; at && result == CUDA_SUCCESS; at = at->next)
        if (overlaps(at, dptr - record->base, size))
            result = CUDA_ERROR_ALREADY_MAPPED;
    if (result == CUDA_SUCCESS && !bytes_map_file(dptr, size, memory->fd, offset))
        result = CUDA_ERROR_OPERATING_SYSTEM;
    if (result == CUDA_SUCCESS) {
        *mapping = (struct mapping){dptr - record->base, size, offset, memory, false, record->mappings};
        record->mappings = mapping;
        __atomic_fetch_add(&memory->uses, 1, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&memory_lock);
    if (result != CUDA_SUCCESS)
        free(mapping);
    return result;
}

/* Takes mappings that lie wholly in [offset, offset + size) off the record's list. Under memory_lock. */
static struct mapping *detach(struct allocation *record, uint64_t offset, uint64_t size) {
    struct mapping *detached = NULL;
    for (struct mapping **at = &record->mappings; *at;) {
        struct mapping *mapping = *at;
        if (mapping->offset < offset || mapping->offset + mapping->size > offset + size) {
            at = &mapping->next;
            continue;
        }
        *at = mapping->next;
        mapping->next = detached;
        detached = mapping;
        bytes_map_file(record->base + mapping->offset, mapping->size, -1, 0);
    }
    return detached;
}

static void forget_mappings(struct mapping *mapping) {
    while (mapping) {
        struct mapping *next = mapping->next;
        __atomic_fetch_sub(&mapping->memory->uses, 1, __ATOMIC_RELAXED);
        memory_settle(mapping->memory);
        free(mapping);
        mapping = next;
    }
}

CUresult stub_cuMemUnmap(CUdeviceptr dptr, size_t size) {
    pthread_mutex_lock(&memory_lock);
    struct allocation *record = reservation_at(dptr);
    CUcontext context = record ? record->context : NULL;
    pthread_mutex_unlock(&memory_lock);
    REQUIRE(context && size, CUDA_ERROR_INVALID_VALUE);
    queue_wait_context(context);
    pthread_mutex_lock(&memory_lock);
    struct mapping *detached = detach(record, dptr - record->base, size);
    pthread_mutex_unlock(&memory_lock);
    REQUIRE(detached, CUDA_ERROR_INVALID_VALUE);
    forget_mappings(detached);
    return CUDA_SUCCESS;
}

void reservation_clear(struct allocation *record) {
    pthread_mutex_lock(&memory_lock);
    struct mapping *detached = detach(record, 0, record->size);
    pthread_mutex_unlock(&memory_lock);
    forget_mappings(detached);
}

CUresult stub_cuMemSetAccess(CUdeviceptr dptr, size_t size, const CUmemAccessDesc *desc, size_t count) {
    REQUIRE(desc && count && size, CUDA_ERROR_INVALID_VALUE);
    pthread_mutex_lock(&memory_lock);
    struct allocation *record = reservation_at(dptr);
    uint64_t covered = 0;
    for (struct mapping *at = record ? record->mappings : NULL; at; at = at->next) {
        if (!overlaps(at, dptr - record->base, size))
            continue;
        covered += at->size;
        at->accessible = desc[0].flags != CU_MEM_ACCESS_FLAGS_PROT_NONE;
    }
    pthread_mutex_unlock(&memory_lock);
    return covered >= size ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult stub_cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr dptr) {
    REQUIRE(flags && location, CUDA_ERROR_INVALID_VALUE);
    pthread_mutex_lock(&memory_lock);
    struct allocation *record = reservation_at(dptr);
    bool accessible = record && reservation_accessible(record, dptr, 1);
    pthread_mutex_unlock(&memory_lock);
    REQUIRE(record, CUDA_ERROR_INVALID_VALUE);
    *flags = accessible ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_NONE;
    return CUDA_SUCCESS;
}

bool reservation_accessible(const struct allocation *record, CUdeviceptr address, size_t size) {
    uint64_t offset = address - record->base, covered = 0;
    for (const struct mapping *at = record->mappings; at; at = at->next) {
        if (!at->accessible || !overlaps(at, offset, size))
            continue;
        uint64_t from = at->offset > offset ? at->offset : offset;
        uint64_t end = at->offset + at->size, wanted = offset + size;
        covered += (end < wanted ? end : wanted) - from;
    }
    return covered == size;
}

CUresult stub_cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address) {
    CUdeviceptr dptr = (CUdeviceptr)address;
    struct memory *found = NULL;
    REQUIRE(handle, CUDA_ERROR_INVALID_VALUE);
    pthread_mutex_lock(&memory_lock);
    struct allocation *record = reservation_at(dptr);
    for (struct mapping *at = record ? record->mappings : NULL; at && !found; at = at->next)
        if (overlaps(at, dptr - record->base, 1))
            found = at->memory;
    if (found)
        __atomic_fetch_add(&found->handles, 1, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&memory_lock);
    REQUIRE(found, CUDA_ERROR_INVALID_VALUE);
    *handle = (CUmemGenericAllocationHandle)found;
    return CUDA_SUCCESS;
}
