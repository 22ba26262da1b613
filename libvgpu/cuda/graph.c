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

enum { DEEPEST_GRAPH = 64 }; /* graphs in graphs: more, and the launch is refused */

static CUresult add_graph(CUgraph graph, int depth, uint64_t *bytes);

static CUresult add_node(CUgraphNode node, int depth, uint64_t *bytes) {
    CUresult result;
    CUgraphNodeType type;
    CUgraph child;
    CUDA_MEM_ALLOC_NODE_PARAMS params;
    VGPU_CALL(result, cuGraphNodeGetType, node, &type);
    if (result == CUDA_SUCCESS && type == CU_GRAPH_NODE_TYPE_MEM_ALLOC) {
        VGPU_CALL(result, cuGraphMemAllocNodeGetParams, node, &params);
        if (result == CUDA_SUCCESS && __builtin_add_overflow(*bytes, params.bytesize, bytes))
            result = CUDA_ERROR_OUT_OF_MEMORY;
    } else if (result == CUDA_SUCCESS && type == CU_GRAPH_NODE_TYPE_GRAPH) {
        VGPU_CALL(result, cuGraphChildGraphNodeGetGraph, node, &child);
        if (result == CUDA_SUCCESS)
            result = add_graph(child, depth + 1, bytes);
    }
    return result;
}

static CUresult add_graph(CUgraph graph, int depth, uint64_t *bytes) {
    CUresult result;
    size_t count = 0;
    if (depth > DEEPEST_GRAPH)
        return CUDA_ERROR_NOT_SUPPORTED;
    VGPU_CALL(result, cuGraphGetNodes, graph, NULL, &count);
    if (result != CUDA_SUCCESS || count == 0)
        return result;
    CUgraphNode *nodes = calloc(count, sizeof *nodes);
    if (nodes == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    VGPU_CALL(result, cuGraphGetNodes, graph, nodes, &count);
    for (size_t i = 0; result == CUDA_SUCCESS && i < count; i++)
        result = add_node(nodes[i], depth, bytes);
    free(nodes);
    return result;
}

/* All allocation nodes together: as much as a launch can need. What cannot be told is more than any share has. */
static uint64_t graph_bytes(CUgraph graph) {
    uint64_t bytes = 0;
    return add_graph(graph, 0, &bytes) == CUDA_SUCCESS ? bytes : UINT64_MAX;
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
        CUgraphExec made = NULL;                                                                                       \
        VGPU_CALL(result, symbol, VGPU_OUT(exec, made), graph, __VA_ARGS__);                                           \
        if (result == CUDA_SUCCESS && !VGPU_BY_DRIVER() && vgpu__attached()) {                                         \
            remember_bytes(made, graph);                                                                               \
            vgpu__launch_renew(vgpu__launch_key(made, 0)); /* handles come again */                                    \
        }                                                                                                              \
        if (result == CUDA_SUCCESS)                                                                                    \
            *(exec) = made;                                                                                            \
        return result;                                                                                                 \
    } while (0)

CUresult cuGraphInstantiate(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node, char *log, size_t log_size) {
    INSTANTIATE(exec, graph, cuGraphInstantiate, error_node, log, log_size);
}

CUresult cuGraphInstantiate_v2(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node, char *log, size_t log_size) {
    INSTANTIATE(exec, graph, cuGraphInstantiate_v2, error_node, log, log_size);
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
    INSTANTIATE(exec, graph, cuGraphInstantiateWithFlags, flags);
}

CUresult cuGraphInstantiateWithParams(CUgraphExec *exec, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS *params) {
    INSTANTIATE(exec, graph, cuGraphInstantiateWithParams, params);
}

CUresult cuGraphInstantiateWithParams_ptsz(CUgraphExec *exec, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS *params) {
    INSTANTIATE(exec, graph, cuGraphInstantiateWithParams_ptsz, params);
}

/* The memory stays what the newer graph says; the estimate of the work follows what is measured of it. */
#define UPDATE(exec, graph, symbol, ...)                                                                               \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        VGPU_CALL(result, symbol, __VA_ARGS__);                                                                        \
        if (result == CUDA_SUCCESS && !VGPU_BY_DRIVER() && vgpu__attached()) {                                         \
            remember_bytes(exec, graph);                                                                               \
            vgpu__launch_renew(vgpu__launch_key(exec, 0));                                                             \
        }                                                                                                              \
        return result;                                                                                                 \
    } while (0)

CUresult cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, CUgraphNode *error_node, int *update) {
    UPDATE(exec, graph, cuGraphExecUpdate, exec, graph, error_node, update);
}

CUresult cuGraphExecUpdate_v2(CUgraphExec exec, CUgraph graph, CUgraphExecUpdateResultInfo *info) {
    UPDATE(exec, graph, cuGraphExecUpdate_v2, exec, graph, info);
}

CUresult cuGraphExecDestroy(CUgraphExec exec) {
    CUresult result;
    struct vgpu_charge charge;
    if (!VGPU_BY_DRIVER() && vgpu__attached())
        if (vgpu_ptrmap_take((uintptr_t)exec, VGPU_KIND_GRAPH, &charge))
            vgpu__pools_graph_gone(exec);
    VGPU_CALL(result, cuGraphExecDestroy, exec);
    return result;
}

/* ---- Launching, and uploading: that takes the memory ahead of the first launch ---- */

struct graph_launch {
    CUgraphExec exec;
    CUstream stream;
    bool per_thread;
    bool upload;
};

static CUresult forward(void *argument) {
    const struct graph_launch *g = argument;
    CUresult result;
    if (g->upload && g->per_thread)
        VGPU_CALL(result, cuGraphUpload_ptsz, g->exec, g->stream);
    else if (g->upload)
        VGPU_CALL(result, cuGraphUpload, g->exec, g->stream);
    else if (g->per_thread)
        VGPU_CALL(result, cuGraphLaunch_ptsz, g->exec, g->stream);
    else
        VGPU_CALL(result, cuGraphLaunch, g->exec, g->stream);
    return result;
}

/* The owner of what a graph takes says whether it was launched before; no context has such an address. */
static CUresult launch_with_memory(struct graph_launch *g, struct vgpu_charge *memory) {
    static char launched;
    struct vgpu_charge replaced;
    struct vgpu__graph_need need = {.exec = g->exec,
                                    .stream = g->per_thread ? vgpu__per_thread(g->stream) : g->stream,
                                    .bytes = memory->bytes,
                                    .first = memory->owner == NULL};
    CUresult result = vgpu__pools_graph_launch(&need, forward, g);
    if (result == CUDA_SUCCESS && memory->owner == NULL && !g->upload) {
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
    if (vgpu__attached() && vgpu_ptrmap_look((uintptr_t)g.exec, VGPU_KIND_GRAPH, &memory))
        result = launch_with_memory(&g, &memory);
    else
        result = forward(&g);
    vgpu__launch_end(&launch, result);
    return result;
}

CUresult cuGraphLaunch(CUgraphExec exec, CUstream hStream) {
    VGPU_ENTER(cuGraphLaunch, exec, hStream);
    return launch_graph((struct graph_launch){exec, hStream, false, false});
}

CUresult cuGraphLaunch_ptsz(CUgraphExec exec, CUstream hStream) {
    VGPU_ENTER(cuGraphLaunch_ptsz, exec, hStream);
    return launch_graph((struct graph_launch){exec, hStream, true, false});
}

static CUresult upload_graph(struct graph_launch g) {
    struct vgpu_charge memory;
    if (vgpu__attached() && vgpu_ptrmap_look((uintptr_t)g.exec, VGPU_KIND_GRAPH, &memory))
        return launch_with_memory(&g, &memory);
    return forward(&g);
}

CUresult cuGraphUpload(CUgraphExec exec, CUstream hStream) {
    VGPU_ENTER(cuGraphUpload, exec, hStream);
    return upload_graph((struct graph_launch){exec, hStream, false, true});
}

CUresult cuGraphUpload_ptsz(CUgraphExec exec, CUstream hStream) {
    VGPU_ENTER(cuGraphUpload_ptsz, exec, hStream);
    return upload_graph((struct graph_launch){exec, hStream, true, true});
}
