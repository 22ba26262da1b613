/* SPDX-License-Identifier: Apache-2.0
 *
 * A program that reaches the driver in the way named by its argument, asks for more than its share has (the second
 * argument, in bytes), and prints what cuMemAlloc said. Linked with libcuda; WAY "next" goes through c/next.c,
 * preloaded behind libvgpu.
 */
#include "abi/cuda.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *(*dlsym_fn)(void *, const char *);

CUresult next_alloc(CUdeviceptr *dptr, size_t bytes) __attribute__((weak));

static void *library(void) {
    return dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
}

static void *by_proc_address(cuGetProcAddress_v2_fn look_up, unsigned long long flags) {
    void *pointer = NULL;
    CUdriverProcAddressQueryResult status;
    look_up("cuMemAlloc", &pointer, 12000, flags, &status);
    return pointer;
}

static void *by_old_proc_address(void) {
    void *pointer = NULL;
    cuGetProcAddress("cuMemAlloc", &pointer, 11030, 0);
    return pointer;
}

/* The pointer to cuGetProcAddress that cuGetProcAddress itself gives: the CUDA runtime does this. */
static void *by_proc_address_of_proc_address(void) {
    void *pointer = NULL;
    CUdriverProcAddressQueryResult status;
    cuGetProcAddress_v2_fn first = (cuGetProcAddress_v2_fn)dlsym(library(), "cuGetProcAddress_v2");
    first("cuGetProcAddress", &pointer, 12000, 0, &status);
    return by_proc_address((cuGetProcAddress_v2_fn)pointer, 0);
}

static void *find(const char *way) {
    if (strcmp(way, "linked") == 0)
        return (void *)cuMemAlloc_v2;
    if (strcmp(way, "dlsym") == 0)
        return dlsym(library(), "cuMemAlloc_v2");
    if (strcmp(way, "dlvsym") == 0)
        return dlvsym(dlopen("libversioned.so", RTLD_NOW), "cuMemAlloc_v2", "DRIVER_1");
    if (strcmp(way, "default") == 0)
        return dlsym(RTLD_DEFAULT, "cuMemAlloc_v2");
    if (strcmp(way, "dlsym-of-dlsym") == 0)
        return ((dlsym_fn)dlsym(RTLD_DEFAULT, "dlsym"))(library(), "cuMemAlloc_v2");
    if (strcmp(way, "next") == 0)
        return (void *)next_alloc;
    if (strcmp(way, "proc-address") == 0)
        return by_proc_address(cuGetProcAddress_v2, 0);
    if (strcmp(way, "proc-address-per-thread") == 0)
        return by_proc_address(cuGetProcAddress_v2, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM);
    if (strcmp(way, "proc-address-v1") == 0)
        return by_old_proc_address();
    if (strcmp(way, "proc-address-of-proc-address") == 0)
        return by_proc_address_of_proc_address();
    return NULL;
}

int main(int argc, char **argv) {
    CUcontext context;
    CUdeviceptr pointer;
    cuMemAlloc_v2_fn alloc = argc == 3 ? (cuMemAlloc_v2_fn)find(argv[1]) : NULL;
    if (alloc == NULL || cuInit(0) != CUDA_SUCCESS || cuDevicePrimaryCtxRetain(&context, 0) != CUDA_SUCCESS ||
        cuCtxSetCurrent(context) != CUDA_SUCCESS)
        return 2;
    printf("%d\n", alloc(&pointer, strtoull(argv[2], NULL, 10)));
    return 0;
}
