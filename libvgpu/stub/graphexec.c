/* SPDX-License-Identifier: Apache-2.0
 *
 * Executable graphs. Instantiating a graph flattens it, children included, into a list in an order that its edges
 * allow; launching it submits that list to the stream, so that it costs on the engine what its kernels cost.
 *
 * Memory nodes: the address is fixed when the node is made; the bytes come from the device's graph pool at launch, go
 * back to it where the free node stands, and go back to the card with cuDeviceGraphMemTrim (CUDA programming guide,
 * graph memory nodes: physical memory footprint).
 */
#include "work.h"

#include <stdlib.h>

struct CUgraphExec_st {
    CUcontext context; /* which may end before */
    uint64_t turn;
    unsigned long long flags;
    struct step {
        struct node_work work;
        CUgraphNode source;
    } *steps;
    size_t count, room;
};

static void exec_clear(CUgraphExec exec) {
    for (size_t i = 0; i < exec->count; i++)
        work_free(&exec->steps[i].work);
    free(exec->steps);
    exec->steps = NULL;
    exec->count = exec->room = 0;
}

static void wait_for(CUgraphExec exec) {
    if (handle_turn(exec->context) == exec->turn)
        queue_wait_context(exec->context);
}

static void exec_free(CUgraphExec exec) {
    exec_clear(exec);
    handle_give(exec);
}

/* ---- Instantiating ---- */

static CUresult flatten(CUgraphExec exec, CUgraph graph);

/* Puts a node behind what it depends on. mark: 0 new, 1 on the way, 2 done. */
static CUresult visit(CUgraphExec exec, CUgraphNode node) {
    if (node->mark == 2)
        return CUDA_SUCCESS;
    REQUIRE(node->mark == 0, CUDA_ERROR_INVALID_VALUE); /* a cycle */
    node->mark = 1;
    for (size_t i = 0; i < node->dep_count; i++)
        TRY(visit(exec, node->deps[i]));
    node->mark = 2;
    if (node->work.type == CU_GRAPH_NODE_TYPE_GRAPH)
        return flatten(exec, node->work.child);
    if (exec->count == exec->room) {
        size_t room = exec->room ? 2 * exec->room : 16;
        struct step *more = realloc(exec->steps, room * sizeof *more);
        REQUIRE(more, CUDA_ERROR_OUT_OF_MEMORY);
        exec->steps = more;
        exec->room = room;
    }
    struct step *step = &exec->steps[exec->count];
    step->source = node;
    TRY(work_copy(&step->work, &node->work));
    exec->count++;
    return CUDA_SUCCESS;
}

static CUresult flatten(CUgraphExec exec, CUgraph graph) {
    for (CUgraphNode node = graph->first; node; node = node->next)
        node->mark = 0;
    for (CUgraphNode node = graph->first; node; node = node->next)
        TRY(visit(exec, node));
    return CUDA_SUCCESS;
}

CUresult stub_cuGraphInstantiateWithFlags(CUgraphExec *out, CUgraph graph, unsigned long long flags) {
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(out && handle_lives(graph) && flags <= 15, CUDA_ERROR_INVALID_VALUE);
    CUgraphExec exec = handle_take(HANDLE_EXECUTABLE, sizeof *exec);
    REQUIRE(exec, CUDA_ERROR_OUT_OF_MEMORY);
    exec->context = context;
    exec->turn = handle_turn(context);
    exec->flags = flags;
    CUresult result = flatten(exec, graph);
    if (result != CUDA_SUCCESS) {
        exec_free(exec);
        return result;
    }
    *out = exec;
    return CUDA_SUCCESS;
}

CUresult stub_cuGraphInstantiate(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node, char *log,
                                 size_t log_size) {
    if (error_node)
        *error_node = NULL;
    if (log && log_size)
        *log = 0;
    return stub_cuGraphInstantiateWithFlags(exec, graph, 0);
}

CUresult stub_cuGraphInstantiate_v2(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node, char *log,
                                    size_t log_size) {
    return stub_cuGraphInstantiate(exec, graph, error_node, log, log_size);
}

CUresult stub_cuGraphInstantiateWithParams(CUgraphExec *exec, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS *params) {
    REQUIRE(params, CUDA_ERROR_INVALID_VALUE);
    CUresult result = stub_cuGraphInstantiateWithFlags(exec, graph, params->flags);
    params->hErrNode_out = NULL;
    params->result_out = result != CUDA_SUCCESS;
    return result;
}

CUresult stub_cuGraphInstantiateWithParams_ptsz(CUgraphExec *exec, CUgraph graph,
                                                CUDA_GRAPH_INSTANTIATE_PARAMS *params) {
    return stub_cuGraphInstantiateWithParams(exec, graph, params);
}

CUresult stub_cuGraphExecGetFlags(CUgraphExec exec, unsigned long long *flags) {
    REQUIRE(handle_lives(exec) && flags, CUDA_ERROR_INVALID_VALUE);
    *flags = exec->flags;
    return CUDA_SUCCESS;
}

CUresult stub_cuGraphExecDestroy(CUgraphExec exec) {
    REQUIRE(handle_lives(exec), CUDA_ERROR_INVALID_VALUE);
    wait_for(exec);
    exec_free(exec);
    return CUDA_SUCCESS;
}

CUresult stub_cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                                const CUDA_KERNEL_NODE_PARAMS_v2 *params) {
    REQUIRE(handle_lives(exec) && node && params, CUDA_ERROR_INVALID_VALUE);
    for (size_t i = 0; i < exec->count; i++)
        if (exec->steps[i].source == node && node->work.type == CU_GRAPH_NODE_TYPE_KERNEL)
            return kernel_work(params, &exec->steps[i].work);
    return CUDA_ERROR_INVALID_VALUE;
}

CUresult stub_cuGraphExecNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraphNodeParams *params) {
    REQUIRE(params, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(params->type == CU_GRAPH_NODE_TYPE_KERNEL, CUDA_ERROR_NOT_SUPPORTED);
    return stub_cuGraphExecKernelNodeSetParams_v2(exec, node, &params->kernel);
}

CUresult stub_cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                             const CUDA_KERNEL_NODE_PARAMS_v1 *params) {
    REQUIRE(params, CUDA_ERROR_INVALID_VALUE);
    CUDA_KERNEL_NODE_PARAMS_v2 newer = newer_params(params);
    return stub_cuGraphExecKernelNodeSetParams_v2(exec, node, &newer);
}

/* Takes the nodes of a graph of the same shape. */
CUresult stub_cuGraphExecUpdate_v2(CUgraphExec exec, CUgraph graph, CUgraphExecUpdateResultInfo *info) {
    struct CUgraphExec_st newer = {0};
    REQUIRE(handle_lives(exec) && handle_lives(graph) && info, CUDA_ERROR_INVALID_VALUE);
    *info = (CUgraphExecUpdateResultInfo){.result = CU_GRAPH_EXEC_UPDATE_SUCCESS};
    CUresult result = flatten(&newer, graph);
    bool same = result == CUDA_SUCCESS && newer.count == exec->count;
    for (size_t i = 0; same && i < exec->count; i++)
        same = newer.steps[i].work.type == exec->steps[i].work.type;
    if (!same) {
        exec_clear(&newer);
        info->result = CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
        return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
    }
    wait_for(exec);
    for (size_t i = 0; i < exec->count; i++)
        newer.steps[i].source = exec->steps[i].source;
    exec_clear(exec);
    exec->steps = newer.steps;
    exec->count = newer.count;
    exec->room = newer.room;
    return CUDA_SUCCESS;
}

CUresult stub_cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, CUgraphNode *error_node, int *update) {
    CUgraphExecUpdateResultInfo info;
    REQUIRE(update, CUDA_ERROR_INVALID_VALUE);
    CUresult result = stub_cuGraphExecUpdate_v2(exec, graph, &info);
    *update = info.result;
    if (error_node)
        *error_node = NULL;
    return result;
}

/* ---- Launching ---- */

static CUresult launch_allocation(CUgraphExec exec, struct allocation *record, CUstream stream) {
    if (!record->freed) { /* still there from the launch before */
        REQUIRE(exec->flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH, CUDA_ERROR_INVALID_VALUE);
        return CUDA_SUCCESS;
    }
    REQUIRE(pool_take(record->pool, record->size, stream), CUDA_ERROR_OUT_OF_MEMORY);
    record->freed = false;
    return CUDA_SUCCESS;
}

static CUresult launch_step(CUgraphExec exec, struct step *step, CUstream stream) {
    struct node_work *work = &step->work;
    switch (work->type) {
    case CU_GRAPH_NODE_TYPE_KERNEL:
        return kernel_submit(stream, &work->kernel);
    case CU_GRAPH_NODE_TYPE_HOST:
        queue_submit(stream, (struct op){.kind = OP_HOST, .run = {work->host, work->data}});
        return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_MEMCPY:
    case CU_GRAPH_NODE_TYPE_MEMSET:
        queue_submit(stream, (struct op){.kind = work->link ? OP_LINK : OP_RUN,
                                         .duration_ns = work->duration_ns,
                                         .run = {work->run, work->data}}); /* exec outlives it */
        return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
        return stub_cuEventRecord(work->event, stream);
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
        return stub_cuStreamWaitEvent(stream, work->event, 0);
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
        return launch_allocation(exec, work->allocation, stream);
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
        REQUIRE(!work->allocation->freed, CUDA_ERROR_INVALID_VALUE);
        work->allocation->freed = true;
        return pool_free(work->allocation, stream);
    default:
        return CUDA_SUCCESS;
    }
}

CUresult stub_cuGraphLaunch(CUgraphExec exec, CUstream handle) {
    CUstream stream;
    TRY(resolve_stream(handle, &stream));
    REQUIRE(handle_lives(exec), CUDA_ERROR_INVALID_VALUE);
    REQUIRE(!CAPTURING(stream), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    for (size_t i = 0; i < exec->count; i++)
        TRY(launch_step(exec, &exec->steps[i], stream));
    return CUDA_SUCCESS;
}

/* Takes the memory of the allocation nodes ahead of the first launch: it stays with the device's graphs. */
CUresult stub_cuGraphUpload(CUgraphExec exec, CUstream handle) {
    CUstream stream;
    TRY(resolve_stream(handle, &stream));
    REQUIRE(handle_lives(exec), CUDA_ERROR_INVALID_VALUE);
    CUresult result = CUDA_SUCCESS;
    size_t taken = 0;
    for (; taken < exec->count && result == CUDA_SUCCESS; taken++) {
        const struct node_work *work = &exec->steps[taken].work;
        if (work->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC &&
            !pool_take(work->allocation->pool, work->allocation->size, stream))
            result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    for (size_t i = 0; i + (result != CUDA_SUCCESS) < taken; i++) {
        const struct node_work *work = &exec->steps[i].work;
        if (work->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
            pool_give(work->allocation->pool, work->allocation->size, NULL);
    }
    return result;
}

/* ---- The device's graph memory ---- */

CUresult stub_cuDeviceGetGraphMemAttribute(CUdevice ordinal, CUgraphMem_attribute attribute, void *value) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    REQUIRE(value && attribute >= 0 && attribute <= 3, CUDA_ERROR_INVALID_VALUE);
    CUmemoryPool pool = device->graph_pool;
    const uint64_t values[] = {pool ? pool->used : 0, pool ? pool->used_high : 0, pool ? pool->reserved : 0,
                               pool ? pool->reserved_high : 0};
    *(uint64_t *)value = values[attribute];
    return CUDA_SUCCESS;
}

CUresult stub_cuDeviceSetGraphMemAttribute(CUdevice ordinal, CUgraphMem_attribute attribute, void *value) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    bool high = attribute == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH || attribute == CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH;
    REQUIRE(value && high && *(uint64_t *)value == 0, CUDA_ERROR_INVALID_VALUE);
    if (device->graph_pool)
        device->graph_pool->used_high = device->graph_pool->used;
    return CUDA_SUCCESS;
}

CUresult stub_cuDeviceGraphMemTrim(CUdevice ordinal) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    if (device->graph_pool)
        pool_trim(device->graph_pool, 0);
    return CUDA_SUCCESS;
}
