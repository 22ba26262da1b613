/* SPDX-License-Identifier: Apache-2.0 */
/* Streams: the API side of queue.c. */
#include "work.h"

#include <stdlib.h>

/* ---- Streams ---- */

CUresult stub_cuStreamCreateWithPriority(CUstream *out, unsigned flags, int priority) {
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(out && flags <= CU_STREAM_NON_BLOCKING, CUDA_ERROR_INVALID_VALUE);
    *out = queue_stream_make(context, flags, priority < -5 ? -5 : priority > 0 ? 0 : priority);
    return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult stub_cuStreamCreate(CUstream *out, unsigned flags) {
    return stub_cuStreamCreateWithPriority(out, flags, 0);
}

CUresult stub_cuStreamDestroy_v2(CUstream handle) {
    CUstream stream;
    REQUIRE(handle > CU_STREAM_PER_THREAD, CUDA_ERROR_INVALID_HANDLE);
    TRY(resolve_stream(handle, &stream));
    queue_stream_free(stream);
    return CUDA_SUCCESS;
}

CUresult stub_cuStreamDestroy(CUstream handle) {
    return stub_cuStreamDestroy_v2(handle);
}

CUresult stub_cuStreamSynchronize(CUstream handle) {
    CUstream stream;
    TRY(resolve_stream(handle, &stream));
    REQUIRE(!CAPTURING(stream), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    queue_wait_stream(stream);
    pools_settle(stream->context->device);
    return CUDA_SUCCESS;
}

CUresult stub_cuStreamQuery(CUstream handle) {
    CUstream stream;
    TRY(resolve_stream(handle, &stream));
    REQUIRE(!CAPTURING(stream), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    return queue_stream_idle(stream) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult stub_cuStreamGetPriority(CUstream handle, int *priority) {
    CUstream stream;
    REQUIRE(priority, CUDA_ERROR_INVALID_VALUE);
    TRY(resolve_stream(handle, &stream));
    *priority = stream->priority;
    return CUDA_SUCCESS;
}

CUresult stub_cuStreamGetFlags(CUstream handle, unsigned *flags) {
    CUstream stream;
    REQUIRE(flags, CUDA_ERROR_INVALID_VALUE);
    TRY(resolve_stream(handle, &stream));
    *flags = stream->flags;
    return CUDA_SUCCESS;
}

CUresult stub_cuStreamGetId(CUstream handle, unsigned long long *id) {
    CUstream stream;
    REQUIRE(id, CUDA_ERROR_INVALID_VALUE);
    TRY(resolve_stream(handle, &stream));
    *id = stream->id;
    return CUDA_SUCCESS;
}

CUresult stub_cuStreamGetCtx(CUstream handle, CUcontext *context) {
    CUstream stream;
    REQUIRE(context, CUDA_ERROR_INVALID_VALUE);
    TRY(resolve_stream(handle, &stream));
    *context = stream->context;
    return CUDA_SUCCESS;
}

CUresult stub_cuStreamGetDevice(CUstream handle, CUdevice *device) {
    CUstream stream;
    REQUIRE(device, CUDA_ERROR_INVALID_VALUE);
    TRY(resolve_stream(handle, &stream));
    *device = stream->context->device->ordinal;
    return CUDA_SUCCESS;
}

CUresult stub_cuStreamGetAttribute(CUstream handle, CUstreamAttrID attribute, CUstreamAttrValue *value) {
    CUstream stream;
    REQUIRE(value && attribute > 0 && attribute < 16, CUDA_ERROR_INVALID_VALUE);
    TRY(resolve_stream(handle, &stream));
    *value = stream->attributes[attribute];
    return CUDA_SUCCESS;
}

CUresult stub_cuStreamSetAttribute(CUstream handle, CUstreamAttrID attribute, const CUstreamAttrValue *value) {
    CUstream stream;
    REQUIRE(value && attribute > 0 && attribute < 16, CUDA_ERROR_INVALID_VALUE);
    TRY(resolve_stream(handle, &stream));
    stream->attributes[attribute] = *value;
    return CUDA_SUCCESS;
}

CUresult stub_cuStreamCopyAttributes(CUstream to_handle, CUstream from_handle) {
    CUstream to, from;
    TRY(resolve_stream(to_handle, &to));
    TRY(resolve_stream(from_handle, &from));
    for (int i = 0; i < 16; i++)
        to->attributes[i] = from->attributes[i];
    return CUDA_SUCCESS;
}

/* ---- Callbacks ---- */

CUresult stub_cuLaunchHostFunc(CUstream handle, CUhostFn function, void *data) {
    CUstream stream;
    REQUIRE(function, CUDA_ERROR_INVALID_VALUE);
    TRY(resolve_stream(handle, &stream));
    if (CAPTURING(stream)) {
        struct node_work work = {.type = CU_GRAPH_NODE_TYPE_HOST, .host = function, .data = data};
        return capture_add(stream, &work, NULL);
    }
    queue_submit(stream, (struct op){.kind = OP_HOST, .run = {function, data}});
    return CUDA_SUCCESS;
}

struct callback {
    CUstream handle;
    CUstreamCallback function;
    void *data;
};

static void call_back(void *argument) {
    struct callback callback = *(struct callback *)argument;
    free(argument);
    callback.function(callback.handle, CUDA_SUCCESS, callback.data);
}

CUresult stub_cuStreamAddCallback(CUstream handle, CUstreamCallback function, void *data, unsigned flags) {
    CUstream stream;
    REQUIRE(function && flags == 0, CUDA_ERROR_INVALID_VALUE);
    TRY(resolve_stream(handle, &stream));
    REQUIRE(!CAPTURING(stream), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    struct callback *callback = malloc(sizeof *callback);
    REQUIRE(callback, CUDA_ERROR_OUT_OF_MEMORY);
    *callback = (struct callback){handle, function, data};
    queue_submit(stream, (struct op){.kind = OP_HOST, .run = {call_back, callback}});
    return CUDA_SUCCESS;
}
