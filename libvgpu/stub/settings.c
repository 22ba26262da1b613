/* SPDX-License-Identifier: Apache-2.0 */
/* Settings of contexts. Of most of them nothing comes here but what was set. */
#include "driver.h"

CUresult stub_cuCtxGetFlags(unsigned *flags) {
    CUcontext context;
    REQUIRE(flags, CUDA_ERROR_INVALID_VALUE);
    TRY(current_context(&context));
    *flags = context->flags;
    return CUDA_SUCCESS;
}

CUresult stub_cuCtxSetFlags(unsigned flags) {
    CUcontext context;
    TRY(current_context(&context));
    context->flags = flags;
    return CUDA_SUCCESS;
}

CUresult stub_cuCtxGetId(CUcontext context, unsigned long long *id) {
    REQUIRE(id, CUDA_ERROR_INVALID_VALUE);
    if (!context)
        TRY(current_context(&context));
    REQUIRE(handle_lives(context), CUDA_ERROR_CONTEXT_IS_DESTROYED);
    *id = context->id;
    return CUDA_SUCCESS;
}

CUresult stub_cuCtxSetLimit(CUlimit limit, size_t value) {
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(limit >= 0 && limit < 16, CUDA_ERROR_UNSUPPORTED_LIMIT);
    if (limit == CU_LIMIT_MALLOC_HEAP_SIZE || limit == CU_LIMIT_PRINTF_FIFO_SIZE) {
        /* What a context has by default is part of it; more is taken at once (a driver waits for the first use). */
        uint64_t *heap = &context->heap_bytes[limit];
        uint64_t own = limit == CU_LIMIT_MALLOC_HEAP_SIZE ? HEAP_BYTES : FIFO_BYTES,
                 wanted = value > own ? value - own : 0;
        REQUIRE(wanted <= *heap || device_charge(context->device, wanted - *heap), CUDA_ERROR_OUT_OF_MEMORY);
        if (wanted < *heap)
            device_credit(context->device, *heap - wanted);
        *heap = wanted;
    }
    if (limit == CU_LIMIT_STACK_SIZE)
        TRY(context_local(context, value));
    context->limits[limit] = value;
    return CUDA_SUCCESS;
}

CUresult stub_cuCtxGetLimit(size_t *value, CUlimit limit) {
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(value, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(limit >= 0 && limit < 16, CUDA_ERROR_UNSUPPORTED_LIMIT);
    *value = context->limits[limit];
    return CUDA_SUCCESS;
}

static CUresult get_setting(int *value) {
    CUcontext context;
    REQUIRE(value, CUDA_ERROR_INVALID_VALUE);
    TRY(current_context(&context));
    *value = 0;
    return CUDA_SUCCESS;
}

static CUresult set_setting(void) {
    CUcontext context;
    return current_context(&context);
}

CUresult stub_cuCtxGetCacheConfig(int *config) {
    return get_setting(config);
}
CUresult stub_cuCtxGetSharedMemConfig(int *config) {
    return get_setting(config);
}
CUresult stub_cuCtxResetPersistingL2Cache(void) {
    return set_setting();
}

CUresult stub_cuCtxSetCacheConfig(int config) {
    (void)config;
    return set_setting();
}

CUresult stub_cuCtxSetSharedMemConfig(int config) {
    (void)config;
    return set_setting();
}

CUresult stub_cuCtxGetApiVersion(CUcontext context, unsigned *version) {
    REQUIRE(version, CUDA_ERROR_INVALID_VALUE);
    if (!context)
        TRY(current_context(&context));
    REQUIRE(handle_lives(context), CUDA_ERROR_INVALID_CONTEXT);
    *version = 3020;
    return CUDA_SUCCESS;
}

CUresult stub_cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    TRY(set_setting());
    if (least)
        *least = 0;
    if (greatest)
        *greatest = -5;
    return CUDA_SUCCESS;
}

CUresult stub_cuCtxEnablePeerAccess(CUcontext peer, unsigned flags) {
    TRY(set_setting());
    return peer && flags == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult stub_cuCtxDisablePeerAccess(CUcontext peer) {
    TRY(set_setting());
    return peer ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}
