/* SPDX-License-Identifier: Apache-2.0 */
/* Stream-ordered allocations, from the pools of pools.c. */
#include "work.h"

#include <stdlib.h>

static CUresult pool_allocate(CUcontext context, CUmemoryPool pool, size_t bytes, CUstream stream, CUdeviceptr *dptr) {
    struct allocation *record;
    REQUIRE(bytes <= pool->device->card.shared->memory_bytes, CUDA_ERROR_OUT_OF_MEMORY);
    REQUIRE(pool_take(pool, bytes, stream), CUDA_ERROR_OUT_OF_MEMORY);
    CUresult result = allocation_make(ALLOCATION_ASYNC, context, bytes, 0, &record);
    if (result != CUDA_SUCCESS) {
        pool_give(pool, bytes, NULL);
        return result;
    }
    record->pool = pool;
    pool_joined(pool);
    *dptr = record->base;
    return CUDA_SUCCESS;
}

struct ordered_free {
    struct allocation *record;
    struct pending_free *pending;
};

/* The record of a graph's allocation belongs to the graph: only its bytes are given back. */
static void drop_record(struct allocation *record) {
    CUmemoryPool pool = record->pool;
    if (record->kind == ALLOCATION_GRAPH)
        return;
    allocation_drop(record);
    pool_left(pool);
}

static void reach_free(void *argument) {
    struct ordered_free *ordered = argument;
    pool_give_done(ordered->pending);
    drop_record(ordered->record);
}

/* The record is marked as freed. */
CUresult pool_free(struct allocation *record, CUstream stream) {
    struct ordered_free *ordered = stream ? malloc(sizeof *ordered) : NULL;
    struct pending_free *pending = pool_give(record->pool, record->size, ordered ? stream : NULL);
    if (!ordered) {
        drop_record(record);
        return CUDA_SUCCESS;
    }
    *ordered = (struct ordered_free){record, pending};
    struct node_work work = {.type = CU_GRAPH_NODE_TYPE_MEM_FREE, .run = reach_free, .data = ordered};
    work.data_size = sizeof *ordered;
    return submit_run(stream, &work);
}

CUresult stub_cuMemAllocFromPoolAsync(CUdeviceptr *dptr, size_t bytes, CUmemoryPool pool, CUstream handle) {
    CUstream stream;
    TRY(resolve_stream(handle, &stream));
    REQUIRE(dptr && bytes && pool_lives(pool), CUDA_ERROR_INVALID_VALUE);
    if (capture_hold(stream)) {
        CUresult result = capture_allocate(stream, bytes, dptr);
        capture_let_go();
        return result;
    }
    return pool_allocate(stream->context, pool, bytes, stream, dptr);
}

CUresult stub_cuMemAllocAsync(CUdeviceptr *dptr, size_t bytes, CUstream handle) {
    CUstream stream;
    CUmemoryPool pool;
    TRY(resolve_stream(handle, &stream));
    TRY(stub_cuDeviceGetMemPool(&pool, stream->context->device->ordinal));
    if (calls_itself) /* as its last act: a jump */
        return ((cuMemAllocFromPoolAsync_fn)as_a_program_finds("cuMemAllocFromPoolAsync"))(dptr, bytes, pool, handle);
    return stub_cuMemAllocFromPoolAsync(dptr, bytes, pool, handle);
}

CUresult stub_cuMemFreeAsync(CUdeviceptr dptr, CUstream handle) {
    CUstream stream;
    TRY(resolve_stream(handle, &stream));
    if (CAPTURING(stream))
        return capture_free(stream, dptr);
    pthread_mutex_lock(&memory_lock);
    struct allocation *record = arena_find(dptr);
    bool known = record && record->base == dptr && !record->freed &&
                 (record->pool || record->kind == ALLOCATION_DEVICE || record->kind == ALLOCATION_MANAGED);
    if (known)
        record->freed = true;
    pthread_mutex_unlock(&memory_lock);
    REQUIRE(known, CUDA_ERROR_INVALID_VALUE);
    if (record->pool)
        return pool_free(record, stream);
    queue_wait_stream(stream); /* memory of cuMemAlloc is freed like by cuMemFree */
    allocation_drop(record);
    return CUDA_SUCCESS;
}

/* ---- Sharing pools between processes: not simulated ---- */

CUresult stub_cuMemPoolExportToShareableHandle(void *handle, CUmemoryPool pool, CUmemAllocationHandleType type,
                                               unsigned long long flags) {
    (void)handle, (void)pool, (void)type, (void)flags;
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult stub_cuMemPoolImportFromShareableHandle(CUmemoryPool *pool, void *handle, CUmemAllocationHandleType type,
                                                 unsigned long long flags) {
    (void)pool, (void)handle, (void)type, (void)flags;
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult stub_cuMemPoolExportPointer(CUmemPoolPtrExportData *data, CUdeviceptr dptr) {
    (void)data, (void)dptr;
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult stub_cuMemPoolImportPointer(CUdeviceptr *dptr, CUmemoryPool pool, CUmemPoolPtrExportData *data) {
    (void)dptr, (void)pool, (void)data;
    return CUDA_ERROR_NOT_SUPPORTED;
}
