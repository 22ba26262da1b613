/* SPDX-License-Identifier: Apache-2.0 */
/* Opens the gate that stands in the place of the driver's libraries; see gate/gate.c. */
#include "cuda/real.h"
#include "gate/gate.h"
#include "nvml/real.h"
#include "preload/libc.h"

#include <dlfcn.h>
#include <string.h>

typedef int (*dladdr_function)(const void *address, Dl_info *info);

/* Where each gate lies; NULL: there is none. */
static void *gates[2];

static bool is_cuda(const char *library) {
    return strcmp(library, "libcuda.so.1") == 0;
}

static void *object_of(const void *address) {
    static void *found;
    dladdr_function ask = (dladdr_function)vgpu__libc_function("dladdr", &found);
    Dl_info info;
    return ask != NULL && address != NULL && ask(address, &info) != 0 ? info.dli_fbase : NULL;
}

bool vgpu__gate_is_open(const char *library) {
    return __atomic_load_n(&gates[is_cuda(library)], __ATOMIC_ACQUIRE) != NULL;
}

bool vgpu__gate_has(const char *library, const void *address) {
    return vgpu__gate_is_open(library) && gates[is_cuda(library)] == object_of(address);
}

void vgpu_open_gate(const char *library, const struct vgpu_gate_slot *slots, size_t count) {
    bool cuda = is_cuda(library);
    __atomic_store_n(&gates[cuda], object_of(slots), __ATOMIC_RELEASE);
    for (size_t i = 0; i < count; i++) {
        void *target =
            cuda ? (void *)vgpu__cuda_hook_by_name(slots[i].symbol) : (void *)vgpu__nvml_hook_by_name(slots[i].symbol);
        if (target == NULL)
            target = (void *)vgpu__libc_driver_symbol(library, slots[i].symbol);
        if (target != NULL)
            *slots[i].target = target;
    }
}
