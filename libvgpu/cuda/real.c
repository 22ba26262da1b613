/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda/real.h"

#include "preload/libc.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* No pointers in these tables: a pointer is written by the loader, in each process that the library is loaded into,
 * whether it has to do with CUDA or not. */
static const struct names {
#define CUDA_API(symbol, base, since, params, args) char symbol[sizeof #symbol];
#define CUDA_API_STREAM(symbol, base, since, params, args)                                                             \
    char symbol[sizeof #symbol], symbol##_ptsz[sizeof #symbol "_ptsz"];
#define CUDA_API_PTSZ CUDA_API_STREAM
#define CUDA_API_PTDS(symbol, base, since, params, args)                                                               \
    char symbol[sizeof #symbol], symbol##_ptds[sizeof #symbol "_ptds"];
#include "abi/cuda_api.def"
#undef CUDA_API
#undef CUDA_API_STREAM
#undef CUDA_API_PTSZ
#undef CUDA_API_PTDS
} names = {
#define CUDA_API(symbol, base, since, params, args)        #symbol,
#define CUDA_API_STREAM(symbol, base, since, params, args) #symbol, #symbol "_ptsz",
#define CUDA_API_PTSZ                                      CUDA_API_STREAM
#define CUDA_API_PTDS(symbol, base, since, params, args)   #symbol, #symbol "_ptds",
#include "abi/cuda_api.def"
#undef CUDA_API
#undef CUDA_API_STREAM
#undef CUDA_API_PTSZ
#undef CUDA_API_PTDS
};

#define ENTRY(symbol, since, per_thread) [VGPU_FN_##symbol] = {offsetof(struct names, symbol), since, per_thread},
const struct vgpu_cuda_entry vgpu__cuda_entries[VGPU_FN_COUNT] = {
#define CUDA_API(symbol, base, since, params, args) ENTRY(symbol, since, false)
#define CUDA_API_STREAM(symbol, base, since, params, args)                                                             \
    ENTRY(symbol, since, false) ENTRY(symbol##_ptsz, since < 7000 ? 7000 : since, true)
#define CUDA_API_PTSZ CUDA_API_STREAM
#define CUDA_API_PTDS(symbol, base, since, params, args)                                                               \
    ENTRY(symbol, since, false) ENTRY(symbol##_ptds, since < 7000 ? 7000 : since, true)
#include "abi/cuda_api.def"
#undef CUDA_API
#undef CUDA_API_STREAM
#undef CUDA_API_PTSZ
#undef CUDA_API_PTDS
};

const uint16_t vgpu__cuda_hooked[VGPU_HOOK_COUNT] = {
#define HOOK(symbol, what)      VGPU_FN_##symbol,
#define HOOK2(symbol, what)     VGPU_FN_##symbol, VGPU_FN_##symbol##_ptsz,
#define HOOK_PTDS(symbol, what) VGPU_FN_##symbol, VGPU_FN_##symbol##_ptds,
#include "cuda/hooks.def"
#undef HOOK
#undef HOOK2
#undef HOOK_PTDS
};

extern const int32_t vgpu__hook_distances[VGPU_HOOK_COUNT]; /* hooks.S: from there to each of them */

const char *vgpu__cuda_symbol(enum vgpu_cuda_function index) {
    return (const char *)&names + vgpu__cuda_entries[index].symbol;
}

vgpu_function vgpu__cuda_hook(int number) {
    return (vgpu_function)((uintptr_t)vgpu__hook_distances + (uintptr_t)(intptr_t)vgpu__hook_distances[number]);
}

vgpu_function vgpu__cuda_real[VGPU_FN_COUNT];

/* Stands in for what the driver lacks. Both ABIs that we build for let a function ignore its arguments. */
static CUresult not_supported(void) {
    return CUDA_ERROR_NOT_SUPPORTED;
}

vgpu_function vgpu__cuda_resolve(enum vgpu_cuda_function index) {
    vgpu_function function = vgpu__libc_driver_symbol("libcuda.so.1", vgpu__cuda_symbol(index));
    if (function == NULL)
        function = (vgpu_function)not_supported;
    __atomic_store_n(&vgpu__cuda_real[index], function, __ATOMIC_RELEASE);
    return function;
}

bool vgpu__cuda_exists(enum vgpu_cuda_function index) {
    return vgpu__cuda_function(index) != (vgpu_function)not_supported;
}

/* One behind the other, each with its end. */
static const char passed[] =
#define REASON(id, text)
#define PASSED(symbol, reason)      #symbol "\0"
#define PASSED_PTSZ(symbol, reason) #symbol "\0" #symbol "_ptsz\0"
#define PASSED_PTDS(symbol, reason) #symbol "\0" #symbol "_ptds\0"
#include "cuda/passed.def"
#undef REASON
#undef PASSED
#undef PASSED_PTSZ
#undef PASSED_PTDS
    ;

static bool is_passed(const char *symbol) {
    for (const char *one = passed; *one != '\0'; one += strlen(one) + 1)
        if (strcmp(one, symbol) == 0)
            return true;
    return false;
}

/* The length of a symbol's name without its version and its kind of default stream: cuFoo of cuFoo_v3_ptsz. */
static size_t base_length(const char *symbol) {
    size_t length = strlen(symbol);
    if (length > 5 && (strcmp(symbol + length - 5, "_ptsz") == 0 || strcmp(symbol + length - 5, "_ptds") == 0))
        length -= 5;
    size_t digits = length;
    while (digits > 0 && symbol[digits - 1] >= '0' && symbol[digits - 1] <= '9')
        digits--;
    return digits < length && digits > 2 && symbol[digits - 1] == 'v' && symbol[digits - 2] == '_' ? digits - 2
                                                                                                   : length;
}

bool vgpu__cuda_is_version_of(const char *symbol, const char *other) {
    size_t length = base_length(symbol);
    return base_length(other) == length && memcmp(symbol, other, length) == 0;
}

bool vgpu__cuda_unknown(const char *symbol) {
    if (symbol[0] != 'c' || symbol[1] != 'u' || symbol[2] < 'A' || symbol[2] > 'Z')
        return false; /* cublas and the like */
    bool like_ours = strstr(symbol, "Alloc") != NULL || strstr(symbol, "Launch") != NULL;
    for (int i = 0; i < VGPU_FN_COUNT; i++)
        if (strcmp(vgpu__cuda_symbol(i), symbol) == 0)
            return false;
    for (int i = 0; i < VGPU_HOOK_COUNT; i++)
        like_ours = like_ours || vgpu__cuda_is_version_of(vgpu__cuda_symbol(vgpu__cuda_hooked[i]), symbol);
    return like_ours && !is_passed(symbol);
}

vgpu_function vgpu__cuda_hook_by_name(const char *symbol) {
    /* A few hundred names, looked up a few hundred times in a process's life, by a filter on the first letters. */
    for (int i = 0; i < VGPU_HOOK_COUNT; i++)
        if (strcmp(vgpu__cuda_symbol(vgpu__cuda_hooked[i]), symbol) == 0)
            return vgpu__cuda_hook(i);
    return NULL;
}

vgpu_function vgpu__cuda_refusal(const char *symbol) {
    return vgpu__cuda_unknown(symbol) ? (vgpu_function)not_supported : NULL;
}
