/* SPDX-License-Identifier: Apache-2.0
 *
 * Four threads that make and destroy one of everything, in a context that they share or in their own on one of two
 * devices, so that handles go from thread to thread. Prints free and total memory of both devices at the end.
 */
#include "abi/cuda.h"
#include "must.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

enum { THREADS = 4, ROUNDS = 150, DEVICES = 2 };

static CUcontext shared[DEVICES];

struct things {
    CUstream stream;
    CUevent event;
    CUmodule module;
    CUfunction function;
    CUdeviceptr memory;
    CUarray array;
    CUgraphExec executable;
};

static void launch(const struct things *things) {
    unsigned long long gpu_ns = 1000;
    void *params[] = {&gpu_ns};
    MUST(cuLaunchKernel(things->function, 1, 1, 1, 1, 1, 1, 0, things->stream, params, NULL));
}

static void make(struct things *things) {
    CUgraph graph;
    CUDA_ARRAY_DESCRIPTOR side = {.Width = 64, .Height = 64, .Format = CU_AD_FORMAT_UNSIGNED_INT8, .NumChannels = 1};
    MUST(cuStreamCreate(&things->stream, CU_STREAM_NON_BLOCKING));
    MUST(cuEventCreate(&things->event, CU_EVENT_DEFAULT));
    MUST(cuModuleLoadData(&things->module, ".version 8.0\n.target sm_80\n.address_size 64\n"
                                           ".visible .entry spin(.param .u64 ns) { ret; }\n"));
    MUST(cuModuleGetFunction(&things->function, things->module, "spin"));
    launch(things);
    MUST(cuEventRecord(things->event, things->stream));
    MUST(cuMemAlloc_v2(&things->memory, 4096));
    MUST(cuArrayCreate_v2(&things->array, &side));
    MUST(cuStreamBeginCapture_v2(things->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    launch(things);
    MUST(cuStreamEndCapture(things->stream, &graph));
    MUST(cuGraphInstantiateWithFlags(&things->executable, graph, 0));
    MUST(cuGraphDestroy(graph));
    MUST(cuGraphLaunch(things->executable, things->stream));
}

static void use_a_pool(CUdevice device, CUstream stream) {
    CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                            .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device}};
    CUmemoryPool pool;
    CUdeviceptr memory;
    MUST(cuMemPoolCreate(&pool, &props));
    MUST(cuMemAllocFromPoolAsync(&memory, 100000, pool, stream));
    MUST(cuMemPoolDestroy(pool));
    MUST(cuMemFreeAsync(memory, stream));
    MUST(cuStreamSynchronize(stream));
}

static void destroy(const struct things *things) {
    MUST(cuStreamDestroy_v2(things->stream));
    MUST(cuEventDestroy_v2(things->event));
    MUST(cuModuleUnload(things->module));
    MUST(cuMemFree_v2(things->memory));
    MUST(cuArrayDestroy(things->array));
}

static void *work(void *argument) {
    CUdevice device = (CUdevice)((size_t)argument % DEVICES);
    for (int round = 0; round < ROUNDS; round++) {
        bool own = round % 3 == 0, all_at_once = own && round % 2 == 1;
        struct things things;
        CUcontext context;
        if (own)
            MUST(cuCtxCreate_v2(&context, 0, device));
        else
            MUST(cuCtxSetCurrent(shared[device]));
        make(&things);
        use_a_pool(device, things.stream);
        MUST(cuEventSynchronize(things.event));
        MUST(cuGraphExecDestroy(things.executable));
        if (!all_at_once)
            destroy(&things);
        if (own)
            MUST(cuCtxDestroy_v2(context));
    }
    return NULL;
}

int main(void) {
    pthread_t threads[THREADS];
    MUST(cuInit(0));
    for (CUdevice device = 0; device < DEVICES; device++)
        MUST(cuDevicePrimaryCtxRetain(&shared[device], device));
    for (size_t i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, work, (void *)i);
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (CUdevice device = 0; device < DEVICES; device++) {
        size_t free_bytes, total;
        MUST(cuCtxSetCurrent(shared[device]));
        MUST(cuCtxSynchronize());
        MUST(cuMemGetInfo_v2(&free_bytes, &total));
        printf("%zu of %zu\n", free_bytes, total);
    }
    return 0;
}
