/* SPDX-License-Identifier: Apache-2.0 */
/* Device, managed and pinned host memory: allocating, freeing, and what is known about a pointer. */
#include "driver.h"

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

CUresult allocation_make(enum allocation_kind kind, CUcontext context, size_t size, uint64_t charge,
                         struct allocation **result) {
    REQUIRE(device_charge(context->device, charge), CUDA_ERROR_OUT_OF_MEMORY);
    pthread_mutex_lock(&memory_lock);
    struct allocation *record = record_take();
    if (record) {
        record->size = size;
        record->kind = kind;
        record->shared_fd = -1;
        record->holding.entry = -1;
        if (!arena_take(arena_of(kind), size, kind == ALLOCATION_RESERVATION, record)) {
            record->next = spare;
            spare = record;
            record = NULL;
        }
    }
    if (record) {
        record->charged = charge;
        record->device = record->charged_on = context->device;
        record->context = context;
        record->id = ++last_id;
        list_add(record);
    }
    pthread_mutex_unlock(&memory_lock);
    if (!record) {
        device_credit(context->device, charge);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *result = record;
    return CUDA_SUCCESS;
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

/*
 * Managed memory lives on the card as long as there is room (what a first use by a kernel would lead to) and else on
 * the host; CU_MEM_ATTACH_HOST starts it on the host. Advice and prefetching move it.
 */
CUresult stub_cuMemAllocManaged(CUdeviceptr *dptr, size_t bytes, unsigned flags) {
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(dptr && bytes && (flags == CU_MEM_ATTACH_GLOBAL || flags == CU_MEM_ATTACH_HOST), CUDA_ERROR_INVALID_VALUE);
    struct allocation *record;
    struct card *card = &context->device->card;
    uint64_t charge = flags == CU_MEM_ATTACH_GLOBAL && card_charge(card, bytes) ? bytes : 0;
    CUresult result = allocation_make(ALLOCATION_MANAGED, context, bytes, 0, &record);
    if (result != CUDA_SUCCESS) {
        device_credit(context->device, charge);
        return result;
    }
    record->charged = charge;
    record->flags = flags;
    record->touched = true; /* the application writes through the pointer itself */
    if (charge == 0)
        __atomic_fetch_add(&card->slot->host_bytes, bytes, __ATOMIC_RELAXED);
    *dptr = record->base;
    return CUDA_SUCCESS;
}

/* Moves a managed allocation to a card, if there is room, or to the host (NULL). */
static void managed_move(struct allocation *record, struct device *to) {
    uint64_t *host_bytes = &record->device->card.slot->host_bytes;
    struct device *from = record->charged ? record->charged_on : NULL;
    if (to == from || (to && !card_charge(&to->card, record->size)))
        return;
    if (from)
        card_credit(&from->card, record->charged);
    else
        __atomic_fetch_sub(host_bytes, record->size, __ATOMIC_RELAXED);
    if (!to)
        __atomic_fetch_add(host_bytes, record->size, __ATOMIC_RELAXED);
    record->charged = to ? record->size : 0;
    record->charged_on = to ? to : record->device;
}

/* The card that a location means, which is joined then; NULL: the host. */
static CUresult device_at(CUmemLocation location, struct device **device) {
    *device = NULL;
    if (location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return CUDA_SUCCESS;
    TRY(device_of(location.id, device));
    pthread_mutex_lock(&driver.lock);
    CUresult result = device_join(*device);
    pthread_mutex_unlock(&driver.lock);
    return result;
}

/* Memory of the application's own goes to a card that reaches it by itself, and stays there. */
static CUresult pageable_move(struct device *to, size_t bytes) {
    REQUIRE(to && to->card.shared->pageable_access, CUDA_ERROR_INVALID_VALUE);
    card_charge(&to->card, bytes);
    return CUDA_SUCCESS;
}

static CUresult managed_at(CUdeviceptr dptr, struct allocation **record) {
    pthread_mutex_lock(&memory_lock);
    *record = arena_find(dptr);
    pthread_mutex_unlock(&memory_lock);
    return *record && (*record)->kind == ALLOCATION_MANAGED ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult stub_cuMemPrefetchAsync_v2(CUdeviceptr dptr, size_t bytes, CUmemLocation location, unsigned flags,
                                    CUstream handle) {
    (void)flags;
    struct allocation *record;
    struct device *to;
    CUstream stream;
    TRY(resolve_stream(handle, &stream));
    TRY(device_at(location, &to));
    if (managed_at(dptr, &record) != CUDA_SUCCESS)
        return record ? CUDA_ERROR_INVALID_VALUE : pageable_move(to, bytes);
    REQUIRE(bytes && bytes <= record->size - (dptr - record->base), CUDA_ERROR_INVALID_VALUE);
    managed_move(record, to);
    return CUDA_SUCCESS;
}

/* Each range to its own location: indices say from which range on a location counts. */
CUresult stub_cuMemPrefetchBatchAsync(CUdeviceptr *dptrs, size_t *sizes, size_t count, CUmemLocation *locations,
                                      size_t *indices, size_t location_count, unsigned long long flags,
                                      CUstream handle) {
    REQUIRE(dptrs && sizes && count && locations && indices && location_count && !indices[0] && !flags,
            CUDA_ERROR_INVALID_VALUE);
    for (size_t i = 0, at = 0; i < count; i++) {
        at += at + 1 < location_count && indices[at + 1] == i;
        TRY(stub_cuMemPrefetchAsync_v2(dptrs[i], sizes[i], locations[at], 0, handle));
    }
    return CUDA_SUCCESS;
}

CUresult stub_cuMemDiscardAndPrefetchBatchAsync(CUdeviceptr *dptrs, size_t *sizes, size_t count,
                                                CUmemLocation *locations, size_t *indices, size_t location_count,
                                                unsigned long long flags, CUstream handle) {
    return stub_cuMemPrefetchBatchAsync(dptrs, sizes, count, locations, indices, location_count, flags, handle);
}

static CUmemLocation location_of(CUdevice device) {
    CUmemLocation location = {CU_MEM_LOCATION_TYPE_DEVICE, device};
    if (device < 0) /* CU_DEVICE_CPU */
        location = (CUmemLocation){CU_MEM_LOCATION_TYPE_HOST, 0};
    return location;
}

CUresult stub_cuMemPrefetchAsync(CUdeviceptr dptr, size_t bytes, CUdevice device, CUstream handle) {
    return stub_cuMemPrefetchAsync_v2(dptr, bytes, location_of(device), 0, handle);
}

CUresult stub_cuMemAdvise_v2(CUdeviceptr dptr, size_t bytes, CUmem_advise advice, CUmemLocation location) {
    enum { SET_PREFERRED_LOCATION = 3, LAST_ADVICE = 6 };
    struct allocation *record;
    struct device *to;
    REQUIRE(advice >= 1 && advice <= LAST_ADVICE && bytes, CUDA_ERROR_INVALID_VALUE);
    TRY(managed_at(dptr, &record));
    if (advice != SET_PREFERRED_LOCATION)
        return CUDA_SUCCESS;
    TRY(device_at(location, &to));
    managed_move(record, to);
    return CUDA_SUCCESS;
}

CUresult stub_cuMemAdvise(CUdeviceptr dptr, size_t bytes, CUmem_advise advice, CUdevice device) {
    return stub_cuMemAdvise_v2(dptr, bytes, advice, location_of(device));
}

CUresult stub_cuMemRangeGetAttribute(void *data, size_t size, CUmem_range_attribute attribute, CUdeviceptr dptr,
                                     size_t bytes) {
    enum { PREFERRED_LOCATION = 2, LAST_PREFETCH_LOCATION = 4 };
    struct allocation *record;
    REQUIRE(data && size >= sizeof(int) && bytes, CUDA_ERROR_INVALID_VALUE);
    TRY(managed_at(dptr, &record));
    bool location = attribute == PREFERRED_LOCATION || attribute == LAST_PREFETCH_LOCATION;
    *(int *)data = !location ? 0 : record->charged ? record->charged_on->ordinal : -1;
    return CUDA_SUCCESS;
}

CUresult stub_cuStreamAttachMemAsync(CUstream handle, CUdeviceptr dptr, size_t length, unsigned flags) {
    struct allocation *record;
    CUstream stream;
    (void)length, (void)flags;
    TRY(resolve_stream(handle, &stream));
    return managed_at(dptr, &record);
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

/* ---- Pinned host memory ---- */

CUresult stub_cuMemHostAlloc(void **pointer, size_t bytes, unsigned flags) {
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(pointer && bytes && flags <= 7, CUDA_ERROR_INVALID_VALUE);
    struct allocation *record;
    TRY(allocation_make(ALLOCATION_HOST, context, bytes, 0, &record));
    record->flags = flags;
    record->touched = true;
    *pointer = (void *)record->base;
    return CUDA_SUCCESS;
}

CUresult stub_cuMemAllocHost_v2(void **pointer, size_t bytes) {
    return stub_cuMemHostAlloc(pointer, bytes, 0);
}
CUresult stub_cuMemAllocHost(void **pointer, unsigned bytes) {
    return stub_cuMemHostAlloc(pointer, bytes, 0);
}

static struct allocation *host_at(const void *pointer) {
    pthread_mutex_lock(&memory_lock);
    struct allocation *record = arena_find((CUdeviceptr)pointer);
    pthread_mutex_unlock(&memory_lock);
    return record && record->kind == ALLOCATION_HOST ? record : NULL;
}

CUresult stub_cuMemFreeHost(void *pointer) {
    struct allocation *record = host_at(pointer);
    REQUIRE(driver.ready, CUDA_ERROR_NOT_INITIALIZED);
    REQUIRE(record && (void *)record->base == pointer, CUDA_ERROR_INVALID_VALUE);
    queue_wait_context(record->context);
    allocation_drop(record);
    return CUDA_SUCCESS;
}

CUresult stub_cuMemHostGetDevicePointer_v2(CUdeviceptr *dptr, void *pointer, unsigned flags) {
    REQUIRE(dptr && pointer && flags == 0, CUDA_ERROR_INVALID_VALUE);
    *dptr = (CUdeviceptr)pointer;
    return CUDA_SUCCESS;
}

CUresult stub_cuMemHostGetDevicePointer(CUdeviceptr_v1 *dptr, void *pointer, unsigned flags) {
    (void)dptr, (void)pointer, (void)flags;
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult stub_cuMemHostGetFlags(unsigned *flags, void *pointer) {
    struct allocation *record = host_at(pointer);
    REQUIRE(flags && record, CUDA_ERROR_INVALID_VALUE);
    *flags = record->flags;
    return CUDA_SUCCESS;
}

/* Registered memory stays ordinary memory here: any host pointer can be copied from and to. */
CUresult stub_cuMemHostRegister_v2(void *pointer, size_t bytes, unsigned flags) {
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(pointer && bytes && flags <= 15, CUDA_ERROR_INVALID_VALUE);
    return CUDA_SUCCESS;
}

CUresult stub_cuMemHostRegister(void *pointer, size_t bytes, unsigned flags) {
    return stub_cuMemHostRegister_v2(pointer, bytes, flags);
}

CUresult stub_cuMemHostUnregister(void *pointer) {
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(pointer, CUDA_ERROR_INVALID_VALUE);
    return CUDA_SUCCESS;
}
