/* SPDX-License-Identifier: Apache-2.0 */
/* Managed memory: on the card or on the host, and what moves it. */
#include "pools.h"

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

/* Its pool keeps what it has on its own card. */
static void pooled_move(struct allocation *record, struct device *to) {
    if (record->charged && to != record->charged_on) {
        card_credit(&record->charged_on->card, record->charged);
        record->charged = 0;
    }
    if (record->charged || !to || to == record->pool->device || !card_charge(&to->card, record->size))
        return;
    record->charged = record->size;
    record->charged_on = to;
}

/* Moves a managed allocation to a card, if there is room, or to the host (NULL). */
static void managed_move(struct allocation *record, struct device *to) {
    if (record->pool) {
        pooled_move(record, to);
        return;
    }
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
    bool managed = *record && ((*record)->kind == ALLOCATION_MANAGED ||
                               ((*record)->pool && (*record)->pool->props.allocType == CU_MEM_ALLOCATION_TYPE_MANAGED));
    return managed ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
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
