/* SPDX-License-Identifier: Apache-2.0
 *
 * Stream capture: while a stream is captured, what is submitted to it becomes nodes of a graph. Other streams join by
 * waiting for an event that was recorded in the capture, and have to be joined back before it ends.
 */
#include "work.h"

#include <stdlib.h>

static unsigned long long last_capture_id;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* captures end in one thread while others add to them */

bool capture_hold(CUstream stream) {
    if (!CAPTURING(stream))
        return false;
    pthread_mutex_lock(&lock);
    if (CAPTURING(stream))
        return true;
    pthread_mutex_unlock(&lock);
    return false;
}

void capture_let_go(void) {
    pthread_mutex_unlock(&lock);
}

/* ---- What may not be asked meanwhile ---- */

static _Thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    CUstream stream;
    pthread_t thread;
    CUstreamCaptureMode mode;
} open_captures[16];
static int open_count;

static void note_open(CUstream stream, CUstreamCaptureMode mode) {
    pthread_mutex_lock(&open_lock);
    if (open_count < 16) {
        open_captures[open_count].stream = stream;
        open_captures[open_count].thread = pthread_self();
        open_captures[open_count].mode = mode;
        __atomic_store_n(&open_count, open_count + 1, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&open_lock);
}

static void forget_open(CUstream stream) {
    pthread_mutex_lock(&open_lock);
    for (int i = 0; i < open_count; i++) {
        if (open_captures[i].stream != stream)
            continue;
        open_captures[i] = open_captures[open_count - 1];
        __atomic_store_n(&open_count, open_count - 1, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&open_lock);
}

CUresult capture_forbids(void) {
    CUresult result = CUDA_SUCCESS;
    if (__atomic_load_n(&open_count, __ATOMIC_ACQUIRE) == 0 || thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&open_lock);
    for (int i = 0; i < open_count; i++) {
        bool here = pthread_equal(open_captures[i].thread, pthread_self()),
             elsewhere = !here && thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL &&
                         open_captures[i].mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
        if (!elsewhere && (!here || open_captures[i].mode == CU_STREAM_CAPTURE_MODE_RELAXED))
            continue;
        open_captures[i].stream->capture_failed = true;
        result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    pthread_mutex_unlock(&open_lock);
    return result;
}

static CUresult set_deps(CUstream stream, const CUgraphNode *deps, size_t count) {
    CUgraphNode *copy = NULL;
    if (count > 0) {
        copy = malloc(count * sizeof *copy);
        REQUIRE(copy, CUDA_ERROR_OUT_OF_MEMORY);
        for (size_t i = 0; i < count; i++)
            copy[i] = deps[i];
    }
    free(stream->capture_deps);
    stream->capture_deps = copy;
    stream->capture_dep_count = count;
    return CUDA_SUCCESS;
}

static CUresult add_dep(CUstream stream, CUgraphNode node) {
    for (size_t i = 0; i < stream->capture_dep_count; i++)
        if (stream->capture_deps[i] == node)
            return CUDA_SUCCESS;
    CUgraphNode *more = realloc(stream->capture_deps, (stream->capture_dep_count + 1) * sizeof *more);
    REQUIRE(more, CUDA_ERROR_OUT_OF_MEMORY);
    more[stream->capture_dep_count++] = node;
    stream->capture_deps = more;
    return CUDA_SUCCESS;
}

static void leave(CUstream stream) {
    forget_open(stream);
    set_deps(stream, NULL, 0);
    __atomic_store_n(&stream->capture, NULL, __ATOMIC_RELEASE);
    stream->capture_origin = stream->capture_borrowed = stream->capture_failed = false;
}

/* Its streams cannot go on without the one that it began on. */
void capture_drop(CUstream stream) {
    CUgraph graph = stream->capture;
    bool origin = graph && stream->capture_origin, own = origin && !stream->capture_borrowed;
    for (CUstream other = stream->context->streams; origin && other; other = other->next)
        if (__atomic_load_n(&other->capture, __ATOMIC_ACQUIRE) == graph)
            leave(other);
    leave(stream);
    if (own)
        stub_cuGraphDestroy(graph);
}

/* ---- Work becomes nodes ---- */

static CUresult advance(CUstream stream, CUresult result, CUgraphNode node) {
    if (result != CUDA_SUCCESS) {
        stream->capture_failed = true;
        return result;
    }
    return set_deps(stream, &node, 1);
}

CUresult capture_add(CUstream stream, const struct node_work *work, CUgraphNode *out) {
    CUgraphNode node = NULL;
    REQUIRE(!stream->capture_failed, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    CUresult result = graph_add(stream->capture, stream->capture_deps, stream->capture_dep_count, work, &node);
    if (out)
        *out = node;
    return advance(stream, result, node);
}

CUresult capture_allocate(CUstream stream, size_t bytes, CUdeviceptr *dptr) {
    CUgraphNode node = NULL;
    CUDA_MEM_ALLOC_NODE_PARAMS params = {
        .poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                      .location = {CU_MEM_LOCATION_TYPE_DEVICE, stream->context->device->ordinal}},
        .bytesize = bytes};
    CUresult result = graph_add_allocation(stream->capture, stream->capture_deps, stream->capture_dep_count,
                                           stream->context, &params, &node);
    *dptr = params.dptr;
    return advance(stream, result, node);
}

CUresult capture_free(CUstream stream, CUdeviceptr dptr) {
    CUgraphNode node = NULL;
    CUresult result = graph_add_free(stream->capture, stream->capture_deps, stream->capture_dep_count, dptr, &node);
    return advance(stream, result, node);
}

CUresult capture_record(CUstream stream, CUevent event, unsigned flags) {
    if (flags & CU_EVENT_RECORD_EXTERNAL) {
        struct node_work work = {.type = CU_GRAPH_NODE_TYPE_EVENT_RECORD, .event = event};
        return capture_add(stream, &work, NULL);
    }
    if (stream->capture_dep_count > 1) { /* one node stands for all that came before */
        struct node_work work = {.type = CU_GRAPH_NODE_TYPE_EMPTY};
        TRY(capture_add(stream, &work, NULL));
    }
    event->capture = stream->capture;
    event->capture_id = stream->capture_id;
    event->capture_node = stream->capture_dep_count ? stream->capture_deps[0] : NULL;
    return CUDA_SUCCESS;
}

CUresult capture_wait(CUstream stream, CUevent event, unsigned flags) {
    if (CAPTURING(stream) && (flags & 1)) { /* CU_EVENT_WAIT_EXTERNAL */
        struct node_work work = {.type = CU_GRAPH_NODE_TYPE_WAIT_EVENT, .event = event};
        return capture_add(stream, &work, NULL);
    }
    REQUIRE(event->capture, CUDA_ERROR_STREAM_CAPTURE_ISOLATION); /* recorded outside */
    if (!CAPTURING(stream)) {
        REQUIRE(!stream->legacy, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
        __atomic_store_n(&stream->capture, event->capture, __ATOMIC_RELEASE);
        stream->capture_id = event->capture_id;
    }
    REQUIRE(stream->capture_id == event->capture_id,
            CUDA_ERROR_STREAM_CAPTURE_MERGE); /* a graph's handle comes again */
    return event->capture_node ? add_dep(stream, event->capture_node) : CUDA_SUCCESS;
}

/* ---- Beginning and ending ---- */

CUresult stub_cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
    CUstream stream;
    TRY(resolve_stream(handle, &stream));
    REQUIRE(mode >= 0 && mode <= CU_STREAM_CAPTURE_MODE_RELAXED, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(!stream->legacy, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    REQUIRE(!CAPTURING(stream), CUDA_ERROR_ILLEGAL_STATE);
    CUgraph graph = graph_make();
    REQUIRE(graph, CUDA_ERROR_OUT_OF_MEMORY);
    stream->capture_id = __atomic_add_fetch(&last_capture_id, 1, __ATOMIC_RELAXED);
    stream->capture_origin = true;
    note_open(stream, mode);
    __atomic_store_n(&stream->capture, graph, __ATOMIC_RELEASE);
    return CUDA_SUCCESS;
}

/* Into a graph that there is already, behind some of its nodes. That graph stays the caller's. */
CUresult stub_cuStreamBeginCaptureToGraph(CUstream handle, CUgraph graph, const CUgraphNode *deps,
                                          const CUgraphEdgeData *edges, size_t count, CUstreamCaptureMode mode) {
    CUstream stream;
    (void)edges;
    TRY(resolve_stream(handle, &stream));
    REQUIRE(handle_lives(graph) && (deps || !count) && mode >= 0 && mode <= CU_STREAM_CAPTURE_MODE_RELAXED,
            CUDA_ERROR_INVALID_VALUE);
    REQUIRE(!stream->legacy, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    REQUIRE(!CAPTURING(stream), CUDA_ERROR_ILLEGAL_STATE);
    TRY(set_deps(stream, deps, count));
    stream->capture_id = __atomic_add_fetch(&last_capture_id, 1, __ATOMIC_RELAXED);
    stream->capture_origin = true;
    stream->capture_borrowed = true;
    note_open(stream, mode);
    __atomic_store_n(&stream->capture, graph, __ATOMIC_RELEASE);
    return CUDA_SUCCESS;
}

CUresult stub_cuStreamBeginRecaptureToGraph(CUstream handle, CUstreamCaptureMode mode, CUgraph graph,
                                            CUgraphRecaptureCallback callback, void *data) {
    (void)handle, (void)mode, (void)graph, (void)callback, (void)data;
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult stub_cuStreamBeginCaptureToCig(CUstream handle, CUstreamCigCaptureParams *params) {
    (void)handle, (void)params;
    return CUDA_SUCCESS; /* as if there were a graphics API: an application must not get here */
}

CUresult stub_cuStreamBeginCapture(CUstream handle) {
    return stub_cuStreamBeginCapture_v2(handle, CU_STREAM_CAPTURE_MODE_GLOBAL);
}

/* Does anything come behind this node? */
static bool has_successor(CUgraph graph, CUgraphNode node) {
    for (CUgraphNode at = graph->first; at; at = at->next)
        for (size_t i = 0; i < at->dep_count; i++)
            if (at->deps[i] == node)
                return true;
    return false;
}

/* Did another stream's last work flow back into the origin? */
static bool joined(CUstream origin, CUstream other) {
    for (size_t i = 0; i < other->capture_dep_count; i++) {
        bool found = has_successor(origin->capture, other->capture_deps[i]);
        for (size_t j = 0; j < origin->capture_dep_count && !found; j++)
            found = origin->capture_deps[j] == other->capture_deps[i];
        if (!found)
            return false;
    }
    return true;
}

static CUresult end_capture(CUstream stream, CUgraph *graph) {
    REQUIRE(stream->capture_origin, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    CUresult result = stream->capture_failed ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
    queue_hold(stream->context);
    for (CUstream other = stream->context->streams; other; other = other->next) {
        if (other == stream || __atomic_load_n(&other->capture, __ATOMIC_ACQUIRE) != stream->capture)
            continue;
        if (other->capture_failed)
            result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        else if (result == CUDA_SUCCESS && !joined(stream, other))
            result = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
        leave(other);
    }
    queue_let_go(stream->context);
    bool borrowed = stream->capture_borrowed;
    *graph = stream->capture;
    leave(stream);
    if (result != CUDA_SUCCESS) {
        if (!borrowed)
            stub_cuGraphDestroy(*graph);
        *graph = NULL;
    }
    return result;
}

CUresult stub_cuStreamEndCapture(CUstream handle, CUgraph *graph) {
    CUstream stream;
    TRY(resolve_stream(handle, &stream));
    REQUIRE(graph, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(capture_hold(stream), CUDA_ERROR_ILLEGAL_STATE);
    CUresult result = end_capture(stream, graph);
    capture_let_go();
    return result;
}

/* ---- Asking ---- */

CUresult stub_cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus *status) {
    CUstream stream;
    REQUIRE(status, CUDA_ERROR_INVALID_VALUE);
    TRY(resolve_stream(handle, &stream));
    *status = !CAPTURING(stream)       ? CU_STREAM_CAPTURE_STATUS_NONE
              : stream->capture_failed ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                       : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return CUDA_SUCCESS;
}

CUresult stub_cuStreamGetCaptureInfo_v2(CUstream handle, CUstreamCaptureStatus *status, unsigned long long *id,
                                        CUgraph *graph, const CUgraphNode **deps, size_t *count) {
    CUstream stream;
    TRY(stub_cuStreamIsCapturing(handle, status));
    TRY(resolve_stream(handle, &stream));
    if (*status != CU_STREAM_CAPTURE_STATUS_ACTIVE)
        return CUDA_SUCCESS;
    if (id)
        *id = stream->capture_id;
    if (graph)
        *graph = stream->capture;
    if (deps)
        *deps = stream->capture_deps;
    if (count)
        *count = stream->capture_dep_count;
    return CUDA_SUCCESS;
}

CUresult stub_cuStreamGetCaptureInfo(CUstream handle, CUstreamCaptureStatus *status, unsigned long long *id) {
    return stub_cuStreamGetCaptureInfo_v2(handle, status, id, NULL, NULL, NULL);
}

CUresult stub_cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    REQUIRE(mode && *mode >= 0 && *mode <= CU_STREAM_CAPTURE_MODE_RELAXED, CUDA_ERROR_INVALID_VALUE);
    CUstreamCaptureMode before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}
