/* SPDX-License-Identifier: Apache-2.0 */
/* A runtime that is linked statically into its program, and finds the driver as such runtimes do: it opens
 * libcuda.so.1, looks up the one function that looks up the others, and asks that for each by name and version. */
#include "abi/cuda.h"

#include <dlfcn.h>
#include <stddef.h>

int runtime_allocate(CUdeviceptr *pointer, size_t bytes);
int runtime_start(void);

static cuGetProcAddress_v2_fn look_up;

static void *find(const char *name, int version) {
    void *function = NULL;
    return look_up(name, &function, version, 0, NULL) == CUDA_SUCCESS ? function : NULL;
}

int runtime_start(void) {
    CUcontext context;
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    void *first = driver != NULL ? dlsym(driver, "cuGetProcAddress_v2") : NULL;
    if (first == NULL)
        return -1;
    look_up = (cuGetProcAddress_v2_fn)first;
    look_up = (cuGetProcAddress_v2_fn)find("cuGetProcAddress", 12000); /* which may look up itself */
    if (look_up == NULL || ((cuInit_fn)find("cuInit", 2000))(0) != CUDA_SUCCESS)
        return -2;
    if (((cuDevicePrimaryCtxRetain_fn)find("cuDevicePrimaryCtxRetain", 7000))(&context, 0) != CUDA_SUCCESS)
        return -3;
    return ((cuCtxSetCurrent_fn)find("cuCtxSetCurrent", 4000))(context);
}

int runtime_allocate(CUdeviceptr *pointer, size_t bytes) {
    return ((cuMemAlloc_v2_fn)find("cuMemAlloc", 3020))(pointer, bytes);
}
