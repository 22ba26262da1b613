/* SPDX-License-Identifier: Apache-2.0
 *
 * Eight threads that allocate, free, launch and die, in four waves, with a fork in between that does nothing but exit.
 * Prints free and total memory at the end.
 */
#include "abi/cuda.h"
#include "must.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 8, WAVES = 4, ROUNDS = 3000, LIVE = 16, MOST = 1 << 20 };

static CUcontext context;
static CUfunction function;

static void *work(void *argument) {
    unsigned int seed = (unsigned int)(size_t)argument;
    CUdeviceptr live[LIVE] = {0};
    MUST(cuCtxSetCurrent(context));
    for (int round = 0; round < ROUNDS; round++) {
        CUdeviceptr *slot = &live[rand_r(&seed) % LIVE];
        if (*slot != 0) {
            MUST(round % 2 ? cuMemFree_v2(*slot) : cuMemFreeAsync(*slot, NULL));
            *slot = 0;
            continue;
        }
        size_t bytes = (size_t)rand_r(&seed) % MOST + 1;
        CUresult result = round % 2 ? cuMemAlloc_v2(slot, bytes) : cuMemAllocAsync(slot, bytes, NULL);
        if (result != CUDA_SUCCESS) {
            *slot = 0;
            if (result != CUDA_ERROR_OUT_OF_MEMORY)
                MUST(result);
        }
        if (round % 16 == 0) {
            unsigned long long gpu_ns = 1000;
            void *params[] = {&gpu_ns};
            MUST(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL));
        }
    }
    for (int i = 0; i < LIVE; i++)
        if (live[i] != 0)
            MUST(cuMemFree_v2(live[i]));
    return NULL;
}

int main(void) {
    CUmodule module;
    size_t free_bytes, total;
    MUST(cuInit(0));
    MUST(cuDevicePrimaryCtxRetain(&context, 0));
    MUST(cuCtxSetCurrent(context));
    MUST(cuModuleLoadData(&module, ".version 8.0\n.target sm_80\n.address_size 64\n"
                                   ".visible .entry spin(.param .u64 ns) { ret; }\n"));
    MUST(cuModuleGetFunction(&function, module, "spin"));
    for (int wave = 0; wave < WAVES; wave++) {
        pthread_t threads[THREADS];
        for (size_t i = 0; i < THREADS; i++)
            pthread_create(&threads[i], NULL, work, (void *)(wave * THREADS + i + 1));
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        waitpid(child, NULL, 0);
        for (size_t i = 0; i < THREADS; i++)
            pthread_join(threads[i], NULL);
    }
    MUST(cuCtxSynchronize());
    MUST(cuMemGetInfo_v2(&free_bytes, &total));
    printf("%zu of %zu\n", free_bytes, total);
    return 0;
}
