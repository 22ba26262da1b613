/* SPDX-License-Identifier: Apache-2.0
 *
 * Fills: they really write the bytes when their turn comes on the stream, and take their time on the engine.
 * Synchronous calls do not wait either, but for what the host could look at: pinned and managed memory (CUDA driver
 * API, API synchronization behavior).
 */
#include "work.h"

#include <stdlib.h>
#include <string.h>

/* Rows of elements. */
struct fill {
    char *bytes;
    size_t pitch;
    size_t width, height; /* in elements */
    unsigned value, element;
};

static void run_fill(void *data) {
    const struct fill *fill = data;
    for (size_t y = 0; y < fill->height; y++) {
        char *row = fill->bytes + y * fill->pitch;
        if (fill->element == 1) {
            memset(row, (int)fill->value, fill->width);
            continue;
        }
        for (size_t x = 0; x < fill->width; x++)
            memcpy(row + x * fill->element, &fill->value, fill->element); /* little endian */
    }
}

static CUresult resolve_fill(const CUDA_MEMSET_NODE_PARAMS *params, struct fill *fill) {
    REQUIRE(params && (params->elementSize == 1 || params->elementSize == 2 || params->elementSize == 4),
            CUDA_ERROR_INVALID_VALUE);
    REQUIRE(params->dst % params->elementSize == 0, CUDA_ERROR_INVALID_VALUE);
    size_t row = params->width * params->elementSize;
    size_t pitch = params->height > 1 ? params->pitch : row;
    REQUIRE(pitch >= row, CUDA_ERROR_INVALID_VALUE);
    void *bytes;
    TRY(device_bytes(params->dst, (params->height - 1) * pitch + row, true, &bytes));
    *fill = (struct fill){bytes, pitch, params->width, params->height, params->value, params->elementSize};
    return CUDA_SUCCESS;
}

static struct node_work work_of(CUcontext context, struct fill *fill) {
    return (struct node_work){.type = CU_GRAPH_NODE_TYPE_MEMSET,
                              .run = run_fill,
                              .data = fill,
                              .data_size = sizeof *fill,
                              .duration_ns = memory_ns(context, fill->width * fill->height * fill->element)};
}

CUresult fill_make(const CUDA_MEMSET_NODE_PARAMS *params, struct node_work *work) {
    CUcontext context;
    struct fill fill;
    TRY(current_context(&context));
    TRY(resolve_fill(params, &fill));
    *work = work_of(context, &fill);
    work->data = malloc(sizeof fill);
    REQUIRE(work->data, CUDA_ERROR_OUT_OF_MEMORY);
    memcpy(work->data, &fill, sizeof fill);
    return CUDA_SUCCESS;
}

static bool host_may_look(CUdeviceptr address) {
    pthread_mutex_lock(&memory_lock);
    const struct allocation *record = arena_find(address);
    bool may = record && (record->kind == ALLOCATION_HOST || record->kind == ALLOCATION_MANAGED);
    pthread_mutex_unlock(&memory_lock);
    return may;
}

static CUresult fill_memory(CUDA_MEMSET_NODE_PARAMS params, CUstream stream, bool wait) {
    CUcontext context;
    struct fill fill;
    TRY(current_context(&context));
    if (params.width == 0 || params.height == 0)
        return CUDA_SUCCESS;
    TRY(resolve_fill(&params, &fill));
    return submit_local(stream, wait && host_may_look(params.dst), work_of(context, &fill));
}

#define FILL(bits, element, type)                                                                                      \
    CUresult stub_cuMemsetD##bits##_v2(CUdeviceptr to, type value, size_t count) {                                     \
        return fill_memory((CUDA_MEMSET_NODE_PARAMS){to, 0, value, element, count, 1}, synchronous_stream, true);      \
    }                                                                                                                  \
    CUresult stub_cuMemsetD##bits##Async(CUdeviceptr to, type value, size_t count, CUstream stream) {                  \
        return fill_memory((CUDA_MEMSET_NODE_PARAMS){to, 0, value, element, count, 1}, stream, false);                 \
    }                                                                                                                  \
    CUresult stub_cuMemsetD2D##bits##_v2(CUdeviceptr to, size_t pitch, type value, size_t width, size_t height) {      \
        return fill_memory((CUDA_MEMSET_NODE_PARAMS){to, pitch, value, element, width, height}, synchronous_stream,    \
                           true);                                                                                      \
    }                                                                                                                  \
    CUresult stub_cuMemsetD2D##bits##Async(CUdeviceptr to, size_t pitch, type value, size_t width, size_t height,      \
                                           CUstream stream) {                                                          \
        return fill_memory((CUDA_MEMSET_NODE_PARAMS){to, pitch, value, element, width, height}, stream, false);        \
    }

FILL(8, 1, unsigned char)
FILL(16, 2, unsigned short)
FILL(32, 4, unsigned)
