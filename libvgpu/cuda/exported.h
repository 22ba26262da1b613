/* SPDX-License-Identifier: Apache-2.0
 *
 * File descriptors that stand for exported memory, and keep it: one is open as long as a duplicate of it is, in
 * whatever process. For vmm.c.
 *
 * A descriptor gets a lock (F_OFD_SETLK) on bytes that no other has, and ends with it, which a second description of
 * the same file can see. The driver uses no such locks.
 */
#ifndef VGPU_CUDA_EXPORTED_H
#define VGPU_CUDA_EXPORTED_H

#include <stdbool.h>

struct vgpu__exported; /* a list of them; NULL: empty */

/* Begin to watch a descriptor. If that cannot be, it counts as open until the process ends. */
void vgpu__exported_add(struct vgpu__exported **list, int descriptor);

/* True if one may be open anywhere. Those that are not are forgotten. */
bool vgpu__exported_open(struct vgpu__exported **list);

#endif
