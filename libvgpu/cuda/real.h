/* SPDX-License-Identifier: Apache-2.0
 *
 * The real CUDA driver: one table of its functions, generated from include/abi/cuda_api.def. Resolved at first use from
 * libcuda.so.1; tests put functions of their own into it.
 *
 *     VGPU_REAL(cuMemAlloc_v2)(&pointer, bytes)
 *
 * A function that the driver does not have is one that returns CUDA_ERROR_NOT_SUPPORTED: never a NULL call.
 */
#ifndef VGPU_CUDA_REAL_H
#define VGPU_CUDA_REAL_H

#include <stdbool.h>
#include <stdint.h>

/* The prototypes of what we export come with default visibility; everything else in the library is hidden. */
#pragma GCC visibility push(default)
#include "abi/cuda.h"
#pragma GCC visibility pop

enum vgpu_cuda_function {
#define CUDA_API(symbol, base, since, params, args)        VGPU_FN_##symbol,
#define CUDA_API_STREAM(symbol, base, since, params, args) VGPU_FN_##symbol, VGPU_FN_##symbol##_ptsz,
#define CUDA_API_PTSZ(symbol, base, since, params, args)   VGPU_FN_##symbol, VGPU_FN_##symbol##_ptsz,
#define CUDA_API_PTDS(symbol, base, since, params, args)   VGPU_FN_##symbol, VGPU_FN_##symbol##_ptds,
#include "abi/cuda_api.def"
#undef CUDA_API
#undef CUDA_API_STREAM
#undef CUDA_API_PTSZ
#undef CUDA_API_PTDS
    VGPU_FN_COUNT
};

/* Pointer types of the twins: the same as of the function itself. */
#define CUDA_API(symbol, base, since, params, args)
#define CUDA_API_STREAM(symbol, base, since, params, args) typedef symbol##_fn symbol##_ptsz_fn;
#define CUDA_API_PTSZ(symbol, base, since, params, args)   typedef symbol##_fn symbol##_ptsz_fn;
#define CUDA_API_PTDS(symbol, base, since, params, args)   typedef symbol##_fn symbol##_ptds_fn;
#include "abi/cuda_api.def"
#undef CUDA_API
#undef CUDA_API_STREAM
#undef CUDA_API_PTSZ
#undef CUDA_API_PTDS

typedef void (*vgpu_function)(void);

struct vgpu_cuda_entry {
    uint16_t symbol; /* where its name is */
    uint16_t since;  /* CUDA version: 1000 * major + 10 * minor */
    bool per_thread; /* the per-thread-default-stream twin */
};

extern const struct vgpu_cuda_entry vgpu__cuda_entries[VGPU_FN_COUNT];
const char *vgpu__cuda_symbol(enum vgpu_cuda_function index);

/* True if two symbols are versions or twins of one function: cuFoo, as cuGetProcAddress calls it, and cuFoo_v3_ptsz. */
bool vgpu__cuda_is_version_of(const char *symbol, const char *other);

/* The real functions; NULL: not resolved yet. Written by vgpu__cuda_resolve, and by tests. */
extern vgpu_function vgpu__cuda_real[VGPU_FN_COUNT];

/* Our hooks by their number in hooks.def, and the functions that they stand for. */
enum vgpu_cuda_hook_number {
#define HOOK(symbol, what)      VGPU_HOOK_##symbol,
#define HOOK2(symbol, what)     VGPU_HOOK_##symbol, VGPU_HOOK_##symbol##_ptsz,
#define HOOK_PTDS(symbol, what) VGPU_HOOK_##symbol, VGPU_HOOK_##symbol##_ptds,
#include "cuda/hooks.def"
#undef HOOK
#undef HOOK2
#undef HOOK_PTDS
    VGPU_HOOK_COUNT
};
extern const uint16_t vgpu__cuda_hooked[VGPU_HOOK_COUNT];
vgpu_function vgpu__cuda_hook(int number);

/* Resolve one function; what stands for "not supported" if the driver lacks it. */
vgpu_function vgpu__cuda_resolve(enum vgpu_cuda_function index);

/* True if the driver itself has the function. */
bool vgpu__cuda_exists(enum vgpu_cuda_function index);

/* The hook of a driver's symbol by its exported name; NULL if it is passed through. Opens nothing. */
vgpu_function vgpu__cuda_hook_by_name(const char *symbol);

/* What stands for a function of the driver's that vgpu__cuda_unknown is true for: it returns CUDA_ERROR_NOT_SUPPORTED.
 * NULL for other names. */
vgpu_function vgpu__cuda_refusal(const char *symbol);

/* True for a name that neither of our tables has (hooks.def, passed.def), and that is a newer version of one that we
 * hook, or has "Alloc" or "Launch" in it: passing it through could let memory or work past the share. */
bool vgpu__cuda_unknown(const char *symbol);

static inline vgpu_function vgpu__cuda_function(enum vgpu_cuda_function index) {
    vgpu_function function = __atomic_load_n(&vgpu__cuda_real[index], __ATOMIC_ACQUIRE);
    return __builtin_expect(function != NULL, 1) ? function : vgpu__cuda_resolve(index);
}

#define VGPU_REAL(symbol) ((symbol##_fn)vgpu__cuda_function(VGPU_FN_##symbol))

#endif
