/* SPDX-License-Identifier: Apache-2.0 */
/* Graphs: building them, and looking at them. graphnodes.c makes the nodes of each kind, graphexec.c runs them. */
#include "work.h"

#include <stdlib.h>
#include <string.h>

/* ---- Building ---- */

CUgraph graph_make(void) {
    return handle_take(HANDLE_GRAPH, sizeof(struct CUgraph_st));
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
    handle_give(node);
}

CUresult graph_add(CUgraph graph, const CUgraphNode *deps, size_t count, const struct node_work *work,
                   CUgraphNode *out) {
    CUresult result = handle_lives(graph) && (deps || !count) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count && result == CUDA_SUCCESS; i++)
        result = handle_lives(deps[i]) && deps[i]->graph == graph ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    CUgraphNode node = result == CUDA_SUCCESS ? handle_take(HANDLE_NODE, sizeof *node) : NULL;
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
    REQUIRE(handle_lives(graph), CUDA_ERROR_INVALID_VALUE);
    for (CUgraphNode node = graph->first; node;) {
        CUgraphNode next = node->next;
        if (node->work.type == CU_GRAPH_NODE_TYPE_GRAPH)
            stub_cuGraphDestroy(node->work.child);
        node_free(node);
        node = next;
    }
    handle_give(graph);
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
    REQUIRE(out && handle_lives(graph), CUDA_ERROR_INVALID_VALUE);
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

/* ---- Looking at a graph ---- */

CUresult stub_cuGraphAddDependencies(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to, size_t count) {
    REQUIRE(handle_lives(graph) && ((from && to) || !count), CUDA_ERROR_INVALID_VALUE);
    for (size_t i = 0; i < count; i++) {
        REQUIRE(handle_lives(from[i]) && handle_lives(to[i]) && from[i]->graph == graph && to[i]->graph == graph,
                CUDA_ERROR_INVALID_VALUE);
        TRY(add_deps(to[i], &from[i], 1));
    }
    return CUDA_SUCCESS;
}

/* Nodes that pass; with no array only their number. */
static CUresult list_nodes(CUgraph graph, CUgraphNode *nodes, size_t *count, bool roots_only) {
    REQUIRE(handle_lives(graph) && count, CUDA_ERROR_INVALID_VALUE);
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
    REQUIRE(handle_lives(node) && type, CUDA_ERROR_INVALID_VALUE);
    *type = node->work.type;
    return CUDA_SUCCESS;
}

CUresult stub_cuGraphDestroyNode(CUgraphNode node) {
    REQUIRE(handle_lives(node), CUDA_ERROR_INVALID_VALUE);
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
