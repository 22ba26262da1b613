/* SPDX-License-Identifier: Apache-2.0
 *
 * Graphs: a launch of an executable graph is work like a kernel, with an estimate of its own. What is captured into a
 * graph runs, and is paid, when that is launched; so is the memory that its allocation nodes take.
 */
#include "core/ptrmap.h"
#include "cuda/launch.h"
#include "cuda/pools.h"

#include <stddef.h>
#include <stdlib.h>

/* ---- What a graph allocates ---- */

static uint64_t node_bytes(CUgraphNode node) {
    CUresult result;
    CUgraphNodeType type;
    CUDA_MEM_ALLOC_NODE_PARAMS params;
    VGPU_CALL(result, cuGraphNodeGetType, node, &type);
    if (result != CUDA_SUCCESS || type != CU_GRAPH_NODE_TYPE_MEM_ALLOC)
        return 0;
    VGPU_CALL(result, cuGraphMemAllocNodeGetParams, node, &params);
    return result == CUDA_SUCCESS ? params.bytesize : 0;
}

/* Of all its allocation nodes together: as much as a launch can need. */
static uint64_t graph_bytes(CUgraph graph) {
    CUresult result;
    size_t count = 0;
    uint64_t bytes = 0;
    VGPU_CALL(result, cuGraphGetNodes, graph, NULL, &count);
    CUgraphNode *nodes = result == CUDA_SUCCESS && count > 0 ? calloc(count, sizeof *nodes) : NULL;
    if (nodes == NULL)
        return 0;
    VGPU_CALL(result, cuGraphGetNodes, graph, nodes, &count);
    for (size_t i = 0; result == CUDA_SUCCESS && i < count; i++)
        bytes += node_bytes(nodes[i]);
    free(nodes);
    return bytes;
}

/* Kept beside the executable graph; without a device, since nothing is charged yet. */
static void remember_bytes(CUgraphExec exec, CUgraph graph) {
    struct vgpu_charge replaced,
        charge = {.key = (uintptr_t)exec, .kind = VGPU_KIND_GRAPH, .bytes = graph_bytes(graph)};
    if (charge.bytes > 0)
        vgpu_ptrmap_put(&charge, &replaced);
    else
        vgpu_ptrmap_take(charge.key, VGPU_KIND_GRAPH, &replaced);
}

#define INSTANTIATE(exec, graph, symbol, ...)                                                                          \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        VGPU_CALL(result, symbol, __VA_ARGS__);                                                                        \
        if (result == CUDA_SUCCESS && vgpu__inside == 0) {                                                             \
            remember_bytes(*(exec), graph);                                                                            \
            vgpu__launch_renew(vgpu__launch_key(*(exec), 0)); /* handles come again */                                 \
        }                                                                                                              \
        return result;                                                                                                 \
    } while (0)

CUresult cuGraphInstantiate(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node, char *log, size_t log_size) {
    INSTANTIATE(exec, graph, cuGraphInstantiate, exec, graph, error_node, log, log_size);
}

CUresult cuGraphInstantiate_v2(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node, char *log, size_t log_size) {
    INSTANTIATE(exec, graph, cuGraphInstantiate_v2, exec, graph, error_node, log, log_size);
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
    INSTANTIATE(exec, graph, cuGraphInstantiateWithFlags, exec, graph, flags);
}

CUresult cuGraphInstantiateWithParams(CUgraphExec *exec, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS *params) {
    INSTANTIATE(exec, graph, cuGraphInstantiateWithParams, exec, graph, params);
}

CUresult cuGraphInstantiateWithParams_ptsz(CUgraphExec *exec, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS *params) {
    INSTANTIATE(exec, graph, cuGraphInstantiateWithParams_ptsz, exec, graph, params);
}

CUresult cuGraphExecDestroy(CUgraphExec exec) {
    CUresult result;
    struct vgpu_charge charge;
    if (vgpu__inside == 0)
        vgpu_ptrmap_take((uintptr_t)exec, VGPU_KIND_GRAPH, &charge);
    VGPU_CALL(result, cuGraphExecDestroy, exec);
    return result;
}

/* ---- Launching ---- */

struct graph_launch {
    CUgraphExec exec;
    CUstream stream;
    bool per_thread;
};

static CUresult forward(void *argument) {
    const struct graph_launch *g = argument;
    CUresult result;
    if (g->per_thread)
        VGPU_CALL(result, cuGraphLaunch_ptsz, g->exec, g->stream);
    else
        VGPU_CALL(result, cuGraphLaunch, g->exec, g->stream);
    return result;
}

/* The owner of what a graph takes says whether it was launched before; no context has such an address. */
static CUresult launch_with_memory(struct graph_launch *g, struct vgpu_charge *memory) {
    static char launched;
    struct vgpu_charge replaced;
    CUresult result = vgpu__pools_graph_launch(memory->bytes, memory->owner == NULL, forward, g);
    if (result == CUDA_SUCCESS && memory->owner == NULL) {
        memory->owner = &launched;
        vgpu_ptrmap_put(memory, &replaced);
    }
    return result;
}

static CUresult launch_graph(struct graph_launch g) {
    struct vgpu__launch launch;
    struct vgpu_charge memory;
    CUstream stream = g.per_thread ? vgpu__per_thread(g.stream) : g.stream;
    CUresult result = vgpu__launch_begin(&launch, vgpu__launch_key(g.exec, 0), stream);
    if (result != CUDA_SUCCESS)
        return result;
    if (vgpu__inside == 0 && vgpu_ptrmap_look((uintptr_t)g.exec, VGPU_KIND_GRAPH, &memory))
        result = launch_with_memory(&g, &memory);
    else
        result = forward(&g);
    vgpu__launch_end(&launch, result);
    return result;
}

CUresult cuGraphLaunch(CUgraphExec exec, CUstream hStream) {
    return launch_graph((struct graph_launch){exec, hStream, false});
}

CUresult cuGraphLaunch_ptsz(CUgraphExec exec, CUstream hStream) {
    return launch_graph((struct graph_launch){exec, hStream, true});
}

/* ---- Capture ---- */

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

static void capture_began(CUstream stream) {
    CUresult result;
    CUcontext context = NULL;
    VGPU_CALL(result, cuCtxGetCurrent, &context);
    struct vgpu_charge replaced, charge = {.key = capture_key(stream), .kind = VGPU_KIND_CAPTURE, .owner = context};
    capture_ended(stream);
    if (result == CUDA_SUCCESS && vgpu_ptrmap_put(&charge, &replaced))
        vgpu__launch_capture(1);
}

#define BEGIN(stream, symbol, ...)                                                                                     \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        VGPU_CALL(result, symbol, __VA_ARGS__);                                                                        \
        if (vgpu__inside == 0 && result == CUDA_SUCCESS)                                                               \
            capture_began(stream);                                                                                     \
        return result;                                                                                                 \
    } while (0)

/* An end that fails ends most captures too, but not if the wrong thread asks. */
#define END(stream, symbol, ...)                                                                                       \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        VGPU_CALL(result, symbol, __VA_ARGS__);                                                                        \
        if (vgpu__inside == 0 && (result == CUDA_SUCCESS || !vgpu__launch_captured(stream)))                           \
            capture_ended(stream);                                                                                     \
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

CUresult cuStreamEndCapture(CUstream hStream, CUgraph *graph) {
    END(hStream, cuStreamEndCapture, hStream, graph);
}

CUresult cuStreamEndCapture_ptsz(CUstream hStream, CUgraph *graph) {
    END(vgpu__per_thread(hStream), cuStreamEndCapture_ptsz, hStream, graph);
}

#define DESTROY(stream, symbol)                                                                                        \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        VGPU_CALL(result, symbol, stream);                                                                             \
        if (vgpu__inside == 0 && result == CUDA_SUCCESS)                                                               \
            capture_ended(stream);                                                                                     \
        return result;                                                                                                 \
    } while (0)

CUresult cuStreamDestroy(CUstream hStream) {
    DESTROY(hStream, cuStreamDestroy);
}

CUresult cuStreamDestroy_v2(CUstream hStream) {
    DESTROY(hStream, cuStreamDestroy_v2);
}
