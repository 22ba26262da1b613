/* SPDX-License-Identifier: Apache-2.0
 *
 * The real NVML: one table of its functions, as cuda/real.h has it for the driver.
 */
#ifndef VGPU_NVML_REAL_H
#define VGPU_NVML_REAL_H

#pragma GCC visibility push(default)
#include "abi/nvml.h"
#pragma GCC visibility pop

enum vgpu_nvml_function {
#define NVML_API(symbol, params) VGPU_FN_##symbol,
#include "abi/nvml_api.def"
#undef NVML_API
    VGPU_NVML_COUNT
};

typedef void (*vgpu_nvml_pointer)(void);

/* The real functions; NULL: not resolved yet. */
extern vgpu_nvml_pointer vgpu__nvml_real[VGPU_NVML_COUNT];

/* Resolve one function; what answers NVML_ERROR_FUNCTION_NOT_FOUND if the library lacks it. */
vgpu_nvml_pointer vgpu__nvml_resolve(enum vgpu_nvml_function index);

/* The hook of an exported name; NULL if it is passed through. */
vgpu_nvml_pointer vgpu__nvml_hook_by_name(const char *symbol);

static inline vgpu_nvml_pointer vgpu__nvml_pointer(enum vgpu_nvml_function index) {
    vgpu_nvml_pointer function = __atomic_load_n(&vgpu__nvml_real[index], __ATOMIC_ACQUIRE);
    return function != NULL ? function : vgpu__nvml_resolve(index);
}

/* Start NVML for the library itself: no nvmlShutdown of the application ends it. */
nvmlReturn_t vgpu__nvml_start(void);

#define VGPU_NVML(symbol) ((symbol##_fn)vgpu__nvml_pointer(VGPU_FN_##symbol))

#endif
