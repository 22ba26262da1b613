/* SPDX-License-Identifier: Apache-2.0
 *
 * Copies and fills. They really move the bytes: at once when the call is synchronous (after what the stream had to do),
 * else when their turn comes on the stream. They take no time on the engine: copying is the work of other engines.
 */
#include "driver.h"

#include <stdlib.h>
#include <string.h>

/* One side of a copy: rows of bytes inside slices. */
struct side {
    char *bytes;
    size_t pitch, slice;
};

struct copy {
    struct side from, to;
    size_t width, height, depth;
};

static void run_copy(void *data) {
    const struct copy *copy = data;
    for (size_t z = 0; z < copy->depth; z++)
        for (size_t y = 0; y < copy->height; y++)
            memmove(copy->to.bytes + z * copy->to.slice + y * copy->to.pitch,
                    copy->from.bytes + z * copy->from.slice + y * copy->from.pitch, copy->width);
}

struct fill {
    struct side to;
    size_t width, height; /* in elements */
    unsigned value, element;
};

static void run_fill(void *data) {
    const struct fill *fill = data;
    for (size_t y = 0; y < fill->height; y++) {
        char *row = fill->to.bytes + y * fill->to.pitch;
        if (fill->element == 1) {
            memset(row, (int)fill->value, fill->width);
            continue;
        }
        for (size_t x = 0; x < fill->width; x++)
            memcpy(row + x * fill->element, &fill->value, fill->element); /* little endian */
    }
}

/* ---- Submitting ---- */

/* Runs data now if the call is synchronous, else when the stream comes to it. data is a local of the caller. */
static CUresult submit(CUstream handle, bool wait, void (*run)(void *), const void *data, size_t size, int type) {
    CUstream stream;
    TRY(resolve_stream(handle, &stream));
    if (wait) {
        REQUIRE(!CAPTURING(stream), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
        queue_wait_stream(stream);
        run((void *)data);
        return CUDA_SUCCESS;
    }
    void *copy = malloc(size);
    REQUIRE(copy, CUDA_ERROR_OUT_OF_MEMORY);
    memcpy(copy, data, size);
    return submit_run(stream, run, copy, size, type);
}

struct owned_run {
    void (*run)(void *);
    void *data;
};

static void run_and_free(void *argument) {
    struct owned_run owned = *(struct owned_run *)argument;
    owned.run(owned.data);
    free(owned.data);
    free(argument);
}

CUresult submit_run(CUstream stream, void (*run)(void *), void *data, size_t size, CUgraphNodeType type) {
    if (CAPTURING(stream)) {
        struct node_work work = {.type = type, .run = run, .data = data, .data_size = size};
        return capture_add(stream, &work, NULL);
    }
    struct owned_run *owned = malloc(sizeof *owned);
    if (!owned) {
        free(data);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *owned = (struct owned_run){run, data};
    queue_submit(stream, (struct op){.kind = OP_RUN, .run = {run_and_free, owned}});
    return CUDA_SUCCESS;
}

/* ---- Plain copies ---- */

enum direction { ANY_TO_ANY, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE };

static CUresult copy_linear(CUdeviceptr to, CUdeviceptr from, size_t bytes, enum direction direction, CUstream handle,
                            bool wait) {
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(to && from, CUDA_ERROR_INVALID_VALUE);
    if (bytes == 0)
        return CUDA_SUCCESS;
    void *to_bytes, *from_bytes;
    bool to_device = direction == HOST_TO_DEVICE || direction == DEVICE_TO_DEVICE;
    bool from_device = direction == DEVICE_TO_HOST || direction == DEVICE_TO_DEVICE;
    TRY((to_device ? device_bytes : memory_bytes)(to, bytes, true, &to_bytes));
    TRY((from_device ? device_bytes : memory_bytes)(from, bytes, false, &from_bytes));
    struct copy copy = {{from_bytes, bytes, bytes}, {to_bytes, bytes, bytes}, bytes, 1, 1};
    return submit(handle, wait, run_copy, &copy, sizeof copy, CU_GRAPH_NODE_TYPE_MEMCPY);
}

CUresult stub_cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    return copy_linear(to, from, bytes, ANY_TO_ANY, NULL, true);
}

CUresult stub_cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return copy_linear(to, from, bytes, ANY_TO_ANY, stream, false);
}

CUresult stub_cuMemcpyPeer(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context,
                           size_t bytes) {
    REQUIRE(to_context && from_context, CUDA_ERROR_INVALID_CONTEXT);
    return copy_linear(to, from, bytes, DEVICE_TO_DEVICE, NULL, true);
}

CUresult stub_cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context,
                                size_t bytes, CUstream stream) {
    REQUIRE(to_context && from_context, CUDA_ERROR_INVALID_CONTEXT);
    return copy_linear(to, from, bytes, DEVICE_TO_DEVICE, stream, false);
}

CUresult stub_cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) {
    return copy_linear(to, (CUdeviceptr)from, bytes, HOST_TO_DEVICE, NULL, true);
}

CUresult stub_cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
    return copy_linear((CUdeviceptr)to, from, bytes, DEVICE_TO_HOST, NULL, true);
}

CUresult stub_cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    return copy_linear(to, from, bytes, DEVICE_TO_DEVICE, NULL, true);
}

CUresult stub_cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    return copy_linear(to, (CUdeviceptr)from, bytes, HOST_TO_DEVICE, stream, false);
}

CUresult stub_cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return copy_linear((CUdeviceptr)to, from, bytes, DEVICE_TO_HOST, stream, false);
}

CUresult stub_cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return copy_linear(to, from, bytes, DEVICE_TO_DEVICE, stream, false);
}

/* ---- Arrays ---- */

static size_t array_rows(CUarray array) {
    return array->desc.Height ? array->desc.Height : 1;
}

static CUresult array_bytes(CUarray array, size_t offset, size_t bytes, bool write, char **out) {
    void *start;
    REQUIRE(array, CUDA_ERROR_INVALID_HANDLE);
    TRY(memory_bytes(array->allocation->base + array->offset + offset, bytes, write, &start));
    *out = start;
    return CUDA_SUCCESS;
}

static CUresult copy_with_array(char *to, const char *from, size_t bytes) {
    struct copy copy = {{(char *)from, bytes, bytes}, {to, bytes, bytes}, bytes, 1, 1};
    return submit(NULL, true, run_copy, &copy, sizeof copy, CU_GRAPH_NODE_TYPE_MEMCPY);
}

CUresult stub_cuMemcpyHtoA_v2(CUarray to, size_t offset, const void *from, size_t bytes) {
    char *to_bytes;
    TRY(array_bytes(to, offset, bytes, true, &to_bytes));
    return copy_with_array(to_bytes, from, bytes);
}

CUresult stub_cuMemcpyAtoH_v2(void *to, CUarray from, size_t offset, size_t bytes) {
    char *from_bytes;
    TRY(array_bytes(from, offset, bytes, false, &from_bytes));
    return copy_with_array(to, from_bytes, bytes);
}

CUresult stub_cuMemcpyDtoA_v2(CUarray to, size_t offset, CUdeviceptr from, size_t bytes) {
    char *to_bytes;
    void *from_bytes;
    TRY(array_bytes(to, offset, bytes, true, &to_bytes));
    TRY(device_bytes(from, bytes, false, &from_bytes));
    return copy_with_array(to_bytes, from_bytes, bytes);
}

CUresult stub_cuMemcpyAtoD_v2(CUdeviceptr to, CUarray from, size_t offset, size_t bytes) {
    void *to_bytes;
    char *from_bytes;
    TRY(device_bytes(to, bytes, true, &to_bytes));
    TRY(array_bytes(from, offset, bytes, false, &from_bytes));
    return copy_with_array(to_bytes, from_bytes, bytes);
}

CUresult stub_cuMemcpyAtoA_v2(CUarray to, size_t to_offset, CUarray from, size_t from_offset, size_t bytes) {
    char *to_bytes, *from_bytes;
    TRY(array_bytes(to, to_offset, bytes, true, &to_bytes));
    TRY(array_bytes(from, from_offset, bytes, false, &from_bytes));
    return copy_with_array(to_bytes, from_bytes, bytes);
}

/* ---- 2D and 3D copies ---- */

/* One end of a 3D copy, as its parameters name it. */
struct end {
    size_t x, y, z;
    CUmemorytype type;
    CUdeviceptr pointer;
    CUarray array;
    size_t pitch, height;
};

static CUresult resolve_end(const struct end *end, const CUDA_MEMCPY3D *copy, bool write, struct side *side) {
    size_t rows = end->height ? end->height : copy->Height;
    side->pitch = end->pitch ? end->pitch : copy->WidthInBytes;
    CUdeviceptr base = end->pointer;
    if (end->type == CU_MEMORYTYPE_ARRAY) {
        REQUIRE(end->array, CUDA_ERROR_INVALID_HANDLE);
        side->pitch = end->array->pitch;
        rows = array_rows(end->array);
        base = end->array->allocation->base + end->array->offset;
        REQUIRE(end->x + copy->WidthInBytes <= side->pitch && end->y + copy->Height <= rows, CUDA_ERROR_INVALID_VALUE);
    }
    REQUIRE(base && side->pitch >= copy->WidthInBytes, CUDA_ERROR_INVALID_VALUE);
    side->slice = side->pitch * rows;
    base += end->z * side->slice + end->y * side->pitch + end->x;
    size_t span = (copy->Depth - 1) * side->slice + (copy->Height - 1) * side->pitch + copy->WidthInBytes;
    void *bytes;
    TRY((end->type == CU_MEMORYTYPE_DEVICE ? device_bytes : memory_bytes)(base, span, write, &bytes));
    side->bytes = bytes;
    return CUDA_SUCCESS;
}

static CUresult resolve_copy(const CUDA_MEMCPY3D *params, struct copy *copy) {
    REQUIRE(params && params->WidthInBytes && params->Height && params->Depth, CUDA_ERROR_INVALID_VALUE);
    bool from_host = params->srcMemoryType == CU_MEMORYTYPE_HOST, to_host = params->dstMemoryType == CU_MEMORYTYPE_HOST;
    struct end from = {params->srcXInBytes,
                       params->srcY,
                       params->srcZ,
                       params->srcMemoryType,
                       from_host ? (CUdeviceptr)params->srcHost : params->srcDevice,
                       params->srcArray,
                       params->srcPitch,
                       params->srcHeight};
    struct end to = {params->dstXInBytes,
                     params->dstY,
                     params->dstZ,
                     params->dstMemoryType,
                     to_host ? (CUdeviceptr)params->dstHost : params->dstDevice,
                     params->dstArray,
                     params->dstPitch,
                     params->dstHeight};
    TRY(resolve_end(&from, params, false, &copy->from));
    TRY(resolve_end(&to, params, true, &copy->to));
    copy->width = params->WidthInBytes;
    copy->height = params->Height;
    copy->depth = params->Depth;
    return CUDA_SUCCESS;
}

CUresult copy_make(const CUDA_MEMCPY3D *params, struct node_work *work) {
    struct copy copy;
    TRY(resolve_copy(params, &copy));
    work->type = CU_GRAPH_NODE_TYPE_MEMCPY;
    work->run = run_copy;
    work->data_size = sizeof copy;
    work->data = malloc(sizeof copy);
    REQUIRE(work->data, CUDA_ERROR_OUT_OF_MEMORY);
    memcpy(work->data, &copy, sizeof copy);
    return CUDA_SUCCESS;
}

static CUresult copy_3d(const CUDA_MEMCPY3D *params, CUstream stream, bool wait) {
    CUcontext context;
    struct copy copy;
    TRY(current_context(&context));
    TRY(resolve_copy(params, &copy));
    return submit(stream, wait, run_copy, &copy, sizeof copy, CU_GRAPH_NODE_TYPE_MEMCPY);
}

static CUresult copy_2d(const CUDA_MEMCPY2D *flat, CUstream stream, bool wait) {
    REQUIRE(flat, CUDA_ERROR_INVALID_VALUE);
    CUDA_MEMCPY3D copy = {.srcXInBytes = flat->srcXInBytes,
                          .srcY = flat->srcY,
                          .srcMemoryType = flat->srcMemoryType,
                          .srcHost = flat->srcHost,
                          .srcDevice = flat->srcDevice,
                          .srcArray = flat->srcArray,
                          .srcPitch = flat->srcPitch,
                          .dstXInBytes = flat->dstXInBytes,
                          .dstY = flat->dstY,
                          .dstMemoryType = flat->dstMemoryType,
                          .dstHost = flat->dstHost,
                          .dstDevice = flat->dstDevice,
                          .dstArray = flat->dstArray,
                          .dstPitch = flat->dstPitch,
                          .WidthInBytes = flat->WidthInBytes,
                          .Height = flat->Height,
                          .Depth = 1};
    return copy_3d(&copy, stream, wait);
}

CUresult stub_cuMemcpy2D_v2(const CUDA_MEMCPY2D *copy) {
    return copy_2d(copy, NULL, true);
}
CUresult stub_cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D *copy) {
    return copy_2d(copy, NULL, true);
}
CUresult stub_cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D *copy, CUstream stream) {
    return copy_2d(copy, stream, false);
}
CUresult stub_cuMemcpy3D_v2(const CUDA_MEMCPY3D *copy) {
    return copy_3d(copy, NULL, true);
}
CUresult stub_cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D *copy, CUstream stream) {
    return copy_3d(copy, stream, false);
}
CUresult stub_cuMemcpy3DPeer(const CUDA_MEMCPY3D_PEER *copy) {
    return copy_3d(copy, NULL, true);
}
CUresult stub_cuMemcpy3DPeerAsync(const CUDA_MEMCPY3D_PEER *copy, CUstream stream) {
    return copy_3d(copy, stream, false);
}

/* ---- Fills ---- */

static CUresult resolve_fill(const CUDA_MEMSET_NODE_PARAMS *params, struct fill *fill) {
    REQUIRE(params && (params->elementSize == 1 || params->elementSize == 2 || params->elementSize == 4),
            CUDA_ERROR_INVALID_VALUE);
    REQUIRE(params->dst % params->elementSize == 0, CUDA_ERROR_INVALID_VALUE);
    size_t row = params->width * params->elementSize;
    size_t pitch = params->height > 1 ? params->pitch : row;
    REQUIRE(pitch >= row, CUDA_ERROR_INVALID_VALUE);
    void *bytes;
    TRY(device_bytes(params->dst, (params->height - 1) * pitch + row, true, &bytes));
    *fill = (struct fill){{bytes, pitch, 0}, params->width, params->height, params->value, params->elementSize};
    return CUDA_SUCCESS;
}

CUresult fill_make(const CUDA_MEMSET_NODE_PARAMS *params, struct node_work *work) {
    struct fill fill;
    TRY(resolve_fill(params, &fill));
    work->type = CU_GRAPH_NODE_TYPE_MEMSET;
    work->run = run_fill;
    work->data_size = sizeof fill;
    work->data = malloc(sizeof fill);
    REQUIRE(work->data, CUDA_ERROR_OUT_OF_MEMORY);
    memcpy(work->data, &fill, sizeof fill);
    return CUDA_SUCCESS;
}

static CUresult fill_memory(CUDA_MEMSET_NODE_PARAMS params, CUstream stream, bool wait) {
    CUcontext context;
    struct fill fill;
    TRY(current_context(&context));
    if (params.width == 0 || params.height == 0)
        return CUDA_SUCCESS;
    TRY(resolve_fill(&params, &fill));
    return submit(stream, wait, run_fill, &fill, sizeof fill, CU_GRAPH_NODE_TYPE_MEMSET);
}

#define FILL(bits, element, type)                                                                                      \
    CUresult stub_cuMemsetD##bits##_v2(CUdeviceptr to, type value, size_t count) {                                     \
        return fill_memory((CUDA_MEMSET_NODE_PARAMS){to, 0, value, element, count, 1}, NULL, true);                    \
    }                                                                                                                  \
    CUresult stub_cuMemsetD##bits##Async(CUdeviceptr to, type value, size_t count, CUstream stream) {                  \
        return fill_memory((CUDA_MEMSET_NODE_PARAMS){to, 0, value, element, count, 1}, stream, false);                 \
    }                                                                                                                  \
    CUresult stub_cuMemsetD2D##bits##_v2(CUdeviceptr to, size_t pitch, type value, size_t width, size_t height) {      \
        return fill_memory((CUDA_MEMSET_NODE_PARAMS){to, pitch, value, element, width, height}, NULL, true);           \
    }                                                                                                                  \
    CUresult stub_cuMemsetD2D##bits##Async(CUdeviceptr to, size_t pitch, type value, size_t width, size_t height,      \
                                           CUstream stream) {                                                          \
        return fill_memory((CUDA_MEMSET_NODE_PARAMS){to, pitch, value, element, width, height}, stream, false);        \
    }

FILL(8, 1, unsigned char)
FILL(16, 2, unsigned short)
FILL(32, 4, unsigned)
