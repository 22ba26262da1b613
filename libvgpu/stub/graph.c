/* SPDX-License-Identifier: Apache-2.0 */
/* Graphs: building them, and looking at them. graphexec.c runs them. */
#include "driver.h"

#include <stdlib.h>
#include <string.h>

/* ---- Building ---- */

CUgraph graph_make(void) {
    return calloc(1, sizeof(struct CUgraph_st));
}

void work_free(struct node_work *work) {
    if (work->data_size)
        free(work->data);
}

CUresult work_copy(struct node_work *copy, const struct node_work *work) {
    *copy = *work;
    if (!work->data_size)
        return CUDA_SUCCESS;
    copy->data = malloc(work->data_size);
    REQUIRE(copy->data, CUDA_ERROR_OUT_OF_MEMORY);
    memcpy(copy->data, work->data, work->data_size);
    return CUDA_SUCCESS;
}

static CUresult add_deps(CUgraphNode node, const CUgraphNode *deps, size_t count) {
    if (count == 0)
        return CUDA_SUCCESS;
    CUgraphNode *more = realloc(node->deps, (node->dep_count + count) * sizeof *more);
    REQUIRE(more, CUDA_ERROR_OUT_OF_MEMORY);
    memcpy(more + node->dep_count, deps, count * sizeof *more);
    node->deps = more;
    node->dep_count += count;
    return CUDA_SUCCESS;
}

static void node_free(CUgraphNode node) {
    work_free(&node->work);
    free(node->deps);
    free(node);
}

CUresult graph_add(CUgraph graph, const CUgraphNode *deps, size_t count, const struct node_work *work,
                   CUgraphNode *out) {
    CUresult result = graph && (deps || !count) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count && result == CUDA_SUCCESS; i++)
        result = deps[i] && deps[i]->graph == graph ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    CUgraphNode node = result == CUDA_SUCCESS ? calloc(1, sizeof *node) : NULL;
    if (!node) {
        struct node_work owned = *work;
        work_free(&owned);
        return result == CUDA_SUCCESS ? CUDA_ERROR_OUT_OF_MEMORY : result;
    }
    node->graph = graph;
    node->work = *work;
    result = add_deps(node, deps, count);
    if (result != CUDA_SUCCESS) {
        node_free(node);
        return result;
    }
    if (graph->last)
        graph->last->next = node;
    else
        graph->first = node;
    graph->last = node;
    graph->count++;
    if (out)
        *out = node;
    return CUDA_SUCCESS;
}

CUresult stub_cuGraphCreate(CUgraph *graph, unsigned flags) {
    REQUIRE(driver.ready, CUDA_ERROR_NOT_INITIALIZED);
    REQUIRE(graph && flags == 0, CUDA_ERROR_INVALID_VALUE);
    *graph = graph_make();
    return *graph ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult stub_cuGraphDestroy(CUgraph graph) {
    REQUIRE(graph, CUDA_ERROR_INVALID_VALUE);
    for (CUgraphNode node = graph->first; node;) {
        CUgraphNode next = node->next;
        if (node->work.type == CU_GRAPH_NODE_TYPE_GRAPH)
            stub_cuGraphDestroy(node->work.child);
        node_free(node);
        node = next;
    }
    free(graph);
    return CUDA_SUCCESS;
}

static CUgraphNode node_at(CUgraph graph, size_t index) {
    CUgraphNode node = graph->first;
    while (index-- > 0)
        node = node->next;
    return node;
}

static size_t index_of(CUgraphNode wanted) {
    size_t index = 0;
    for (CUgraphNode node = wanted->graph->first; node != wanted; node = node->next)
        index++;
    return index;
}

static bool has_memory_nodes(CUgraph graph) {
    for (CUgraphNode node = graph->first; node; node = node->next)
        if (node->work.type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || node->work.type == CU_GRAPH_NODE_TYPE_MEM_FREE ||
            (node->work.type == CU_GRAPH_NODE_TYPE_GRAPH && has_memory_nodes(node->work.child)))
            return true;
    return false;
}

/* Graphs with memory nodes cannot be cloned (CUDA driver API, cuGraphAddMemAllocNode: restrictions). */
CUresult stub_cuGraphClone(CUgraph *out, CUgraph graph) {
    REQUIRE(out && graph, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(!has_memory_nodes(graph), CUDA_ERROR_NOT_SUPPORTED);
    CUgraph clone = graph_make();
    REQUIRE(clone, CUDA_ERROR_OUT_OF_MEMORY);
    CUresult result = CUDA_SUCCESS;
    for (CUgraphNode node = graph->first; node && result == CUDA_SUCCESS; node = node->next) {
        struct node_work work;
        result = work_copy(&work, &node->work);
        if (result == CUDA_SUCCESS && work.type == CU_GRAPH_NODE_TYPE_GRAPH)
            result = stub_cuGraphClone(&work.child, node->work.child);
        if (result == CUDA_SUCCESS)
            result = graph_add(clone, NULL, 0, &work, NULL);
    }
    CUgraphNode copy = clone->first;
    for (CUgraphNode node = graph->first; node && result == CUDA_SUCCESS; node = node->next, copy = copy->next) {
        for (size_t i = 0; i < node->dep_count && result == CUDA_SUCCESS; i++) {
            CUgraphNode dep = node_at(clone, index_of(node->deps[i]));
            result = add_deps(copy, &dep, 1);
        }
    }
    if (result != CUDA_SUCCESS) {
        stub_cuGraphDestroy(clone);
        return result;
    }
    *out = clone;
    return CUDA_SUCCESS;
}

/* ---- Nodes ---- */

CUresult kernel_work(const CUDA_KERNEL_NODE_PARAMS_v2 *params, struct node_work *work) {
    const void *handle = params->func ? (const void *)params->func : (const void *)params->kern;
    *work = (struct node_work){.type = CU_GRAPH_NODE_TYPE_KERNEL,
                               .kernel = {.function = function_of(handle),
                                          .grid = {params->gridDimX, params->gridDimY, params->gridDimZ},
                                          .block = {params->blockDimX, params->blockDimY, params->blockDimZ},
                                          .shared_bytes = params->sharedMemBytes}};
    return kernel_prepare(&work->kernel, params->kernelParams, params->extra);
}

CUresult stub_cuGraphAddKernelNode_v2(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t count,
                                      const CUDA_KERNEL_NODE_PARAMS_v2 *params) {
    struct node_work work;
    REQUIRE(node && params, CUDA_ERROR_INVALID_VALUE);
    TRY(kernel_work(params, &work));
    return graph_add(graph, deps, count, &work, node);
}

CUDA_KERNEL_NODE_PARAMS_v2 newer_params(const CUDA_KERNEL_NODE_PARAMS_v1 *params) {
    CUDA_KERNEL_NODE_PARAMS_v2 newer = {0};
    memcpy(&newer, params, sizeof *params); /* it begins with the older one */
    return newer;
}

CUresult stub_cuGraphAddKernelNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t count,
                                   const CUDA_KERNEL_NODE_PARAMS_v1 *params) {
    REQUIRE(params, CUDA_ERROR_INVALID_VALUE);
    CUDA_KERNEL_NODE_PARAMS_v2 newer = newer_params(params);
    return stub_cuGraphAddKernelNode_v2(node, graph, deps, count, &newer);
}

CUresult stub_cuGraphKernelNodeGetParams_v2(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v2 *params) {
    REQUIRE(node && params && node->work.type == CU_GRAPH_NODE_TYPE_KERNEL, CUDA_ERROR_INVALID_VALUE);
    const struct kernel *kernel = &node->work.kernel;
    *params = (CUDA_KERNEL_NODE_PARAMS_v2){.func = kernel->function,
                                           .gridDimX = kernel->grid[0],
                                           .gridDimY = kernel->grid[1],
                                           .gridDimZ = kernel->grid[2],
                                           .blockDimX = kernel->block[0],
                                           .blockDimY = kernel->block[1],
                                           .blockDimZ = kernel->block[2],
                                           .sharedMemBytes = kernel->shared_bytes};
    return CUDA_SUCCESS;
}

CUresult stub_cuGraphKernelNodeGetParams(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v1 *params) {
    CUDA_KERNEL_NODE_PARAMS_v2 newer;
    REQUIRE(params, CUDA_ERROR_INVALID_VALUE);
    TRY(stub_cuGraphKernelNodeGetParams_v2(node, &newer));
    memcpy(params, &newer, sizeof *params);
    return CUDA_SUCCESS;
}

CUresult stub_cuGraphKernelNodeSetParams_v2(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v2 *params) {
    REQUIRE(node && params && node->work.type == CU_GRAPH_NODE_TYPE_KERNEL, CUDA_ERROR_INVALID_VALUE);
    return kernel_work(params, &node->work);
}

CUresult stub_cuGraphKernelNodeSetParams(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v1 *params) {
    REQUIRE(params, CUDA_ERROR_INVALID_VALUE);
    CUDA_KERNEL_NODE_PARAMS_v2 newer = newer_params(params);
    return stub_cuGraphKernelNodeSetParams_v2(node, &newer);
}

CUresult stub_cuGraphAddMemcpyNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t count,
                                   const CUDA_MEMCPY3D *copy, CUcontext context) {
    struct node_work work = {0};
    REQUIRE(node && context, CUDA_ERROR_INVALID_VALUE);
    TRY(copy_make(copy, &work));
    return graph_add(graph, deps, count, &work, node);
}

CUresult stub_cuGraphAddMemsetNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t count,
                                   const CUDA_MEMSET_NODE_PARAMS *params, CUcontext context) {
    struct node_work work = {0};
    REQUIRE(node && context, CUDA_ERROR_INVALID_VALUE);
    TRY(fill_make(params, &work));
    return graph_add(graph, deps, count, &work, node);
}

CUresult stub_cuGraphAddHostNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t count,
                                 const CUDA_HOST_NODE_PARAMS *params) {
    REQUIRE(node && params && params->fn, CUDA_ERROR_INVALID_VALUE);
    struct node_work work = {.type = CU_GRAPH_NODE_TYPE_HOST, .host = params->fn, .data = params->userData};
    return graph_add(graph, deps, count, &work, node);
}

CUresult stub_cuGraphAddEmptyNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t count) {
    struct node_work work = {.type = CU_GRAPH_NODE_TYPE_EMPTY};
    REQUIRE(node, CUDA_ERROR_INVALID_VALUE);
    return graph_add(graph, deps, count, &work, node);
}

CUresult stub_cuGraphAddChildGraphNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t count,
                                       CUgraph child) {
    struct node_work work = {.type = CU_GRAPH_NODE_TYPE_GRAPH};
    REQUIRE(node && child, CUDA_ERROR_INVALID_VALUE);
    TRY(stub_cuGraphClone(&work.child, child));
    CUresult result = graph_add(graph, deps, count, &work, node);
    if (result != CUDA_SUCCESS)
        stub_cuGraphDestroy(work.child);
    return result;
}

/* The child belongs to the parent from now on: the only way in for a graph with memory nodes. */
static CUresult add_moved_child(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t count,
                                CUgraph child) {
    struct node_work work = {.type = CU_GRAPH_NODE_TYPE_GRAPH, .child = child};
    REQUIRE(node && child, CUDA_ERROR_INVALID_VALUE);
    return graph_add(graph, deps, count, &work, node);
}

CUresult stub_cuGraphChildGraphNodeGetGraph(CUgraphNode node, CUgraph *graph) {
    REQUIRE(node && graph && node->work.type == CU_GRAPH_NODE_TYPE_GRAPH, CUDA_ERROR_INVALID_VALUE);
    *graph = node->work.child;
    return CUDA_SUCCESS;
}

static CUresult add_event_node(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t count, CUevent event,
                               CUgraphNodeType type) {
    struct node_work work = {.type = type, .event = event};
    REQUIRE(node && event, CUDA_ERROR_INVALID_VALUE);
    return graph_add(graph, deps, count, &work, node);
}

CUresult stub_cuGraphAddEventRecordNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t count,
                                        CUevent event) {
    return add_event_node(node, graph, deps, count, event, CU_GRAPH_NODE_TYPE_EVENT_RECORD);
}

CUresult stub_cuGraphAddEventWaitNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t count,
                                      CUevent event) {
    return add_event_node(node, graph, deps, count, event, CU_GRAPH_NODE_TYPE_WAIT_EVENT);
}

CUresult graph_add_allocation(CUgraph graph, const CUgraphNode *deps, size_t count, CUcontext context,
                              CUDA_MEM_ALLOC_NODE_PARAMS *params, CUgraphNode *node) {
    struct node_work work = {.type = CU_GRAPH_NODE_TYPE_MEM_ALLOC};
    REQUIRE(params->bytesize && params->poolProps.allocType == CU_MEM_ALLOCATION_TYPE_PINNED, CUDA_ERROR_INVALID_VALUE);
    CUmemoryPool pool = pool_of_graphs(context->device);
    REQUIRE(pool, CUDA_ERROR_OUT_OF_MEMORY);
    TRY(allocation_make(ALLOCATION_GRAPH, context, params->bytesize, 0, &work.allocation));
    work.allocation->pool = pool;
    work.allocation->freed = true; /* until a launch takes the bytes */
    params->dptr = work.allocation->base;
    work.alloc_params = *params;
    CUresult result = graph_add(graph, deps, count, &work, node);
    if (result != CUDA_SUCCESS)
        allocation_drop(work.allocation);
    return result;
}

CUresult stub_cuGraphAddMemAllocNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t count,
                                     CUDA_MEM_ALLOC_NODE_PARAMS *params) {
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(node && graph && params, CUDA_ERROR_INVALID_VALUE);
    return graph_add_allocation(graph, deps, count, context, params, node);
}

CUresult stub_cuGraphMemAllocNodeGetParams(CUgraphNode node, CUDA_MEM_ALLOC_NODE_PARAMS *params) {
    REQUIRE(node && params && node->work.type == CU_GRAPH_NODE_TYPE_MEM_ALLOC, CUDA_ERROR_INVALID_VALUE);
    *params = node->work.alloc_params;
    return CUDA_SUCCESS;
}

CUresult graph_add_free(CUgraph graph, const CUgraphNode *deps, size_t count, CUdeviceptr dptr, CUgraphNode *node) {
    pthread_mutex_lock(&memory_lock);
    struct allocation *record = arena_find(dptr);
    pthread_mutex_unlock(&memory_lock);
    REQUIRE(record && record->base == dptr && record->pool, CUDA_ERROR_INVALID_VALUE);
    struct node_work work = {.type = CU_GRAPH_NODE_TYPE_MEM_FREE, .allocation = record};
    return graph_add(graph, deps, count, &work, node);
}

CUresult stub_cuGraphAddMemFreeNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t count,
                                    CUdeviceptr dptr) {
    REQUIRE(node, CUDA_ERROR_INVALID_VALUE);
    return graph_add_free(graph, deps, count, dptr, node);
}

CUresult stub_cuGraphMemFreeNodeGetParams(CUgraphNode node, CUdeviceptr *dptr) {
    REQUIRE(node && dptr && node->work.type == CU_GRAPH_NODE_TYPE_MEM_FREE, CUDA_ERROR_INVALID_VALUE);
    *dptr = node->work.allocation->base;
    return CUDA_SUCCESS;
}

CUresult stub_cuGraphAddNode_v2(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, const CUgraphEdgeData *edges,
                                size_t count, CUgraphNodeParams *params) {
    CUcontext context;
    (void)edges;
    TRY(current_context(&context));
    REQUIRE(params, CUDA_ERROR_INVALID_VALUE);
    switch (params->type) {
    case CU_GRAPH_NODE_TYPE_KERNEL:
        return stub_cuGraphAddKernelNode_v2(node, graph, deps, count, &params->kernel);
    case CU_GRAPH_NODE_TYPE_MEMCPY:
        return stub_cuGraphAddMemcpyNode(node, graph, deps, count, &params->memcpy.copyParams, context);
    case CU_GRAPH_NODE_TYPE_MEMSET:
        return stub_cuGraphAddMemsetNode(node, graph, deps, count, &params->memset.params, context);
    case CU_GRAPH_NODE_TYPE_HOST:
        return stub_cuGraphAddHostNode(node, graph, deps, count, &params->host);
    case CU_GRAPH_NODE_TYPE_GRAPH:
        if (params->graph.ownership == 1) /* CU_GRAPH_CHILD_GRAPH_OWNERSHIP_MOVE */
            return add_moved_child(node, graph, deps, count, params->graph.graph);
        return stub_cuGraphAddChildGraphNode(node, graph, deps, count, params->graph.graph);
    case CU_GRAPH_NODE_TYPE_EMPTY:
        return stub_cuGraphAddEmptyNode(node, graph, deps, count);
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
        return add_event_node(node, graph, deps, count, params->event.event, params->type);
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
        return stub_cuGraphAddMemAllocNode(node, graph, deps, count, &params->alloc);
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
        return stub_cuGraphAddMemFreeNode(node, graph, deps, count, params->free.dptr);
    default:
        return CUDA_ERROR_NOT_SUPPORTED;
    }
}

CUresult stub_cuGraphAddNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t count,
                             CUgraphNodeParams *params) {
    return stub_cuGraphAddNode_v2(node, graph, deps, NULL, count, params);
}

/* ---- Looking at a graph ---- */

CUresult stub_cuGraphAddDependencies(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to, size_t count) {
    REQUIRE(graph && ((from && to) || !count), CUDA_ERROR_INVALID_VALUE);
    for (size_t i = 0; i < count; i++) {
        REQUIRE(from[i] && to[i] && from[i]->graph == graph && to[i]->graph == graph, CUDA_ERROR_INVALID_VALUE);
        TRY(add_deps(to[i], &from[i], 1));
    }
    return CUDA_SUCCESS;
}

/* Nodes that pass; with no array only their number. */
static CUresult list_nodes(CUgraph graph, CUgraphNode *nodes, size_t *count, bool roots_only) {
    REQUIRE(graph && count, CUDA_ERROR_INVALID_VALUE);
    size_t found = 0;
    for (CUgraphNode node = graph->first; node; node = node->next) {
        if (roots_only && node->dep_count)
            continue;
        if (nodes && found < *count)
            nodes[found] = node;
        found++;
    }
    *count = !nodes || found < *count ? found : *count;
    return CUDA_SUCCESS;
}

CUresult stub_cuGraphGetNodes(CUgraph graph, CUgraphNode *nodes, size_t *count) {
    return list_nodes(graph, nodes, count, false);
}

CUresult stub_cuGraphGetRootNodes(CUgraph graph, CUgraphNode *nodes, size_t *count) {
    return list_nodes(graph, nodes, count, true);
}

CUresult stub_cuGraphNodeGetType(CUgraphNode node, CUgraphNodeType *type) {
    REQUIRE(node && type, CUDA_ERROR_INVALID_VALUE);
    *type = node->work.type;
    return CUDA_SUCCESS;
}

CUresult stub_cuGraphDestroyNode(CUgraphNode node) {
    REQUIRE(node, CUDA_ERROR_INVALID_VALUE);
    CUgraph graph = node->graph;
    CUgraphNode before = NULL;
    for (CUgraphNode at = graph->first; at; at = at->next) {
        if (at->next == node)
            before = at;
        for (size_t i = 0; i < at->dep_count;)
            if (at->deps[i] == node)
                at->deps[i] = at->deps[--at->dep_count];
            else
                i++;
    }
    if (before)
        before->next = node->next;
    else
        graph->first = node->next;
    if (graph->last == node)
        graph->last = before;
    graph->count--;
    node_free(node);
    return CUDA_SUCCESS;
}
