/* SPDX-License-Identifier: Apache-2.0 */
/* Device memory: the records of all allocations, from addresses to bytes, allocating and freeing. */
#include "pools.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER;

static struct allocation *spare; /* freed records, linked by next */
static unsigned long long last_id;

/* ---- Records ---- */

static struct allocation *record_take(void) {
    struct allocation *record = spare;
    if (record)
        spare = record->next;
    else
        record = malloc(sizeof *record);
    if (record)
        memset(record, 0, sizeof *record);
    return record;
}

static void list_add(struct allocation *record) {
    struct allocation **head = &record->context->allocations;
    record->next = *head;
    record->previous = NULL;
    if (*head)
        (*head)->previous = record;
    *head = record;
}

static void list_remove(struct allocation *record) {
    if (record->previous)
        record->previous->next = record->next;
    else
        record->context->allocations = record->next;
    if (record->next)
        record->next->previous = record->previous;
}

static int arena_of(enum allocation_kind kind) {
    if (kind == ALLOCATION_MANAGED)
        return ARENA_MANAGED;
    return kind == ALLOCATION_HOST ? ARENA_HOST : ARENA_DEVICE;
}

bool device_charge(struct device *device, uint64_t bytes) {
    holdings_settle();
    if (bytes == 0 || card_charge(&device->card, bytes))
        return true;
    if (pools_trim_all(device) && card_charge(&device->card, bytes))
        return true;
    __atomic_fetch_add(&device->card.slot->out_of_memory, 1, __ATOMIC_RELAXED);
    return false;
}

void device_credit(struct device *device, uint64_t bytes) {
    if (bytes && device->card.slot) /* a fork's child has none: what it inherited is its parent's */
        card_credit(&device->card, bytes);
}

/* A record with its addresses, or NULL. Under memory_lock. */
static struct allocation *record_make(enum allocation_kind kind, CUcontext context, size_t size, bool packed) {
    struct allocation *record = record_take();
    if (!record)
        return NULL;
    record->size = size;
    record->kind = kind;
    record->shared_fd = -1;
    record->holding.entry = -1;
    record->device = record->charged_on = context->device;
    record->context = context;
    if (packed ? block_put(record) : arena_take(arena_of(kind), size, kind == ALLOCATION_RESERVATION, record) != 0) {
        record->id = ++last_id;
        list_add(record);
        return record;
    }
    record->next = spare;
    spare = record;
    return NULL;
}

CUresult allocation_make(enum allocation_kind kind, CUcontext context, size_t size, uint64_t charge,
                         struct allocation **result) {
    REQUIRE(device_charge(context->device, charge), CUDA_ERROR_OUT_OF_MEMORY);
    pthread_mutex_lock(&memory_lock);
    struct allocation *record = record_make(kind, context, size, false);
    if (record)
        record->charged = charge;
    pthread_mutex_unlock(&memory_lock);
    if (!record) {
        device_credit(context->device, charge);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *result = record;
    return CUDA_SUCCESS;
}

/* A small one goes into a block, which is charged when it is made and until it is empty. */
static CUresult allocation_pack(CUcontext context, size_t size, struct allocation **result) {
    uint64_t block_bytes = context->device->card.shared->granularity_bytes;
    pthread_mutex_lock(&memory_lock);
    *result = record_make(ALLOCATION_DEVICE, context, size, true);
    pthread_mutex_unlock(&memory_lock);
    if (*result)
        return CUDA_SUCCESS;
    REQUIRE(device_charge(context->device, block_bytes), CUDA_ERROR_OUT_OF_MEMORY);
    pthread_mutex_lock(&memory_lock);
    bool added = block_add(context);
    if (added)
        *result = record_make(ALLOCATION_DEVICE, context, size, true);
    pthread_mutex_unlock(&memory_lock);
    if (!added)
        device_credit(context->device, block_bytes);
    return *result ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

void allocation_drop(struct allocation *record) {
    struct device *device = record->device, *charged_on = record->charged_on;
    struct holding holding = record->holding;
    uint64_t charged = record->charged;
    pthread_mutex_lock(&memory_lock);
    if (record->kind == ALLOCATION_MANAGED && charged == 0)
        __atomic_fetch_sub(&device->card.slot->host_bytes, record->size, __ATOMIC_RELAXED);
    if (record->shared_fd >= 0)
        close(record->shared_fd);
    list_remove(record);
    if (record->block)
        charged += block_take_out(record);
    else
        arena_give(record);
    record->next = spare;
    spare = record;
    pthread_mutex_unlock(&memory_lock);
    device_credit(charged_on, charged);
    holding_close(holding);
}

/* ---- Addresses to bytes ---- */

static CUresult bytes_of(CUdeviceptr address, size_t size, bool write, bool must_be_known, void **bytes) {
    pthread_mutex_lock(&memory_lock);
    struct allocation *record = arena_find(address);
    if (record && write && !record->touched)
        record->touched = true;
    bool fits = !record || size <= record->size - (address - record->base);
    if (record && record->kind == ALLOCATION_RESERVATION)
        fits = fits && reservation_accessible(record, address, size);
    pthread_mutex_unlock(&memory_lock);
    REQUIRE(fits && (record || !must_be_known), CUDA_ERROR_INVALID_VALUE);
    *bytes = arena_bytes(address);
    REQUIRE(record || *bytes == (void *)address, CUDA_ERROR_INVALID_VALUE); /* in the arena, but freed */
    return CUDA_SUCCESS;
}

CUresult memory_bytes(CUdeviceptr address, size_t size, bool write, void **bytes) {
    return bytes_of(address, size, write, false, bytes);
}

CUresult device_bytes(CUdeviceptr address, size_t size, bool write, void **bytes) {
    return bytes_of(address, size, write, true, bytes);
}

/* ---- Allocating ---- */

static uint64_t round_up(uint64_t bytes, uint64_t step) {
    return step > 1 ? (bytes + step - 1) / step * step : bytes;
}

static CUresult allocate_device(size_t bytes, CUdeviceptr *dptr) {
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(dptr && bytes, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(bytes <= context->device->card.shared->memory_bytes, CUDA_ERROR_OUT_OF_MEMORY);
    struct allocation *record;
    uint64_t charge = round_up(bytes, context->device->card.shared->granularity_bytes);
    if (blocks_have(context->device, bytes))
        TRY(allocation_pack(context, bytes, &record));
    else
        TRY(allocation_make(ALLOCATION_DEVICE, context, bytes, charge, &record));
    *dptr = record->base;
    return CUDA_SUCCESS;
}

CUresult stub_cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytes) {
    return allocate_device(bytes, dptr);
}

CUresult stub_cuMemAllocPitch_v2(CUdeviceptr *dptr, size_t *pitch, size_t width, size_t height, unsigned element) {
    REQUIRE(pitch && width && height && (element == 4 || element == 8 || element == 16), CUDA_ERROR_INVALID_VALUE);
    size_t row = round_up(width, PITCH_ALIGNMENT);
    REQUIRE(row >= width && height <= SIZE_MAX / row, CUDA_ERROR_INVALID_VALUE);
    TRY(allocate_device(row * height, dptr));
    *pitch = row;
    return CUDA_SUCCESS;
}

CUresult stub_cuMemFree_v2(CUdeviceptr dptr) {
    CUcontext context;
    TRY(current_context(&context));
    if (dptr == 0)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&memory_lock);
    struct allocation *record = arena_find(dptr);
    bool known =
        record && record->base == dptr && !record->freed &&
        (record->kind == ALLOCATION_DEVICE || record->kind == ALLOCATION_MANAGED || record->kind == ALLOCATION_ASYNC ||
         record->kind == ALLOCATION_IMPORTED || record->kind == ALLOCATION_GRAPH);
    if (known)
        record->freed = true;
    pthread_mutex_unlock(&memory_lock);
    REQUIRE(known, CUDA_ERROR_INVALID_VALUE);
    queue_wait_context(record->context); /* cuMemFree waits for what may still use the memory */
    if (record->pool)
        return pool_free(record, NULL);
    allocation_drop(record);
    return CUDA_SUCCESS;
}

CUresult stub_cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(free_bytes && total_bytes, CUDA_ERROR_INVALID_VALUE);
    struct card *card = &context->device->card;
    holdings_settle();
    card_reap(card);
    uint64_t room = card_room_bytes(card->shared);
    uint64_t used = LOAD(card->shared->used_bytes);
    *free_bytes = used < room ? room - used : 0;
    *total_bytes = card->shared->memory_bytes;
    return CUDA_SUCCESS;
}

/* ---- The 32-bit calls of CUDA 2: there, but their pointers cannot reach this memory ---- */

CUresult stub_cuMemAlloc(CUdeviceptr_v1 *dptr, unsigned bytes) {
    (void)dptr, (void)bytes;
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult stub_cuMemAllocPitch(CUdeviceptr_v1 *dptr, unsigned *pitch, unsigned width, unsigned height, unsigned size) {
    (void)dptr, (void)pitch, (void)width, (void)height, (void)size;
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult stub_cuMemFree(CUdeviceptr_v1 dptr) {
    return stub_cuMemFree_v2(dptr);
}

CUresult stub_cuMemGetAddressRange(CUdeviceptr_v1 *base, unsigned *bytes, CUdeviceptr_v1 dptr) {
    (void)base, (void)bytes, (void)dptr;
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult stub_cuMemGetInfo(unsigned *free_bytes, unsigned *total_bytes) {
    size_t free_long, total_long;
    REQUIRE(free_bytes && total_bytes, CUDA_ERROR_INVALID_VALUE);
    TRY(stub_cuMemGetInfo_v2(&free_long, &total_long));
    *free_bytes = free_long > UINT32_MAX ? UINT32_MAX : (unsigned)free_long;
    *total_bytes = total_long > UINT32_MAX ? UINT32_MAX : (unsigned)total_long;
    return CUDA_SUCCESS;
}
