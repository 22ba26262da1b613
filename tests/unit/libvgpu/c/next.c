/* SPDX-License-Identifier: Apache-2.0
 *
 * Somebody else's preloaded library: looks behind itself with RTLD_NEXT, in its constructor and when called.
 */
#include "abi/cuda.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static cuMemAlloc_v2_fn next;
static void *(*next_malloc)(size_t);

__attribute__((constructor)) static void start(void) {
    next = (cuMemAlloc_v2_fn)dlsym(RTLD_NEXT, "cuMemAlloc_v2");
    next_malloc = (void *(*)(size_t))dlsym(RTLD_NEXT, "malloc");
}

/* RTLD_NEXT must mean "behind this library": its own malloc would be found again otherwise, and call itself for ever.
 */
void *malloc(size_t bytes) {
    static char early[4096];
    static size_t used;
    if (next_malloc != NULL)
        return next_malloc(bytes);
    used += (bytes + 15) / 16 * 16;
    return used <= sizeof early ? early + used - (bytes + 15) / 16 * 16 : NULL;
}

CUresult next_alloc(CUdeviceptr *dptr, size_t bytes);
CUresult next_alloc(CUdeviceptr *dptr, size_t bytes) {
    return next(dptr, bytes);
}
