/* SPDX-License-Identifier: Apache-2.0 */
#include "nvml/real.h"

#include "nvml/refused.h"
#include "preload/libc.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Without pointers, which the loader would have to write in each process (cuda/real.c). */
static const struct names {
#define NVML_API(symbol, params) char symbol[sizeof #symbol];
#include "abi/nvml_api.def"
#undef NVML_API
} names = {
#define NVML_API(symbol, params) #symbol,
#include "abi/nvml_api.def"
#undef NVML_API
};

static const uint16_t symbols[VGPU_NVML_COUNT] = {
#define NVML_API(symbol, params) [VGPU_FN_##symbol] = offsetof(struct names, symbol),
#include "abi/nvml_api.def"
#undef NVML_API
};

static const char *symbol_of(enum vgpu_nvml_function index) {
    return (const char *)&names + symbols[index];
}

static const vgpu_nvml_pointer hooks[VGPU_NVML_COUNT] = {
#define HOOK(symbol) [VGPU_FN_##symbol] = (vgpu_nvml_pointer)symbol,
#define REFUSED(symbol)
#include "nvml/hooks.def"
#undef HOOK
#undef REFUSED
};

vgpu_nvml_pointer vgpu__nvml_real[VGPU_NVML_COUNT];

static nvmlReturn_t not_found(void) {
    return NVML_ERROR_FUNCTION_NOT_FOUND;
}

vgpu_nvml_pointer vgpu__nvml_resolve(enum vgpu_nvml_function index) {
    vgpu_nvml_pointer function = vgpu__libc_driver_symbol("libnvidia-ml.so.1", symbol_of(index));
    if (function == NULL)
        function = (vgpu_nvml_pointer)not_found;
    __atomic_store_n(&vgpu__nvml_real[index], function, __ATOMIC_RELEASE);
    return function;
}

vgpu_nvml_pointer vgpu__nvml_hook_by_name(const char *symbol) {
    for (int i = 0; i < VGPU_NVML_COUNT; i++)
        if (hooks[i] != NULL && strcmp(symbol_of(i), symbol) == 0)
            return hooks[i];
    return vgpu__nvml_refused(symbol);
}
