/* SPDX-License-Identifier: Apache-2.0
 *
 * A tenant that asks for all the GPU it can get: launches kernels of given lengths in turn until a moment.
 *
 *     load SECONDS NANOSECONDS[,NANOSECONDS...] [STREAMS [SLEEP_NS]]
 *
 * Prints "ready" when it can launch and starts when it reads a line. Prints the longest launch call in microseconds.
 */
#include "abi/cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LENGTHS_MAX = 16, STREAMS_MAX = 16 };

static void check(CUresult result, const char *call) {
    if (result == CUDA_SUCCESS)
        return;
    fprintf(stderr, "load: %s: found CUDA result %d, expected 0\n", call, (int)result);
    exit(1);
}
#define CHECK(call) check(call, #call)

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    static const char image[] =
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry spin(.param .u64 ns) { ret; }\n";
    if (argc < 3)
        return 2;
    unsigned long long lengths[LENGTHS_MAX];
    int count = 0, streams = argc > 3 ? atoi(argv[3]) : 1;
    long sleep_ns = argc > 4 ? atol(argv[4]) : 0;
    for (char *word = strtok(argv[2], ","); word != NULL && count < LENGTHS_MAX; word = strtok(NULL, ","))
        lengths[count++] = strtoull(word, NULL, 10);
    CUcontext context;
    CUmodule module;
    CUfunction function;
    CUstream stream[STREAMS_MAX] = {0};
    CHECK(cuInit(0));
    CHECK(cuDevicePrimaryCtxRetain(&context, 0));
    CHECK(cuCtxSetCurrent(context));
    CHECK(cuModuleLoadData(&module, image));
    CHECK(cuModuleGetFunction(&function, module, "spin"));
    for (int i = 1; i < streams && i < STREAMS_MAX; i++)
        CHECK(cuStreamCreate(&stream[i], CU_STREAM_NON_BLOCKING));
    printf("ready\n");
    fflush(stdout);
    if (getchar() == EOF)
        return 1;
    double end = now_s() + atof(argv[1]), longest = 0;
    for (int i = 0;; i++) {
        double begin = now_s();
        if (begin >= end)
            break;
        void *params[] = {&lengths[i % count]};
        CHECK(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream[i % streams], params, NULL));
        double took = now_s() - begin;
        longest = took > longest ? took : longest;
        if (sleep_ns > 0)
            nanosleep(&(struct timespec){.tv_nsec = sleep_ns}, NULL);
    }
    printf("%.0f\n", longest * 1e6);
    fflush(stdout);
    /* What is still queued counts as used, but nobody waits for it. */
    _Exit(0);
}
