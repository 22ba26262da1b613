/* SPDX-License-Identifier: Apache-2.0
 *
 * Work for streams and graphs, as the files that make, capture and run it offer each other: copies, fills, nodes.
 */
#ifndef VGPU_STUB_WORK_H
#define VGPU_STUB_WORK_H

#include "driver.h"
#include "pools.h"

/* What a graph's node does. */
struct node_work {
    CUgraphNodeType type;
    struct kernel kernel;
    void (*run)(void *data); /* copies and fills: data is malloced, of data_size */
    void *data;
    size_t data_size;
    uint64_t duration_ns;
    bool link; /* that is its time on the link, and not on the engine */
    CUhostFn host;
    CUevent event;
    CUgraph child;
    struct allocation *allocation; /* memory nodes */
    CUDA_MEM_ALLOC_NODE_PARAMS alloc_params;
};

struct CUgraphNode_st {
    CUgraph graph;
    struct node_work work;
    CUgraphNode *deps;
    size_t dep_count;
    unsigned mark; /* of the walk in graph.c */
    CUgraphNode next;
};

struct CUgraph_st {
    CUgraphNode first, last;
    size_t count;
};

CUgraph graph_make(void);
CUresult kernel_work(const CUDA_KERNEL_NODE_PARAMS_v2 *params, struct node_work *work);
CUDA_KERNEL_NODE_PARAMS_v2 newer_params(const CUDA_KERNEL_NODE_PARAMS_v1 *params);
/* A second owner of what the work owns, and the end of one. */
CUresult work_copy(struct node_work *copy, const struct node_work *work);
void work_free(struct node_work *work);
/* Adds a node; takes over what work owns, also on failure. */
CUresult graph_add(CUgraph graph, const CUgraphNode *deps, size_t count, const struct node_work *work,
                   CUgraphNode *node);
CUresult graph_add_allocation(CUgraph graph, const CUgraphNode *deps, size_t count, CUcontext context,
                              CUDA_MEM_ALLOC_NODE_PARAMS *params, CUgraphNode *node);
CUresult graph_add_free(CUgraph graph, const CUgraphNode *deps, size_t count, CUdeviceptr dptr, CUgraphNode *node);

/* capture.c: work on a stream that is being captured becomes a node behind what the stream did before. */
#define CAPTURING(stream) (__builtin_expect(__atomic_load_n(&(stream)->capture, __ATOMIC_ACQUIRE) != NULL, 0))
/* True if the stream is being captured, and then no thread ends that before it is let go. */
bool capture_hold(CUstream stream);
void capture_let_go(void);

/* Calls that could be about what is captured spoil a capture, by the modes of the capture and of the calling thread. */
CUresult capture_forbids(void);
void capture_drop(CUstream stream); /* it ends, and its capture with it */
CUresult capture_add(CUstream stream, const struct node_work *work, CUgraphNode *node);
CUresult capture_allocate(CUstream stream, size_t bytes, CUdeviceptr *dptr);
CUresult capture_free(CUstream stream, CUdeviceptr dptr);
CUresult capture_record(CUstream stream, CUevent event, unsigned flags);
CUresult capture_wait(CUstream stream, CUevent event, unsigned flags);

/* Puts a copy or fill on a stream, or into its capture: work owns its data (malloced), which is freed after the run. */
CUresult submit_run(CUstream stream, const struct node_work *work);
/* The same for data that is a local of the caller; with wait it is done on return. */
CUresult submit_local(CUstream handle, bool wait, struct node_work work);
/* Makes the run for cuGraphAddMemcpyNode and cuGraphAddMemsetNode. */
CUresult copy_make(const CUDA_MEMCPY3D *copy, struct node_work *work);
CUresult fill_make(const CUDA_MEMSET_NODE_PARAMS *params, struct node_work *work);
/* The two kinds of copies. */
enum direction { ANY_TO_ANY, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE };
CUresult copy_linear(CUdeviceptr to, CUdeviceptr from, size_t bytes, enum direction direction, CUstream stream,
                     bool wait);
CUresult copy_3d(const CUDA_MEMCPY3D *params, CUstream stream, bool wait);
/* How long it takes to read and write so many bytes on the card. */
uint64_t memory_ns(CUcontext context, size_t bytes);
/* Is there host memory at this address? Managed memory is the device's. */
bool on_host(CUdeviceptr address);
/* The stream of synchronous copies and fills: the calling thread's own in their _ptds twins, else the default. */
extern _Thread_local CUstream synchronous_stream;

/* False for what is destroyed. */
bool array_lives(CUarray array);

/* The bytes of an array's element row, for copies. */
struct CUarray_st {
    struct allocation *allocation;
    CUDA_ARRAY3D_DESCRIPTOR desc;
    size_t element_bytes, pitch, offset; /* offset inside the allocation: a mipmap's level */
    CUmipmappedArray mipmap;             /* of which it is a level; NULL: it has a handle of its own */
    CUcontext context;
};

#endif
