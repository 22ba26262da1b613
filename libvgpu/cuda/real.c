/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda/real.h"

#include "preload/libc.h"

#include <stddef.h>
#include <string.h>

#define ENTRY(symbol, base, since, per_thread) [VGPU_FN_##symbol] = {#symbol, #base, since, per_thread},
const struct vgpu_cuda_entry vgpu__cuda_entries[VGPU_FN_COUNT] = {
#define CUDA_API(symbol, base, since, params, args) ENTRY(symbol, base, since, false)
#define CUDA_API_STREAM(symbol, base, since, params, args)                                                             \
    ENTRY(symbol, base, since, false) ENTRY(symbol##_ptsz, base, since < 7000 ? 7000 : since, true)
#define CUDA_API_PTSZ CUDA_API_STREAM
#define CUDA_API_PTDS(symbol, base, since, params, args)                                                               \
    ENTRY(symbol, base, since, false) ENTRY(symbol##_ptds, base, since < 7000 ? 7000 : since, true)
#include "abi/cuda_api.def"
#undef CUDA_API
#undef CUDA_API_STREAM
#undef CUDA_API_PTSZ
#undef CUDA_API_PTDS
};

const vgpu_function vgpu__cuda_hooks[VGPU_FN_COUNT] = {
#define HOOK(symbol)  [VGPU_FN_##symbol] = (vgpu_function)symbol,
#define HOOK2(symbol) HOOK(symbol) HOOK(symbol##_ptsz)
#include "cuda/hooks.def"
#undef HOOK
#undef HOOK2
};

vgpu_function vgpu__cuda_real[VGPU_FN_COUNT];

/* Stands in for what the driver lacks. Both ABIs that we build for let a function ignore its arguments. */
static CUresult not_supported(void) {
    return CUDA_ERROR_NOT_SUPPORTED;
}

vgpu_function vgpu__cuda_resolve(enum vgpu_cuda_function index) {
    vgpu_function function = vgpu__libc_driver_symbol("libcuda.so.1", vgpu__cuda_entries[index].symbol);
    if (function == NULL)
        function = (vgpu_function)not_supported;
    __atomic_store_n(&vgpu__cuda_real[index], function, __ATOMIC_RELEASE);
    return function;
}

bool vgpu__cuda_exists(enum vgpu_cuda_function index) {
    return vgpu__cuda_function(index) != (vgpu_function)not_supported;
}

vgpu_function vgpu__cuda_hook_by_name(const char *symbol) {
    /* A few hundred names, looked up a few hundred times in a process's life, by a filter on the first letters. */
    for (int i = 0; i < VGPU_FN_COUNT; i++)
        if (vgpu__cuda_hooks[i] != NULL && strcmp(vgpu__cuda_entries[i].symbol, symbol) == 0)
            return vgpu__cuda_hooks[i];
    return NULL;
}
