/* SPDX-License-Identifier: Apache-2.0
 *
 * A tenant's signal handler that asks for device memory while its thread is inside of a call of the driver: `interrupt
 * WAY`. The call is given memory that cannot be read, so that the handler of the fault runs in the middle of it; with
 * `amid` it is one that the library makes while it changes its records. Prints how many MiB the handler got.
 */
#include "abi/cuda.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { MOST = 256, MIB = 1 << 20, PAGE = 4096 };

static const char image[] = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry none() { ret; }\n";
static void *library;
static char *page;
static int (*ask)(void);
static volatile int got = -1;
static CUgraph graph;
static CUgraphExec executable;

#define CALL(symbol) ((symbol##_fn)dlsym(library, #symbol))

static void check(CUresult result, int line) {
    if (result != CUDA_SUCCESS) {
        fprintf(stderr, "line %d: CUDA result %d\n", line, (int)result);
        exit(3);
    }
}
#define CHECK(call) check(call, __LINE__)

static CUmemPoolProps on_device(void) {
    return (CUmemPoolProps){.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                            .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0}};
}

static int ask_memory(void) {
    CUdeviceptr pointer;
    int count = 0;
    while (count < MOST && CALL(cuMemAlloc_v2)(&pointer, MIB) == CUDA_SUCCESS)
        count++;
    return count;
}

static int ask_async(void) {
    CUdeviceptr pointer;
    int count = 0;
    while (count < MOST && CALL(cuMemAllocAsync)(&pointer, MIB, NULL) == CUDA_SUCCESS)
        count++;
    return count;
}

static int ask_pool(void) {
    CUmemoryPool pool;
    CUdeviceptr pointer;
    CUmemPoolProps props = on_device();
    int count = 0;
    CHECK(CALL(cuMemPoolCreate)(&pool, &props));
    while (count < MOST && CALL(cuMemAllocFromPoolAsync)(&pointer, MIB, pool, NULL) == CUDA_SUCCESS)
        count++;
    return count;
}

/* Memory that stays, because it is mapped, though its handle is gone. */
static int ask_mapped(void) {
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0}};
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address;
    int count = 0;
    CHECK(CALL(cuMemAddressReserve)(&address, (size_t)MOST * MIB, 0, 0, 0));
    for (; count < MOST && CALL(cuMemCreate)(&handle, 2 * MIB, &prop, 0) == CUDA_SUCCESS; count += 2) {
        CHECK(CALL(cuMemMap)(address + (CUdeviceptr)count * MIB, 2 * MIB, 0, handle, 0));
        CHECK(CALL(cuMemRelease)(handle));
    }
    return count;
}

static int ask_by_look_up(void) {
    cuMemAllocAsync_fn alloc;
    CUdeviceptr pointer;
    int count = 0;
    CHECK(CALL(cuGetProcAddress)("cuMemAllocAsync", (void **)&alloc, 12000, 0));
    while (count < MOST && alloc(&pointer, MIB, NULL) == CUDA_SUCCESS)
        count++;
    return count;
}

static int ask_contexts(void) {
    CUcontext context;
    int count = 0;
    while (count < MOST && CALL(cuCtxCreate_v2)(&context, 0, 0) == CUDA_SUCCESS)
        count += 8; /* as the card is set up */
    return count;
}

static int ask_module(void) {
    CUmodule module;
    int count = 0;
    while (count < MOST && CALL(cuModuleLoadData)(&module, image) == CUDA_SUCCESS)
        count += 8;
    return count;
}

/* What the graph takes is to be seen here, and it is launched later. */
static int ask_graph(void) {
    CHECK(CALL(cuGraphInstantiateWithFlags)(&executable, graph, 0));
    return 0;
}

static int launch_graph(void) {
    return CALL(cuGraphLaunch)(executable, NULL) == CUDA_SUCCESS ? MOST : 0;
}

static int ask_view(void) {
    size_t free_bytes, total_bytes;
    CHECK(CALL(cuMemGetInfo_v2)(&free_bytes, &total_bytes));
    return (int)(total_bytes / MIB);
}

static void on_fault(int number) {
    (void)number;
    got = ask();
    if (mprotect(page, PAGE, PROT_READ | PROT_WRITE) != 0)
        _Exit(4);
}

static void make_graph(void) {
    CUgraphNode node;
    CUDA_MEM_ALLOC_NODE_PARAMS params = {.poolProps = on_device(), .bytesize = (size_t)MOST * MIB};
    CHECK(CALL(cuGraphCreate)(&graph, 0));
    CHECK(CALL(cuGraphAddMemAllocNode)(&node, graph, NULL, 0, &params));
}

static void start(void) {
    CUcontext context;
    library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    CHECK(CALL(cuInit)(0));
    CHECK(CALL(cuDevicePrimaryCtxRetain)(&context, 0));
    CHECK(CALL(cuCtxSetCurrent)(context));
    make_graph();
    page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(page, image, sizeof image);
    signal(SIGSEGV, on_fault);
    if (mprotect(page, PAGE, PROT_NONE) != 0)
        exit(4);
}

/* Of the stub driver (exports.c): what happens in the middle of a call. */
struct between {
    const char *function;
    void (*before)(void), (*after)(void);
};

static struct between *between(void) {
    return dlsym(library, "vgpu_stub_between");
}

static void interrupt(void) {
    between()->function = NULL;
    raise(SIGSEGV);
}

static void allocate_amid_records(void) {
    CUdeviceptr pointer;
    *between() = (struct between){"cuMemAllocFromPoolAsync", interrupt, NULL};
    CHECK(CALL(cuMemAllocAsync)(&pointer, MIB, NULL));
}

static const struct {
    const char *name;
    int (*ask)(void);
} ways[] = {{"memory", ask_memory}, {"stream-ordered", ask_async}, {"pool", ask_pool},
            {"mapped", ask_mapped}, {"look-up", ask_by_look_up},   {"context", ask_contexts},
            {"module", ask_module}, {"graph", ask_graph},          {"view", ask_view}};

int main(int argc, char **argv) {
    CUmodule module;
    bool amid = argc == 3 && strcmp(argv[2], "amid") == 0;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        if (argc > 1 && strcmp(argv[1], ways[i].name) == 0)
            ask = ways[i].ask;
    if (ask == NULL)
        return 2;
    start();
    if (amid)
        allocate_amid_records();
    else
        CHECK(CALL(cuModuleLoadData)(&module, page));
    printf("%d\n", ask == ask_graph ? launch_graph() : got);
    return 0;
}
