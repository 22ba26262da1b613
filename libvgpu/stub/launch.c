/* SPDX-License-Identifier: Apache-2.0 */
/* Kernel launches, in every form the API has, and what a function is asked about. */
#include "work.h"

#include <string.h>

/* ---- How long it takes ---- */

/* The first parameter, from whichever of the two ways it is passed. */
static CUresult first_parameter(void **params, void **extra, uint64_t *value) {
    if (params) {
        memcpy(value, params[0], sizeof *value);
        return CUDA_SUCCESS;
    }
    const void *buffer = NULL;
    size_t size = 0;
    for (void **at = extra; at && *at != CU_LAUNCH_PARAM_END; at += 2) {
        if (*at == CU_LAUNCH_PARAM_BUFFER_POINTER)
            buffer = at[1];
        else if (*at == CU_LAUNCH_PARAM_BUFFER_SIZE)
            size = *(size_t *)at[1];
    }
    REQUIRE(buffer && size >= sizeof *value, CUDA_ERROR_INVALID_VALUE);
    memcpy(value, buffer, sizeof *value);
    return CUDA_SUCCESS;
}

CUresult kernel_prepare(struct kernel *kernel, void **params, void **extra) {
    CUfunction function = kernel->function;
    REQUIRE(function && !(params && extra), CUDA_ERROR_INVALID_VALUE);
    const unsigned *grid = kernel->grid, *block = kernel->block;
    REQUIRE(grid[0] && grid[1] && grid[2] && block[0] && block[1] && block[2], CUDA_ERROR_INVALID_VALUE);
    REQUIRE(grid[0] <= INT32_MAX && grid[1] <= 65535 && grid[2] <= 65535, CUDA_ERROR_INVALID_VALUE);
    REQUIRE((uint64_t)block[0] * block[1] * block[2] <= 1024, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(kernel->shared_bytes <= 232448, CUDA_ERROR_INVALID_VALUE);
    if (function->instant) {
        kernel->duration_ns = 0;
        return CUDA_SUCCESS;
    }
    if (function->spins)
        return first_parameter(params, extra, &kernel->duration_ns);
    const struct stub_card *shared = function->device->card.shared;
    uint64_t blocks = (uint64_t)grid[0] * grid[1] * grid[2];
    uint64_t waves = (blocks + shared->multiprocessors - 1) / shared->multiprocessors;
    kernel->duration_ns = shared->kernel_ns + (waves - 1) * shared->kernel_block_ns;
    return CUDA_SUCCESS;
}

/* Code is brought to the card when it is first run, or asked for (lazy loading). */
static CUresult load_code(CUfunction function) {
    if (__atomic_exchange_n(&function->loaded, true, __ATOMIC_RELAXED))
        return CUDA_SUCCESS;
    CUresult result = module_charge(function->module, function->device->card.shared->lazy_bytes);
    if (result != CUDA_SUCCESS)
        __atomic_store_n(&function->loaded, false, __ATOMIC_RELAXED);
    return result;
}

CUresult kernel_submit(CUstream stream, const struct kernel *kernel) {
    if (capture_hold(stream)) {
        struct node_work work = {.type = CU_GRAPH_NODE_TYPE_KERNEL, .kernel = *kernel};
        CUresult result = capture_add(stream, &work, NULL);
        capture_let_go();
        return result;
    }
    TRY(load_code(kernel->function));
    TRY(context_local(stream->context, kernel->function->attributes[CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES]));
    __atomic_fetch_add(&stream->context->device->card.slot->launches, 1, __ATOMIC_RELAXED);
    queue_submit(stream, (struct op){.kind = OP_KERNEL, .duration_ns = kernel->duration_ns});
    return CUDA_SUCCESS;
}

/* ---- The launches ---- */

CUresult stub_cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                             unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream_handle,
                             void **params, void **extra) {
    CUstream stream;
    TRY(resolve_stream(stream_handle, &stream));
    struct kernel kernel = {.function = function_of(handle),
                            .grid = {grid_x, grid_y, grid_z},
                            .block = {block_x, block_y, block_z},
                            .shared_bytes = shared_bytes};
    TRY(kernel_prepare(&kernel, params, extra));
    return kernel_submit(stream, &kernel);
}

CUresult stub_cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **params, void **extra) {
    REQUIRE(config && (config->numAttrs == 0 || config->attrs), CUDA_ERROR_INVALID_VALUE);
    return stub_cuLaunchKernel(function, config->gridDimX, config->gridDimY, config->gridDimZ, config->blockDimX,
                               config->blockDimY, config->blockDimZ, config->sharedMemBytes, config->hStream, params,
                               extra);
}

CUresult stub_cuLaunchKernelEx_ptsz(const CUlaunchConfig *config, CUfunction function, void **params, void **extra) {
    REQUIRE(config, CUDA_ERROR_INVALID_VALUE);
    CUlaunchConfig copy = *config;
    if (!copy.hStream)
        copy.hStream = CU_STREAM_PER_THREAD;
    return stub_cuLaunchKernelEx(&copy, function, params, extra);
}

CUresult stub_cuLaunchCooperativeKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                                        CUstream stream, void **params) {
    CUfunction known = function_of(function);
    REQUIRE(known, CUDA_ERROR_INVALID_HANDLE);
    uint64_t resident = 32ull * known->device->card.shared->multiprocessors;
    REQUIRE((uint64_t)grid_x * grid_y * grid_z <= resident, CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    return stub_cuLaunchKernel(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, stream,
                               params, NULL);
}

CUresult stub_cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *list, unsigned count, unsigned flags) {
    REQUIRE(list && count && flags <= 3, CUDA_ERROR_INVALID_VALUE);
    for (unsigned i = 0; i < count; i++) {
        const CUDA_LAUNCH_PARAMS *one = &list[i];
        TRY(stub_cuLaunchCooperativeKernel(one->function, one->gridDimX, one->gridDimY, one->gridDimZ, one->blockDimX,
                                           one->blockDimY, one->blockDimZ, one->sharedMemBytes, one->hStream,
                                           one->kernelParams));
    }
    return CUDA_SUCCESS;
}

/* ---- The launch of CUDA 2: block shape and parameters are kept in the function ---- */

static CUresult known_function(CUfunction handle, CUfunction *function) {
    *function = function_of(handle);
    return *function ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult stub_cuFuncSetBlockShape(CUfunction handle, int x, int y, int z) {
    CUfunction function;
    TRY(known_function(handle, &function));
    REQUIRE(x > 0 && y > 0 && z > 0, CUDA_ERROR_INVALID_VALUE);
    function->block[0] = x;
    function->block[1] = y;
    function->block[2] = z;
    return CUDA_SUCCESS;
}

CUresult stub_cuFuncSetSharedSize(CUfunction handle, unsigned bytes) {
    CUfunction function;
    TRY(known_function(handle, &function));
    function->shared_bytes = bytes;
    return CUDA_SUCCESS;
}

CUresult stub_cuParamSetv(CUfunction handle, int offset, void *data, unsigned bytes) {
    CUfunction function;
    TRY(known_function(handle, &function));
    REQUIRE(data && offset >= 0 && offset + bytes <= sizeof function->params, CUDA_ERROR_INVALID_VALUE);
    memcpy(function->params + offset, data, bytes);
    return CUDA_SUCCESS;
}

CUresult stub_cuParamSeti(CUfunction handle, int offset, unsigned value) {
    return stub_cuParamSetv(handle, offset, &value, sizeof value);
}

CUresult stub_cuParamSetf(CUfunction handle, int offset, float value) {
    return stub_cuParamSetv(handle, offset, &value, sizeof value);
}

CUresult stub_cuParamSetSize(CUfunction handle, unsigned bytes) {
    CUfunction function;
    TRY(known_function(handle, &function));
    return bytes <= sizeof function->params ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult stub_cuLaunchGridAsync(CUfunction handle, int width, int height, CUstream stream) {
    CUfunction function;
    TRY(known_function(handle, &function));
    REQUIRE(width > 0 && height > 0, CUDA_ERROR_INVALID_VALUE);
    size_t size = sizeof function->params;
    void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, function->params, CU_LAUNCH_PARAM_BUFFER_SIZE, &size,
                     CU_LAUNCH_PARAM_END};
    const int *block = function->block;
    return stub_cuLaunchKernel(function, (unsigned)width, (unsigned)height, 1, (unsigned)block[0], (unsigned)block[1],
                               (unsigned)block[2], function->shared_bytes, stream, NULL, extra);
}

CUresult stub_cuLaunchGrid(CUfunction function, int width, int height) {
    return stub_cuLaunchGridAsync(function, width, height, NULL);
}

CUresult stub_cuLaunch(CUfunction function) {
    return stub_cuLaunchGridAsync(function, 1, 1, NULL);
}

/* ---- Functions ---- */

CUresult stub_cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction handle) {
    CUfunction function;
    REQUIRE(value && attribute >= 0 && attribute < CU_FUNC_ATTRIBUTE_MAX, CUDA_ERROR_INVALID_VALUE);
    TRY(known_function(handle, &function));
    *value = (int)function->attributes[attribute];
    return CUDA_SUCCESS;
}

CUresult stub_cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
    CUfunction function;
    REQUIRE(attribute >= CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES && attribute < CU_FUNC_ATTRIBUTE_MAX,
            CUDA_ERROR_INVALID_VALUE);
    TRY(known_function(handle, &function));
    function->attributes[attribute] = (unsigned)value;
    return CUDA_SUCCESS;
}

CUresult stub_cuFuncSetCacheConfig(CUfunction handle, int config) {
    CUfunction function;
    (void)config;
    return known_function(handle, &function);
}

CUresult stub_cuFuncSetSharedMemConfig(CUfunction handle, int config) {
    CUfunction function;
    (void)config;
    return known_function(handle, &function);
}

CUresult stub_cuFuncGetModule(CUmodule *module, CUfunction handle) {
    CUfunction function;
    REQUIRE(module, CUDA_ERROR_INVALID_VALUE);
    TRY(known_function(handle, &function));
    *module = function->module;
    return CUDA_SUCCESS;
}

CUresult stub_cuFuncGetName(const char **name, CUfunction handle) {
    CUfunction function;
    REQUIRE(name, CUDA_ERROR_INVALID_VALUE);
    TRY(known_function(handle, &function));
    *name = function->name;
    return CUDA_SUCCESS;
}

CUresult stub_cuFuncIsLoaded(int *state, CUfunction handle) {
    CUfunction function;
    REQUIRE(state, CUDA_ERROR_INVALID_VALUE);
    TRY(known_function(handle, &function));
    *state = function->loaded || function->device->card.shared->lazy_bytes == 0;
    return CUDA_SUCCESS;
}

CUresult stub_cuFuncLoad(CUfunction handle) {
    CUfunction function;
    TRY(known_function(handle, &function));
    return load_code(function);
}

/* ---- Occupancy: a multiprocessor holds 2048 threads and 32 blocks ---- */

CUresult stub_cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, CUfunction handle, int block_size,
                                                                   size_t shared_bytes, unsigned flags) {
    CUfunction function;
    (void)flags;
    REQUIRE(blocks && block_size > 0 && block_size <= 1024, CUDA_ERROR_INVALID_VALUE);
    TRY(known_function(handle, &function));
    int by_threads = 2048 / ((block_size + 31) / 32 * 32);
    int by_shared = shared_bytes ? (int)(233472 / shared_bytes) : 32;
    int limit = by_threads < by_shared ? by_threads : by_shared;
    *blocks = limit < 32 ? limit : 32;
    return CUDA_SUCCESS;
}

CUresult stub_cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int block_size,
                                                          size_t shared_bytes) {
    return stub_cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, block_size, shared_bytes, 0);
}

CUresult stub_cuOccupancyMaxPotentialBlockSize(int *grid_size, int *block_size, CUfunction handle,
                                               CUoccupancyB2DSize shared_of_block, size_t shared_bytes, int limit) {
    CUfunction function;
    (void)shared_of_block, (void)shared_bytes;
    REQUIRE(grid_size && block_size, CUDA_ERROR_INVALID_VALUE);
    TRY(known_function(handle, &function));
    *block_size = limit > 0 && limit < 1024 ? limit : 1024;
    *grid_size = 2 * (int)function->device->card.shared->multiprocessors;
    return CUDA_SUCCESS;
}
