/* SPDX-License-Identifier: Apache-2.0
 *
 * Copies. They really move the bytes when their turn comes on the stream, or at once where there is nothing before
 * them. What stays on the card takes its time on the engine, by what its memory reads and writes. What goes to or from
 * the host takes the link's, on its stream alone: other engines do that, beside the kernels. A pointer says where it
 * lies; the name of the call does not, as with unified addressing.
 *
 * Synchronous calls wait for what they copy to or from the host, and not for copies on the card (CUDA driver API, API
 * synchronization behavior).
 */
#include "work.h"

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

/* ---- Submitting ---- */

_Thread_local CUstream synchronous_stream;

bool on_host(CUdeviceptr address) {
    pthread_mutex_lock(&memory_lock);
    const struct allocation *record = arena_find(address);
    bool host = !record || record->kind == ALLOCATION_HOST;
    pthread_mutex_unlock(&memory_lock);
    return host;
}

/* How long it takes to move so many bytes over the link: no engine's time. */
static uint64_t link_ns(CUcontext context, size_t bytes) {
    uint64_t rate = context->device->card.shared->link_bytes_per_us;
    return rate ? bytes * 1000 / rate : 0;
}

/* At least as long as a kernel: the card does it by one. */
uint64_t memory_ns(CUcontext context, size_t bytes) {
    const struct stub_card *shared = context->device->card.shared;
    return shared->bytes_per_us ? shared->kernel_ns + bytes * 1000 / shared->bytes_per_us : 0;
}

CUresult submit_local(CUstream handle, bool wait, struct node_work work) {
    CUstream stream;
    TRY(resolve_stream(handle, &stream));
    REQUIRE(!(wait && CAPTURING(stream)), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    void *copy = malloc(work.data_size);
    REQUIRE(copy, CUDA_ERROR_OUT_OF_MEMORY);
    memcpy(copy, work.data, work.data_size);
    work.data = copy;
    TRY(submit_run(stream, &work));
    if (wait)
        queue_wait_stream(stream);
    return CUDA_SUCCESS;
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

CUresult submit_run(CUstream stream, const struct node_work *work) {
    if (CAPTURING(stream))
        return capture_add(stream, work, NULL);
    struct owned_run *owned = malloc(sizeof *owned);
    if (!owned) {
        free(work->data);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *owned = (struct owned_run){work->run, work->data};
    enum op_kind kind = work->link ? OP_LINK : OP_RUN;
    queue_submit(stream, (struct op){.kind = kind, .duration_ns = work->duration_ns, .run = {run_and_free, owned}});
    return CUDA_SUCCESS;
}

static struct node_work work_of(CUcontext context, struct copy *copy, bool link) {
    size_t bytes = copy->width * copy->height * copy->depth;
    return (struct node_work){.type = CU_GRAPH_NODE_TYPE_MEMCPY,
                              .run = run_copy,
                              .data = copy,
                              .data_size = sizeof *copy,
                              .duration_ns = link ? link_ns(context, bytes) : memory_ns(context, 2 * bytes),
                              .link = link};
}

/* ---- Plain copies ---- */

CUresult copy_linear(CUdeviceptr to, CUdeviceptr from, size_t bytes, enum direction direction, CUstream handle,
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
    bool link = on_host(to) || on_host(from);
    return submit_local(handle, wait && link, work_of(context, &copy, link));
}

CUresult stub_cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    return copy_linear(to, from, bytes, ANY_TO_ANY, synchronous_stream, true);
}

CUresult stub_cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return copy_linear(to, from, bytes, ANY_TO_ANY, stream, false);
}

CUresult stub_cuMemcpyPeer(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context,
                           size_t bytes) {
    REQUIRE(to_context && from_context, CUDA_ERROR_INVALID_CONTEXT);
    return copy_linear(to, from, bytes, DEVICE_TO_DEVICE, synchronous_stream, true);
}

CUresult stub_cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context,
                                size_t bytes, CUstream stream) {
    REQUIRE(to_context && from_context, CUDA_ERROR_INVALID_CONTEXT);
    return copy_linear(to, from, bytes, DEVICE_TO_DEVICE, stream, false);
}

CUresult stub_cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) {
    return copy_linear(to, (CUdeviceptr)from, bytes, HOST_TO_DEVICE, synchronous_stream, true);
}

CUresult stub_cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
    return copy_linear((CUdeviceptr)to, from, bytes, DEVICE_TO_HOST, synchronous_stream, true);
}

CUresult stub_cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    return copy_linear(to, from, bytes, DEVICE_TO_DEVICE, synchronous_stream, true);
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
    REQUIRE(array_lives(array), CUDA_ERROR_INVALID_HANDLE);
    TRY(memory_bytes(array->allocation->base + array->offset + offset, bytes, write, &start));
    *out = start;
    return CUDA_SUCCESS;
}

static CUresult copy_with_array(char *to, const char *from, size_t bytes, bool link) {
    CUcontext context;
    TRY(current_context(&context));
    struct copy copy = {{(char *)from, bytes, bytes}, {to, bytes, bytes}, bytes, 1, 1};
    return submit_local(synchronous_stream, link, work_of(context, &copy, link));
}

CUresult stub_cuMemcpyHtoA_v2(CUarray to, size_t offset, const void *from, size_t bytes) {
    char *to_bytes;
    TRY(array_bytes(to, offset, bytes, true, &to_bytes));
    return copy_with_array(to_bytes, from, bytes, on_host((CUdeviceptr)from));
}

CUresult stub_cuMemcpyAtoH_v2(void *to, CUarray from, size_t offset, size_t bytes) {
    char *from_bytes;
    TRY(array_bytes(from, offset, bytes, false, &from_bytes));
    return copy_with_array(to, from_bytes, bytes, on_host((CUdeviceptr)to));
}

CUresult stub_cuMemcpyDtoA_v2(CUarray to, size_t offset, CUdeviceptr from, size_t bytes) {
    char *to_bytes;
    void *from_bytes;
    TRY(array_bytes(to, offset, bytes, true, &to_bytes));
    TRY(device_bytes(from, bytes, false, &from_bytes));
    return copy_with_array(to_bytes, from_bytes, bytes, on_host(from));
}

CUresult stub_cuMemcpyAtoD_v2(CUdeviceptr to, CUarray from, size_t offset, size_t bytes) {
    void *to_bytes;
    char *from_bytes;
    TRY(device_bytes(to, bytes, true, &to_bytes));
    TRY(array_bytes(from, offset, bytes, false, &from_bytes));
    return copy_with_array(to_bytes, from_bytes, bytes, on_host(to));
}

CUresult stub_cuMemcpyAtoA_v2(CUarray to, size_t to_offset, CUarray from, size_t from_offset, size_t bytes) {
    char *to_bytes, *from_bytes;
    TRY(array_bytes(to, to_offset, bytes, true, &to_bytes));
    TRY(array_bytes(from, from_offset, bytes, false, &from_bytes));
    return copy_with_array(to_bytes, from_bytes, bytes, false);
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

static CUresult resolve_end(const struct end *end, const CUDA_MEMCPY3D *copy, bool write, struct side *side,
                            bool *link) {
    size_t rows = end->height ? end->height : copy->Height;
    side->pitch = end->pitch ? end->pitch : copy->WidthInBytes;
    CUdeviceptr base = end->pointer;
    if (end->type == CU_MEMORYTYPE_ARRAY) {
        REQUIRE(array_lives(end->array), CUDA_ERROR_INVALID_HANDLE);
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
    *link |= end->type != CU_MEMORYTYPE_ARRAY && on_host(base);
    return CUDA_SUCCESS;
}

static CUresult resolve_copy(const CUDA_MEMCPY3D *params, struct copy *copy, bool *link) {
    *link = false;
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
    TRY(resolve_end(&from, params, false, &copy->from, link));
    TRY(resolve_end(&to, params, true, &copy->to, link));
    copy->width = params->WidthInBytes;
    copy->height = params->Height;
    copy->depth = params->Depth;
    return CUDA_SUCCESS;
}

CUresult copy_make(const CUDA_MEMCPY3D *params, struct node_work *work) {
    CUcontext context;
    struct copy copy;
    bool link;
    TRY(current_context(&context));
    TRY(resolve_copy(params, &copy, &link));
    *work = work_of(context, &copy, link);
    work->data = malloc(sizeof copy);
    REQUIRE(work->data, CUDA_ERROR_OUT_OF_MEMORY);
    memcpy(work->data, &copy, sizeof copy);
    return CUDA_SUCCESS;
}

CUresult copy_3d(const CUDA_MEMCPY3D *params, CUstream stream, bool wait) {
    CUcontext context;
    struct copy copy;
    bool link;
    TRY(current_context(&context));
    TRY(resolve_copy(params, &copy, &link));
    return submit_local(stream, wait && link, work_of(context, &copy, link));
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
    return copy_2d(copy, synchronous_stream, true);
}
CUresult stub_cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D *copy) {
    return copy_2d(copy, synchronous_stream, true);
}
CUresult stub_cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D *copy, CUstream stream) {
    return copy_2d(copy, stream, false);
}
CUresult stub_cuMemcpy3D_v2(const CUDA_MEMCPY3D *copy) {
    return copy_3d(copy, synchronous_stream, true);
}
CUresult stub_cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D *copy, CUstream stream) {
    return copy_3d(copy, stream, false);
}
CUresult stub_cuMemcpy3DPeer(const CUDA_MEMCPY3D_PEER *copy) {
    return copy_3d(copy, synchronous_stream, true);
}
CUresult stub_cuMemcpy3DPeerAsync(const CUDA_MEMCPY3D_PEER *copy, CUstream stream) {
    return copy_3d(copy, stream, false);
}
