/* SPDX-License-Identifier: Apache-2.0 */
/* The nodes of graphs: each kind's own call, and the one for all of them. */
#include "work.h"

#include <string.h>

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
    REQUIRE(handle_lives(node) && params && node->work.type == CU_GRAPH_NODE_TYPE_KERNEL, CUDA_ERROR_INVALID_VALUE);
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
    REQUIRE(handle_lives(node) && params && node->work.type == CU_GRAPH_NODE_TYPE_KERNEL, CUDA_ERROR_INVALID_VALUE);
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
    REQUIRE(handle_lives(node) && graph && node->work.type == CU_GRAPH_NODE_TYPE_GRAPH, CUDA_ERROR_INVALID_VALUE);
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
    REQUIRE(handle_lives(node) && params && node->work.type == CU_GRAPH_NODE_TYPE_MEM_ALLOC, CUDA_ERROR_INVALID_VALUE);
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
    REQUIRE(handle_lives(node) && dptr && node->work.type == CU_GRAPH_NODE_TYPE_MEM_FREE, CUDA_ERROR_INVALID_VALUE);
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
