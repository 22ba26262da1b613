/* SPDX-License-Identifier: Apache-2.0 */
#include "nvml/real.h"

#include "preload/libc.h"

#include <stddef.h>
#include <string.h>

static const char *const symbols[VGPU_NVML_COUNT] = {
#define NVML_API(symbol, params) [VGPU_FN_##symbol] = #symbol,
#include "abi/nvml_api.def"
#undef NVML_API
};

static const vgpu_nvml_pointer hooks[VGPU_NVML_COUNT] = {
#define HOOK(symbol) [VGPU_FN_##symbol] = (vgpu_nvml_pointer)symbol,
#include "nvml/hooks.def"
#undef HOOK
};

vgpu_nvml_pointer vgpu__nvml_real[VGPU_NVML_COUNT];

static nvmlReturn_t not_found(void) {
    return NVML_ERROR_FUNCTION_NOT_FOUND;
}

vgpu_nvml_pointer vgpu__nvml_resolve(enum vgpu_nvml_function index) {
    vgpu_nvml_pointer function = vgpu__libc_driver_symbol("libnvidia-ml.so.1", symbols[index]);
    if (function == NULL)
        function = (vgpu_nvml_pointer)not_found;
    __atomic_store_n(&vgpu__nvml_real[index], function, __ATOMIC_RELEASE);
    return function;
}

vgpu_nvml_pointer vgpu__nvml_hook_by_name(const char *symbol) {
    for (int i = 0; i < VGPU_NVML_COUNT; i++)
        if (hooks[i] != NULL && strcmp(symbols[i], symbol) == 0)
            return hooks[i];
    return NULL;
}
