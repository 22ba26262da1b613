/* SPDX-License-Identifier: Apache-2.0
 *
 * Graphs: a launch of an executable graph is work like a kernel, with an estimate of its own. What is captured into a
 * graph runs, and is paid, when that is launched; so is the memory that its allocation nodes take.
 */
#include "core/ptrmap.h"
#include "cuda/launch.h"
#include "cuda/localmemory.h"
#include "cuda/pools.h"

#include <stddef.h>
#include <stdlib.h>

/* ---- What a graph allocates ---- */

enum { DEEPEST_GRAPH = 64 }; /* graphs in graphs: more, and the launch is refused */

/* Of its own device, wherever it is launched; in the last place what names none. */
enum { ANYWHERE = VGPU_MAX_ORDINALS };
_Static_assert(VGPU_GRAPH_NEEDS == ANYWHERE + 1, "a place for each");

/* What is in a graph. */
struct facts {
    uint64_t bytes[VGPU_GRAPH_NEEDS]; /* of its allocation nodes, by place */
    uint64_t thread_bytes;            /* that a thread of its kernels needs */
};

static CUresult add_graph(CUgraph graph, int depth, struct facts *facts);

static int place_of(const CUmemLocation *location) {
    bool device = location->type == CU_MEM_LOCATION_TYPE_DEVICE && location->id >= 0;
    return device && location->id < VGPU_MAX_ORDINALS ? location->id : ANYWHERE;
}

static CUresult add_node(CUgraphNode node, int depth, struct facts *facts) {
    CUresult result;
    CUgraphNodeType type;
    CUgraph child;
    CUDA_MEM_ALLOC_NODE_PARAMS params = {.bytesize = 0};
    VGPU_CALL(result, cuGraphNodeGetType, node, &type);
    if (result == CUDA_SUCCESS && type == CU_GRAPH_NODE_TYPE_MEM_ALLOC) {
        VGPU_CALL(result, cuGraphMemAllocNodeGetParams, node, &params);
        uint64_t *there = &facts->bytes[place_of(&params.poolProps.location)];
        if (result == CUDA_SUCCESS && __builtin_add_overflow(*there, params.bytesize, there))
            result = CUDA_ERROR_OUT_OF_MEMORY;
    } else if (result == CUDA_SUCCESS && type == CU_GRAPH_NODE_TYPE_KERNEL) {
        uint64_t thread_bytes = vgpu__local_of_node(node);
        facts->thread_bytes = thread_bytes > facts->thread_bytes ? thread_bytes : facts->thread_bytes;
    } else if (result == CUDA_SUCCESS && type == CU_GRAPH_NODE_TYPE_GRAPH) {
        VGPU_CALL(result, cuGraphChildGraphNodeGetGraph, node, &child);
        if (result == CUDA_SUCCESS)
            result = add_graph(child, depth + 1, facts);
    }
    return result;
}

static CUresult add_graph(CUgraph graph, int depth, struct facts *facts) {
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
        result = add_node(nodes[i], depth, facts);
    free(nodes);
    return result;
}

/* Places that the graphs of this process have had bytes in: mostly one. */
static int places;

/* User addresses leave 8 bits. */
static uint64_t key_of(CUgraphExec exec, int place) {
    return (uint64_t)(uintptr_t)exec ^ ((uint64_t)place << 56);
}

/* What is known of an executable graph, while it is destroyed. */
struct known {
    uint32_t count;
    struct vgpu_charge charges[VGPU_GRAPH_NEEDS + 1]; /* by place, and for its threads */
};

static void take_known(CUgraphExec exec, struct known *known) {
    known->count = vgpu_ptrmap_take((uintptr_t)exec, VGPU_KIND_THREAD, &known->charges[0]);
    uint32_t of_threads = known->count;
    for (int place = 0; place < __atomic_load_n(&places, __ATOMIC_RELAXED); place++)
        known->count += vgpu_ptrmap_take(key_of(exec, place), VGPU_KIND_GRAPH, &known->charges[known->count]);
    if (known->count > of_threads)
        vgpu__pools_graph_gone(exec);
}

static void put_known(const struct known *known) {
    struct vgpu_charge replaced;
    for (uint32_t i = 0; i < known->count; i++)
        vgpu_ptrmap_put(&known->charges[i], &replaced);
}

/* Kept beside the executable graph: all allocation nodes together, as much as a launch can need; without a device,
 * since nothing is charged yet. What cannot be told is more than any share has. */
static void remember_bytes(CUgraphExec exec, CUgraph graph) {
    struct facts facts = {.thread_bytes = 0};
    struct vgpu_charge replaced;
    if (add_graph(graph, 0, &facts) != CUDA_SUCCESS)
        facts.bytes[ANYWHERE] = UINT64_MAX;
    vgpu__local_graph(exec, facts.thread_bytes);
    for (int place = 0; place < VGPU_GRAPH_NEEDS; place++) {
        struct vgpu_charge charge = {.key = key_of(exec, place), .kind = VGPU_KIND_GRAPH, .bytes = facts.bytes[place]};
        int seen = __atomic_load_n(&places, __ATOMIC_RELAXED);
        if (charge.bytes > 0) {
            while (seen <= place &&
                   !__atomic_compare_exchange_n(&places, &seen, place + 1, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
                continue;
            vgpu_ptrmap_put(&charge, &replaced);
        } else if (place < seen) {
            vgpu_ptrmap_take(charge.key, VGPU_KIND_GRAPH, &replaced);
        }
    }
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

/* Another kernel in the place of one: a launch is a first one again only where that wants more memory for its threads.
 */
#define SET_KERNEL(exec, kernel, symbol, ...)                                                                          \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        VGPU_ENTER(symbol, __VA_ARGS__);                                                                               \
        VGPU_CALL(result, symbol, __VA_ARGS__);                                                                        \
        if (result == CUDA_SUCCESS && vgpu__attached() && vgpu__local_graph_more(exec, kernel))                        \
            vgpu__launch_renew(vgpu__launch_key(exec, 0));                                                             \
        return result;                                                                                                 \
    } while (0)

CUresult cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v1 *params) {
    SET_KERNEL(exec, params->func, cuGraphExecKernelNodeSetParams, exec, node, params);
}

static void *kernel_of(const CUDA_KERNEL_NODE_PARAMS_v2 *params) {
    return params->kern != NULL ? (void *)params->kern : (void *)params->func;
}

CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                           const CUDA_KERNEL_NODE_PARAMS_v2 *params) {
    SET_KERNEL(exec, kernel_of(params), cuGraphExecKernelNodeSetParams_v2, exec, node, params);
}

CUresult cuGraphExecNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraphNodeParams *params) {
    SET_KERNEL(exec, params->type == CU_GRAPH_NODE_TYPE_KERNEL ? kernel_of(&params->kernel) : NULL,
               cuGraphExecNodeSetParams, exec, node, params);
}

CUresult cuGraphExecDestroy(CUgraphExec exec) {
    CUresult result;
    struct known known;
    VGPU_ENTER(cuGraphExecDestroy, exec);
    if (!vgpu__attached())
        return VGPU_REAL(cuGraphExecDestroy)(exec);
    take_known(exec, &known);
    VGPU_CALL(result, cuGraphExecDestroy, exec);
    if (result != CUDA_SUCCESS)
        put_known(&known);
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
static char launched;

static uint32_t find_needs(const struct graph_launch *g, struct vgpu__graph_need needs[VGPU_GRAPH_NEEDS]) {
    struct vgpu_charge memory;
    uint32_t count = 0;
    CUstream stream = g->per_thread ? vgpu__per_thread(g->stream) : g->stream;
    for (int place = 0; place < __atomic_load_n(&places, __ATOMIC_RELAXED); place++)
        if (vgpu_ptrmap_look(key_of(g->exec, place), VGPU_KIND_GRAPH, &memory))
            needs[count++] = (struct vgpu__graph_need){.exec = g->exec,
                                                       .stream = stream,
                                                       .ordinal = place != ANYWHERE ? place : -1,
                                                       .bytes = memory.bytes,
                                                       .first = memory.owner == NULL};
    return count;
}

static void remember_launch(const struct vgpu__graph_need *need) {
    struct vgpu_charge memory, replaced;
    uint64_t key = key_of(need->exec, need->ordinal >= 0 ? need->ordinal : ANYWHERE);
    if (!need->first || !vgpu_ptrmap_look(key, VGPU_KIND_GRAPH, &memory))
        return;
    memory.owner = &launched;
    vgpu_ptrmap_put(&memory, &replaced);
}

static CUresult forward_with_memory(struct graph_launch *g) {
    struct vgpu__graph_need needs[VGPU_GRAPH_NEEDS];
    uint32_t count = vgpu__attached() ? find_needs(g, needs) : 0;
    if (count == 0)
        return forward(g);
    CUresult result = vgpu__pools_graph_launch(needs, count, forward, g);
    for (uint32_t i = 0; result == CUDA_SUCCESS && !g->upload && i < count; i++)
        remember_launch(&needs[i]);
    return result;
}

static CUresult launch_graph(struct graph_launch g) {
    struct vgpu__launch launch;
    CUstream stream = g.per_thread ? vgpu__per_thread(g.stream) : g.stream;
    CUresult result = vgpu__launch_begin(&launch, vgpu__launch_key(g.exec, 0), stream);
    if (result != CUDA_SUCCESS)
        return result;
    result = forward_with_memory(&g);
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

CUresult cuGraphUpload(CUgraphExec exec, CUstream hStream) {
    VGPU_ENTER(cuGraphUpload, exec, hStream);
    return forward_with_memory(&(struct graph_launch){exec, hStream, false, true});
}

CUresult cuGraphUpload_ptsz(CUgraphExec exec, CUstream hStream) {
    VGPU_ENTER(cuGraphUpload_ptsz, exec, hStream);
    return forward_with_memory(&(struct graph_launch){exec, hStream, true, true});
}
