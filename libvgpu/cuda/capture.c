/* SPDX-License-Identifier: Apache-2.0
 *
 * Stream capture: which captures go on. What is captured into a graph runs, and is paid, when that is launched
 * (graph.c).
 */
#include "core/ptrmap.h"
#include "cuda/launch.h"
#include "cuda/poolrecords.h"
#include "cuda/pools.h"

#include <stddef.h>

/* Each stream whose capture goes on is remembered, since not every capture ends as it should: its stream or context may
 * be destroyed, and an end may be asked for where nothing began. A wrong count would end all measuring, or put our
 * events into the tenant's graph. */
static uint64_t capture_key(CUstream stream) {
    return stream == CU_STREAM_PER_THREAD ? (uintptr_t)&vgpu__inside : (uintptr_t)stream; /* each thread has its own */
}

static void capture_ended(CUstream stream) {
    struct vgpu_charge charge;
    if (vgpu_ptrmap_take(capture_key(stream), VGPU_KIND_CAPTURE, &charge))
        vgpu__launch_capture(-1);
}

/* The context whose end ends it. NULL: the driver does not say. */
static CUcontext context_of(CUstream stream) {
    CUresult result;
    CUcontext context = NULL;
    if (stream == NULL || stream == CU_STREAM_LEGACY || stream == CU_STREAM_PER_THREAD)
        VGPU_CALL(result, cuCtxGetCurrent, &context);
    else
        VGPU_CALL(result, cuStreamGetCtx, stream, &context);
    return result == CUDA_SUCCESS ? context : NULL;
}

static void capture_began(CUstream stream, CUcontext context) {
    struct vgpu_charge replaced, charge = {.key = capture_key(stream), .kind = VGPU_KIND_CAPTURE, .owner = context};
    capture_ended(stream);
    if (vgpu_ptrmap_put(&charge, &replaced))
        vgpu__launch_capture(1);
}

#define BEGIN(stream, symbol, ...)                                                                                     \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        bool ours = !VGPU_BY_DRIVER() && vgpu__attached();                                                             \
        CUcontext context = ours ? context_of(stream) : NULL;                                                          \
        VGPU_CALL(result, symbol, __VA_ARGS__);                                                                        \
        if (result == CUDA_SUCCESS && ours)                                                                            \
            capture_began(stream, context);                                                                            \
        return result;                                                                                                 \
    } while (0)

/* Around a call that may end the capture of a stream, which may begin another at once, or its handle be another's: what
 * is known of it is taken away before. */
static bool capture_ending(CUstream stream, struct vgpu_charge *known) {
    return vgpu_ptrmap_take(capture_key(stream), VGPU_KIND_CAPTURE, known);
}

static void capture_goes_on(const struct vgpu_charge *known) {
    struct vgpu_charge replaced = {.kind = 0};
    if (!vgpu_ptrmap_put(known, &replaced) || replaced.kind != 0)
        vgpu__launch_capture(-1);
}

/* An end that fails ends most captures too, but not if the wrong thread asks. No other thread asks for stream-ordered
 * memory meanwhile (pools.c): it would get it from the pool where it was to be a node of the graph. */
#define END(stream, symbol, ...)                                                                                       \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        uint64_t capture;                                                                                              \
        VGPU_ENTER(symbol, __VA_ARGS__);                                                                               \
        if (!vgpu__attached())                                                                                         \
            return VGPU_REAL(symbol)(__VA_ARGS__);                                                                     \
        struct vgpu_charge known;                                                                                      \
        bool ending = capture_ending(stream, &known);                                                                  \
        vgpu__pools_enter();                                                                                           \
        VGPU_CALL(result, symbol, __VA_ARGS__);                                                                        \
        vgpu__pools_leave();                                                                                           \
        if (ending && result != CUDA_SUCCESS && vgpu__launch_captured(stream, &capture))                               \
            capture_goes_on(&known);                                                                                   \
        else if (ending)                                                                                               \
            vgpu__launch_capture(-1);                                                                                  \
        return result;                                                                                                 \
    } while (0)

CUresult cuStreamBeginCapture(CUstream hStream) {
    BEGIN(hStream, cuStreamBeginCapture, hStream);
}

CUresult cuStreamBeginCapture_ptsz(CUstream hStream) {
    BEGIN(vgpu__per_thread(hStream), cuStreamBeginCapture_ptsz, hStream);
}

CUresult cuStreamBeginCapture_v2(CUstream hStream, CUstreamCaptureMode mode) {
    BEGIN(hStream, cuStreamBeginCapture_v2, hStream, mode);
}

CUresult cuStreamBeginCapture_v2_ptsz(CUstream hStream, CUstreamCaptureMode mode) {
    BEGIN(vgpu__per_thread(hStream), cuStreamBeginCapture_v2_ptsz, hStream, mode);
}

CUresult cuStreamBeginCaptureToGraph(CUstream hStream, CUgraph graph, const CUgraphNode *deps,
                                     const CUgraphEdgeData *edges, size_t count, CUstreamCaptureMode mode) {
    BEGIN(hStream, cuStreamBeginCaptureToGraph, hStream, graph, deps, edges, count, mode);
}

CUresult cuStreamBeginCaptureToGraph_ptsz(CUstream hStream, CUgraph graph, const CUgraphNode *deps,
                                          const CUgraphEdgeData *edges, size_t count, CUstreamCaptureMode mode) {
    BEGIN(vgpu__per_thread(hStream), cuStreamBeginCaptureToGraph_ptsz, hStream, graph, deps, edges, count, mode);
}

CUresult cuStreamBeginRecaptureToGraph(CUstream hStream, CUstreamCaptureMode mode, CUgraph graph,
                                       CUgraphRecaptureCallback callback, void *data) {
    BEGIN(hStream, cuStreamBeginRecaptureToGraph, hStream, mode, graph, callback, data);
}

CUresult cuStreamBeginRecaptureToGraph_ptsz(CUstream hStream, CUstreamCaptureMode mode, CUgraph graph,
                                            CUgraphRecaptureCallback callback, void *data) {
    BEGIN(vgpu__per_thread(hStream), cuStreamBeginRecaptureToGraph_ptsz, hStream, mode, graph, callback, data);
}

CUresult cuStreamEndCapture(CUstream hStream, CUgraph *graph) {
    END(hStream, cuStreamEndCapture, hStream, graph);
}

CUresult cuStreamEndCapture_ptsz(CUstream hStream, CUgraph *graph) {
    END(vgpu__per_thread(hStream), cuStreamEndCapture_ptsz, hStream, graph);
}

#define DESTROY(stream, symbol)                                                                                        \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        struct vgpu_charge known;                                                                                      \
        VGPU_ENTER(symbol, stream);                                                                                    \
        if (!vgpu__attached())                                                                                         \
            return VGPU_REAL(symbol)(stream);                                                                          \
        bool ending = capture_ending(stream, &known);                                                                  \
        vgpu__pools_stream_gone(stream);                                                                               \
        VGPU_CALL(result, symbol, stream);                                                                             \
        if (ending && result != CUDA_SUCCESS)                                                                          \
            capture_goes_on(&known);                                                                                   \
        else if (ending)                                                                                               \
            vgpu__launch_capture(-1);                                                                                  \
        return result;                                                                                                 \
    } while (0)

CUresult cuStreamDestroy(CUstream hStream) {
    DESTROY(hStream, cuStreamDestroy);
}

CUresult cuStreamDestroy_v2(CUstream hStream) {
    DESTROY(hStream, cuStreamDestroy_v2);
}
