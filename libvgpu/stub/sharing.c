/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that crosses borders: IPC handles between processes, memory of other drivers, and what is known of a pointer.
 * Whoever allocated it is charged for it; opening it elsewhere takes nothing from the card, but keeps it there.
 */
#define _GNU_SOURCE
#include "driver.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- IPC ---- */

#define IPC_TAG 0x43504943

struct ipc_handle {
    uint32_t tag;
    uint32_t pid;
    int32_t fd; /* of the memory file, in that process */
    uint32_t reserved;
    uint64_t size, offset;
    char uuid[24]; /* of the card, without its GPU-, as far as it fits */
};
_Static_assert(sizeof(struct ipc_handle) <= CU_IPC_HANDLE_SIZE, "fits the handle");

/* Puts a memory file behind an allocation, with what it holds. Under memory_lock. */
static bool share(struct allocation *record) {
    if (record->shared_fd >= 0)
        return true;
    uint64_t length = (record->size + 4095) & ~4095ull;
    int fd = memory_file(length);
    if (fd < 0)
        return false;
    const char *bytes = arena_bytes(record->base);
    for (uint64_t done = 0; record->touched && done < record->size;) {
        ssize_t part = pwrite(fd, bytes + done, record->size - done, (off_t)done);
        if (part <= 0)
            break;
        done += (uint64_t)part;
    }
    struct holding holding = {NULL, -1};
    if (bytes_map_file(record->base, length, fd, 0))
        holding = holding_share(record->device, fd, record->charged);
    if (holding.entry < 0) {
        close(fd);
        return false;
    }
    record->holding = holding;
    record->charged = 0;
    record->shared_fd = fd;
    record->mapped_file = true;
    return true;
}

CUresult stub_cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr dptr) {
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(handle, CUDA_ERROR_INVALID_VALUE);
    queue_wait_context(context);
    pthread_mutex_lock(&memory_lock);
    struct allocation *record = arena_find(dptr);
    bool shared = record && record->kind == ALLOCATION_DEVICE && share(record);
    struct ipc_handle inside = {.tag = IPC_TAG, .pid = (uint32_t)getpid()};
    if (shared) {
        inside.fd = record->shared_fd;
        inside.size = record->size;
        inside.offset = dptr - record->base;
        memcpy(inside.uuid, record->device->card.shared->uuid + 4, sizeof inside.uuid);
    }
    pthread_mutex_unlock(&memory_lock);
    REQUIRE(shared, CUDA_ERROR_INVALID_VALUE);
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &inside, sizeof inside);
    return CUDA_SUCCESS;
}

static CUresult import(CUcontext context, int fd, uint64_t offset, uint64_t size, struct allocation **record) {
    CUresult result = allocation_make(ALLOCATION_IMPORTED, context, size, 0, record);
    if (result == CUDA_SUCCESS) {
        pthread_mutex_lock(&memory_lock);
        (*record)->mapped_file = true;
        (*record)->holding = holding_open(fd);
        bool mapped = bytes_map_file((*record)->base, (size + 4095) & ~4095ull, fd, offset);
        pthread_mutex_unlock(&memory_lock);
        if (!mapped) {
            allocation_drop(*record);
            result = CUDA_ERROR_MAP_FAILED;
        }
    }
    return result;
}

CUresult stub_cuIpcOpenMemHandle_v2(CUdeviceptr *dptr, CUipcMemHandle handle, unsigned flags) {
    CUcontext context;
    struct ipc_handle inside;
    struct allocation *record;
    TRY(current_context(&context));
    memcpy(&inside, &handle, sizeof inside);
    REQUIRE(dptr && flags <= CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS && inside.tag == IPC_TAG, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(inside.pid != (uint32_t)getpid(), CUDA_ERROR_INVALID_CONTEXT); /* not in the process that made it */
    char path[64];
    snprintf(path, sizeof path, "/proc/%u/fd/%d", inside.pid, inside.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    REQUIRE(fd >= 0, CUDA_ERROR_INVALID_HANDLE);
    CUresult result = import(context, fd, 0, inside.size, &record);
    close(fd);
    if (result == CUDA_SUCCESS)
        *dptr = record->base + inside.offset;
    return result;
}

CUresult stub_cuIpcOpenMemHandle(CUdeviceptr *dptr, CUipcMemHandle handle, unsigned flags) {
    return stub_cuIpcOpenMemHandle_v2(dptr, handle, flags);
}

CUresult stub_cuIpcCloseMemHandle(CUdeviceptr dptr) {
    pthread_mutex_lock(&memory_lock);
    struct allocation *record = arena_find(dptr);
    pthread_mutex_unlock(&memory_lock);
    REQUIRE(record && record->kind == ALLOCATION_IMPORTED, CUDA_ERROR_INVALID_VALUE);
    queue_wait_context(record->context);
    allocation_drop(record);
    return CUDA_SUCCESS;
}

CUresult stub_cuIpcGetEventHandle(CUipcEventHandle *handle, CUevent event) {
    (void)handle, (void)event;
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult stub_cuIpcOpenEventHandle(CUevent *event, CUipcEventHandle handle) {
    (void)event, (void)handle;
    return CUDA_ERROR_NOT_SUPPORTED;
}

/* ---- External memory: a file descriptor that can be mapped stands for another driver's memory ---- */

struct CUextMemory_st {
    int fd;
    uint64_t size;
};

CUresult stub_cuImportExternalMemory(CUexternalMemory *out, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *desc) {
    CUcontext context;
    struct stat st;
    TRY(current_context(&context));
    REQUIRE(out && desc && desc->size, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(desc->type == CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD, CUDA_ERROR_NOT_SUPPORTED);
    REQUIRE(fstat(desc->handle.fd, &st) == 0, CUDA_ERROR_INVALID_HANDLE);
    CUexternalMemory memory = handle_take(HANDLE_EXTERNAL, sizeof *memory);
    REQUIRE(memory, CUDA_ERROR_OUT_OF_MEMORY);
    *memory = (struct CUextMemory_st){desc->handle.fd, desc->size}; /* which is the driver's from here on */
    *out = memory;
    return CUDA_SUCCESS;
}

CUresult stub_cuExternalMemoryGetMappedBuffer(CUdeviceptr *dptr, CUexternalMemory memory,
                                              const CUDA_EXTERNAL_MEMORY_BUFFER_DESC *desc) {
    CUcontext context;
    struct allocation *record;
    TRY(current_context(&context));
    REQUIRE(dptr && desc && desc->size, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(handle_lives(memory), CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(desc->offset % 4096 == 0 && desc->offset + desc->size <= memory->size, CUDA_ERROR_INVALID_VALUE);
    TRY(import(context, memory->fd, desc->offset, desc->size, &record));
    *dptr = record->base;
    return CUDA_SUCCESS;
}

CUresult stub_cuExternalMemoryGetMappedMipmappedArray(CUmipmappedArray *mipmap, CUexternalMemory memory,
                                                      const CUDA_EXTERNAL_MEMORY_MIPMAPPED_ARRAY_DESC *desc) {
    (void)mipmap, (void)memory, (void)desc;
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult stub_cuDestroyExternalMemory(CUexternalMemory memory) {
    REQUIRE(handle_lives(memory), CUDA_ERROR_INVALID_HANDLE);
    close(memory->fd);
    handle_give(memory);
    return CUDA_SUCCESS;
}

/* ---- What is known of a pointer ---- */

static bool visible(const struct allocation *record) {
    return record && record->kind != ALLOCATION_ARRAY && record->kind != ALLOCATION_RESERVATION;
}

CUresult stub_cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *bytes, CUdeviceptr dptr) {
    CUcontext context;
    TRY(current_context(&context));
    pthread_mutex_lock(&memory_lock);
    struct allocation *record = arena_find(dptr);
    pthread_mutex_unlock(&memory_lock);
    REQUIRE(visible(record), CUDA_ERROR_NOT_FOUND);
    if (base)
        *base = record->base;
    if (bytes)
        *bytes = record->size;
    return CUDA_SUCCESS;
}

/* Writes one attribute of a known pointer. */
static CUresult attribute_of(const struct allocation *record, CUpointer_attribute attribute, CUdeviceptr pointer,
                             void *data) {
    bool host = record->kind == ALLOCATION_HOST;
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
        *(CUcontext *)data = record->context;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(unsigned *)data = host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        *(CUdeviceptr *)data = pointer;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        REQUIRE(host || record->kind == ALLOCATION_MANAGED, CUDA_ERROR_INVALID_VALUE);
        *(void **)data = (void *)pointer;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
        *(unsigned *)data = 0;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
        *(unsigned long long *)data = record->id;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
        *(unsigned *)data = record->kind == ALLOCATION_MANAGED;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        *(int *)data = record->device->ordinal;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
        *(unsigned *)data = record->kind == ALLOCATION_DEVICE;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        *(CUdeviceptr *)data = record->base;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        *(size_t *)data = record->size;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MAPPED:
        *(unsigned *)data = 1;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
        *(unsigned long long *)data = 0;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
        *(CUmemoryPool *)data = record->pool;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult stub_cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
    REQUIRE(driver.ready, CUDA_ERROR_NOT_INITIALIZED);
    REQUIRE(data, CUDA_ERROR_INVALID_VALUE);
    pthread_mutex_lock(&memory_lock);
    struct allocation *record = arena_find(pointer);
    CUresult result = record && record->kind != ALLOCATION_ARRAY ? attribute_of(record, attribute, pointer, data)
                                                                 : CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_unlock(&memory_lock);
    return result;
}

/* Unlike the call for one attribute, this one answers zeros for a pointer that it does not know. */
CUresult stub_cuPointerGetAttributes(unsigned count, CUpointer_attribute *attributes, void **data,
                                     CUdeviceptr pointer) {
    REQUIRE(attributes && data, CUDA_ERROR_INVALID_VALUE);
    for (unsigned i = 0; i < count; i++) {
        if (stub_cuPointerGetAttribute(data[i], attributes[i], pointer) == CUDA_SUCCESS)
            continue;
        bool wide =
            attributes[i] == CU_POINTER_ATTRIBUTE_CONTEXT || attributes[i] == CU_POINTER_ATTRIBUTE_HOST_POINTER ||
            attributes[i] == CU_POINTER_ATTRIBUTE_DEVICE_POINTER || attributes[i] == CU_POINTER_ATTRIBUTE_BUFFER_ID ||
            attributes[i] == CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE;
        memset(data[i], 0, wide ? 8 : 4);
        if (attributes[i] == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)
            *(int *)data[i] = -2;
    }
    return CUDA_SUCCESS;
}

CUresult stub_cuPointerSetAttribute(const void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
    (void)pointer;
    return value && attribute == CU_POINTER_ATTRIBUTE_SYNC_MEMOPS ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
