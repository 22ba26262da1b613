/* SPDX-License-Identifier: Apache-2.0 */
/* Opens the gate that stands in the place of the driver's libraries; see gate/gate.c. */
#include "cuda/real.h"
#include "gate/gate.h"
#include "nvml/real.h"
#include "preload/libc.h"

#include <string.h>

void vgpu_open_gate(const char *library, const struct vgpu_gate_slot *slots, size_t count) {
    bool cuda = strcmp(library, "libcuda.so.1") == 0;
    for (size_t i = 0; i < count; i++) {
        void *target =
            cuda ? (void *)vgpu__cuda_hook_by_name(slots[i].symbol) : (void *)vgpu__nvml_hook_by_name(slots[i].symbol);
        if (target == NULL)
            target = (void *)vgpu__libc_driver_symbol(library, slots[i].symbol);
        if (target != NULL)
            *slots[i].target = target;
    }
}
