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
#define HOOK(symbol, what)      [VGPU_FN_##symbol] = (vgpu_function)symbol,
#define HOOK2(symbol, what)     HOOK(symbol, what) HOOK(symbol##_ptsz, what)
#define HOOK_PTDS(symbol, what) HOOK(symbol, what) HOOK(symbol##_ptds, what)
#include "cuda/hooks.def"
#undef HOOK
#undef HOOK2
#undef HOOK_PTDS
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

static const char *const passed[] = {
#define REASON(id, text)
#define PASSED(symbol, reason)      #symbol,
#define PASSED_PTSZ(symbol, reason) #symbol, #symbol "_ptsz",
#define PASSED_PTDS(symbol, reason) #symbol, #symbol "_ptds",
#include "cuda/passed.def"
#undef REASON
#undef PASSED
#undef PASSED_PTSZ
#undef PASSED_PTDS
};

/* Is `symbol` a version of `base`: cuFoo, cuFoo_v3, cuFoo_ptsz, cuFoo_v3_ptsz? */
static bool is_version_of(const char *symbol, const char *base) {
    size_t length = strlen(base);
    if (strncmp(symbol, base, length) != 0)
        return false;
    const char *rest = symbol + length;
    if (rest[0] == '_' && rest[1] == 'v' && rest[2] >= '0' && rest[2] <= '9')
        for (rest += 2; *rest >= '0' && *rest <= '9';)
            rest++;
    return rest[0] == '\0' || strcmp(rest, "_ptsz") == 0 || strcmp(rest, "_ptds") == 0;
}

bool vgpu__cuda_unknown(const char *symbol) {
    if (symbol[0] != 'c' || symbol[1] != 'u' || symbol[2] < 'A' || symbol[2] > 'Z')
        return false; /* cublas and the like */
    bool like_ours = strstr(symbol, "Alloc") != NULL || strstr(symbol, "Launch") != NULL;
    for (int i = 0; i < VGPU_FN_COUNT; i++) {
        if (strcmp(vgpu__cuda_entries[i].symbol, symbol) == 0)
            return false;
        like_ours |= vgpu__cuda_hooks[i] != NULL && is_version_of(symbol, vgpu__cuda_entries[i].base);
    }
    for (size_t i = 0; like_ours && i < sizeof passed / sizeof *passed; i++)
        if (strcmp(passed[i], symbol) == 0)
            return false;
    return like_ours;
}

vgpu_function vgpu__cuda_hook_by_name(const char *symbol) {
    /* A few hundred names, looked up a few hundred times in a process's life, by a filter on the first letters. */
    for (int i = 0; i < VGPU_FN_COUNT; i++)
        if (vgpu__cuda_hooks[i] != NULL && strcmp(vgpu__cuda_entries[i].symbol, symbol) == 0)
            return vgpu__cuda_hooks[i];
    return vgpu__cuda_unknown(symbol) ? (vgpu_function)not_supported : NULL;
}
