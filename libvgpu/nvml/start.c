/* SPDX-License-Identifier: Apache-2.0
 *
 * Start and end of NVML, which counts how often it was started and ends with the last end. The library needs it to the
 * end of the process (cuda/footprint.c), so the application gives back its own starts and never those of the library.
 */
#include "core/share.h"
#include "nvml/real.h"

static int starts; /* by the application; a fork's child has them too, as NVML does */

/* Above 0 while this thread starts NVML: one of its functions may come to another by way of our hook. */
static __thread int inside __attribute__((tls_model("initial-exec")));

nvmlReturn_t vgpu__nvml_start(void) {
    inside++;
    nvmlReturn_t result = VGPU_NVML(nvmlInit_v2)();
    inside--;
    return result;
}

#define START(symbol, ...)                                                                                             \
    do {                                                                                                               \
        if (vgpu_process() == NULL)                                                                                    \
            return NVML_ERROR_NO_PERMISSION;                                                                           \
        inside++;                                                                                                      \
        nvmlReturn_t result = VGPU_NVML(symbol)(__VA_ARGS__);                                                          \
        inside--;                                                                                                      \
        if (result == NVML_SUCCESS && inside == 0)                                                                     \
            __atomic_fetch_add(&starts, 1, __ATOMIC_RELAXED);                                                          \
        return result;                                                                                                 \
    } while (0)

nvmlReturn_t nvmlInit(void) {
    START(nvmlInit);
}

nvmlReturn_t nvmlInit_v2(void) {
    START(nvmlInit_v2);
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    START(nvmlInitWithFlags, flags);
}

nvmlReturn_t nvmlShutdown(void) {
    int own = __atomic_load_n(&starts, __ATOMIC_RELAXED);
    do {
        if (own == 0)
            return NVML_ERROR_UNINITIALIZED;
    } while (!__atomic_compare_exchange_n(&starts, &own, own - 1, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    nvmlReturn_t result = VGPU_NVML(nvmlShutdown)();
    if (result != NVML_SUCCESS)
        __atomic_fetch_add(&starts, 1, __ATOMIC_RELAXED);
    return result;
}
