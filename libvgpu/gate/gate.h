/* SPDX-License-Identifier: Apache-2.0 */
/* What the gate (gate.c) and libvgpu (preload/opening.c) say to each other. */
#ifndef VGPU_GATE_GATE_H
#define VGPU_GATE_GATE_H

#include <stdbool.h>
#include <stddef.h>

/* A function that the gate has, and where it jumps. */
struct vgpu_gate_slot {
    const char *symbol;
    void **target;
};

/* Points each slot at our hook, else at the driver's own function; one that the driver lacks stays as it is. */
__attribute__((visibility("default"))) void vgpu_open_gate(const char *library, const struct vgpu_gate_slot *slots,
                                                           size_t count);

/* In libvgpu: whether there is a gate of that library in this process, and whether an address lies in it. */
bool vgpu__gate_is_open(const char *library);
bool vgpu__gate_has(const char *library, const void *address);

#endif
