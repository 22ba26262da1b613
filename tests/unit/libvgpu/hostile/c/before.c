/* SPDX-License-Identifier: Apache-2.0
 *
 * A tenant's own preloaded library, before ours: it takes the driver's names and forwards them to whatever comes next.
 */
#include "abi/cuda.h"

#include <dlfcn.h>

CUresult cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytes) {
    return ((cuMemAlloc_v2_fn)dlsym(RTLD_NEXT, "cuMemAlloc_v2"))(dptr, bytes);
}

CUresult cuInit(unsigned int flags) {
    return ((cuInit_fn)dlsym(RTLD_NEXT, "cuInit"))(flags);
}

/* And the look-up itself. */
void *dlsym(void *restrict handle, const char *restrict name) {
    void *(*next)(void *, const char *) = (void *(*)(void *, const char *))dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5");
    return next(handle, name);
}
