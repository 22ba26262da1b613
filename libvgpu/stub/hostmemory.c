/* SPDX-License-Identifier: Apache-2.0 */
/* Pinned host memory: of the driver's own, or registered. */
#include "driver.h"

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
