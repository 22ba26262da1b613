/* SPDX-License-Identifier: Apache-2.0
 *
 * The exported functions, made from cuda_api.def: each asks for injected faults and then calls the stub_ function of
 * its name; a _ptsz twin makes stream 0 the calling thread's own. And cuGetProcAddress, which finds them by name,
 * version and kind of default stream.
 */
#include "work.h"

#include <string.h>

#define EXPORT __attribute__((visibility("default")))

/* What other threads of the application do in the middle of a call: set by a test's program, of itself. */
EXPORT struct {
    const char *function; /* in whose calls; NULL: in none */
    void (*before)(void); /* when the driver has not yet looked at what it is given */
    void (*after)(void);  /* when it has given what it made */
} vgpu_stub_between;

/* `call` as its last act is a jump, as it is in the real driver. */
#define EXPORTED(symbol, call)                                                                                         \
    if (__builtin_expect(faults_from_environment || faults_armed_on_cards(), 0)) {                                     \
        CUresult fault_;                                                                                               \
        if (faults_hit(#symbol, &fault_))                                                                              \
            return fault_;                                                                                             \
    }                                                                                                                  \
    if (__builtin_expect(vgpu_stub_between.function != NULL, 0) && strcmp(vgpu_stub_between.function, #symbol) == 0) { \
        if (vgpu_stub_between.before != NULL)                                                                          \
            vgpu_stub_between.before();                                                                                \
        CUresult result_ = call;                                                                                       \
        if (vgpu_stub_between.after != NULL)                                                                           \
            vgpu_stub_between.after();                                                                                 \
        return result_;                                                                                                \
    }                                                                                                                  \
    return call;

#define CUDA_API(symbol, base, since, params, args)                                                                    \
    EXPORT CUresult symbol params {                                                                                    \
        EXPORTED(symbol, stub_##symbol args)                                                                           \
    }
#define CUDA_API_STREAM(symbol, base, since, params, args)                                                             \
    CUDA_API(symbol, base, since, params, args)                                                                        \
    EXPORT CUresult symbol##_ptsz params {                                                                             \
        hStream = hStream ? hStream : CU_STREAM_PER_THREAD;                                                            \
        EXPORTED(symbol, stub_##symbol args)                                                                           \
    }
#define CUDA_API_PTSZ(symbol, base, since, params, args)                                                               \
    CUDA_API(symbol, base, since, params, args)                                                                        \
    EXPORT CUresult symbol##_ptsz params {                                                                             \
        EXPORTED(symbol, stub_##symbol##_ptsz args)                                                                    \
    }
#define CUDA_API_PTDS(symbol, base, since, params, args)                                                               \
    CUDA_API(symbol, base, since, params, args)                                                                        \
    static CUresult symbol##_per_thread params {                                                                       \
        synchronous_stream = CU_STREAM_PER_THREAD;                                                                     \
        CUresult result = stub_##symbol args;                                                                          \
        synchronous_stream = NULL;                                                                                     \
        return result;                                                                                                 \
    }                                                                                                                  \
    EXPORT CUresult symbol##_ptds params {                                                                             \
        EXPORTED(symbol, symbol##_per_thread args)                                                                     \
    }
#include "abi/cuda_api.def"
#undef CUDA_API
#undef CUDA_API_STREAM
#undef CUDA_API_PTSZ
#undef CUDA_API_PTDS

/* ---- A driver newer than any: a version and a name of CUDA 99 that take memory like cuMemAlloc_v2 does ---- */

EXPORT CUresult cuMemAlloc_v99(CUdeviceptr *dptr, size_t bytes, unsigned long long newly_needed);
EXPORT CUresult cuMemAllocTomorrow(CUdeviceptr *dptr, size_t bytes);

CUresult cuMemAlloc_v99(CUdeviceptr *dptr, size_t bytes, unsigned long long newly_needed) {
    (void)newly_needed;
    return stub_cuMemAlloc_v2(dptr, bytes);
}

CUresult cuMemAllocTomorrow(CUdeviceptr *dptr, size_t bytes) {
    return stub_cuMemAlloc_v2(dptr, bytes);
}

/* ---- cuGetProcAddress ---- */

struct entry {
    const char *base;
    int since;
    void *function, *per_thread;
};

static const struct entry entries[] = {
    {"cuMemAlloc", 99000, (void *)cuMemAlloc_v99, NULL},
    {"cuMemAllocTomorrow", 99000, (void *)cuMemAllocTomorrow, NULL},
#define CUDA_API(symbol, base, since, params, args)        {#base, since, (void *)symbol, NULL},
#define CUDA_API_STREAM(symbol, base, since, params, args) {#base, since, (void *)symbol, (void *)symbol##_ptsz},
#define CUDA_API_PTSZ(symbol, base, since, params, args)   {#base, since, (void *)symbol, (void *)symbol##_ptsz},
#define CUDA_API_PTDS(symbol, base, since, params, args)   {#base, since, (void *)symbol, (void *)symbol##_ptds},
#include "abi/cuda_api.def"
};

/* The newest version of the function that the asked CUDA version knows. */
CUresult stub_cuGetProcAddress_v2(const char *name, void **pfn, int version, unsigned long long flags,
                                  CUdriverProcAddressQueryResult *status) {
    REQUIRE(name && pfn && flags <= 2, CUDA_ERROR_INVALID_VALUE);
    const struct entry *best = NULL;
    bool known = false;
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++) {
        if (strcmp(entries[i].base, name) != 0)
            continue;
        known = true;
        if (entries[i].since <= version && (!best || entries[i].since > best->since))
            best = &entries[i];
    }
    bool per_thread = flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
    *pfn = !best ? NULL : per_thread && best->per_thread ? best->per_thread : best->function;
    if (status)
        *status = best    ? CU_GET_PROC_ADDRESS_SUCCESS
                  : known ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
                          : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    /* With a place for the status, not finding is no error. */
    return best || status ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

CUresult stub_cuGetProcAddress(const char *name, void **pfn, int version, unsigned long long flags) {
    return stub_cuGetProcAddress_v2(name, pfn, version, flags, NULL);
}
