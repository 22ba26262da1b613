/* SPDX-License-Identifier: Apache-2.0
 *
 * What one call of the driver costs: `calls FIGURE`. Prints nanoseconds per call, of the quickest batch of many.
 *
 *     launch      cuLaunchKernel of a kernel that takes no time
 *     launch-two  of two of them in turn
 *     fill        cuMemsetD8Async of 4 KiB
 *     copy        cuMemcpyDtoDAsync of 4 KiB
 *     three       a launch, a fill and a copy
 *     pair        cuMemAlloc and cuMemFree of 1 MiB
 *     pair-live   the same with 10,000 live allocations
 *     info        cuMemGetInfo
 *     reject      cuMemAlloc of more than there is
 *     hold        prints "ready" and keeps its context until its standard input ends
 */
#include "abi/cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BATCHES = 400, CALLS = 500, LIVE = 10000, BYTES = 1 << 20 };

static CUfunction function, other;
static CUdeviceptr live[LIVE];

static void check(CUresult result, const char *call) {
    if (result == CUDA_SUCCESS)
        return;
    fprintf(stderr, "calls: %s: found CUDA result %d, expected 0\n", call, (int)result);
    exit(1);
}
#define CHECK(call) check(call, #call)

static double now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static void launch(void) {
    CHECK(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL));
}

static void launch_two(void) {
    static int turn;
    turn = 1 - turn;
    CHECK(cuLaunchKernel(turn ? function : other, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL));
}

static CUdeviceptr from, to;
enum { MOVED = 4096 };

static void fill(void) {
    CHECK(cuMemsetD8Async(to, 1, MOVED, NULL));
}

static void copy(void) {
    CHECK(cuMemcpyDtoDAsync_v2(to, from, MOVED, NULL));
}

static void three(void) {
    launch();
    fill();
    copy();
}

static void pair(void) {
    CUdeviceptr pointer;
    CHECK(cuMemAlloc_v2(&pointer, BYTES));
    CHECK(cuMemFree_v2(pointer));
}

static void info(void) {
    size_t free_bytes, total;
    CHECK(cuMemGetInfo_v2(&free_bytes, &total));
}

static void reject(void) {
    CUdeviceptr pointer;
    if (cuMemAlloc_v2(&pointer, (size_t)1 << 40) != CUDA_ERROR_OUT_OF_MEMORY)
        exit(1);
}

static void hold(void) {
    printf("ready\n");
    fflush(stdout);
    exit(getchar() == EOF ? 0 : 1);
}

static const struct {
    const char *name;
    void (*call)(void);
} figures[] = {{"launch", launch}, {"launch-two", launch_two}, {"fill", fill}, {"copy", copy},     {"three", three},
               {"pair", pair},     {"pair-live", pair},        {"info", info}, {"reject", reject}, {"hold", hold}};

static double quickest_ns(void (*call)(void)) {
    double quickest = 1e18;
    for (int batch = 0; batch < BATCHES; batch++) {
        double begin = now_ns();
        for (int i = 0; i < CALLS; i++)
            call();
        double took = (now_ns() - begin) / CALLS;
        quickest = took < quickest ? took : quickest;
    }
    return quickest;
}

int main(int argc, char **argv) {
    static const char image[] = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry instant() { ret; }\n";
    CUcontext context;
    CUmodule module;
    CHECK(cuInit(0));
    CHECK(cuDevicePrimaryCtxRetain(&context, 0));
    CHECK(cuCtxSetCurrent(context));
    CHECK(cuModuleLoadData(&module, image));
    CHECK(cuModuleGetFunction(&function, module, "instant"));
    CHECK(cuModuleLoadData(&module, image));
    CHECK(cuModuleGetFunction(&other, module, "instant"));
    CHECK(cuMemAlloc_v2(&from, MOVED));
    CHECK(cuMemAlloc_v2(&to, MOVED));
    if (argc > 1 && strcmp(argv[1], "pair-live") == 0)
        for (int i = 0; i < LIVE; i++)
            CHECK(cuMemAlloc_v2(&live[i], 4096));
    for (size_t i = 0; argc > 1 && i < sizeof figures / sizeof figures[0]; i++) {
        if (strcmp(argv[1], figures[i].name) == 0) {
            printf("%.2f\n", quickest_ns(figures[i].call));
            return 0;
        }
    }
    return 2;
}
