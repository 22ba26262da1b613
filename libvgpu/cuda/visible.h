/* SPDX-License-Identifier: Apache-2.0
 *
 * Which devices CUDA shows: those that this process has a share of, as NVML has them (nvml/devices.c), in the same
 * order.
 *
 * The driver itself can do this: it reads CUDA_VISIBLE_DEVICES when it starts, and nothing else tells it. Where there
 * are cards without a share, that variable names the cards with a share while the driver starts, less what the
 * application's own setting leaves out; then it is what it was (docs/adr/0005). It is changed by the C library's own
 * functions: what other threads set meanwhile stays.
 */
#ifndef VGPU_CUDA_VISIBLE_H
#define VGPU_CUDA_VISIBLE_H

#include "core/share.h"

/* "NAME=value" as it stands in the environment; NULL: not set. */
struct vgpu_setting {
    char *before, *ours;
};

/* Around the driver's cuInit. False: all cards that there are have a share, nothing was changed and nothing is to be
 * ended. */
bool vgpu__visible_begin(struct vgpu_process *process, struct vgpu_setting *setting);
void vgpu__visible_end(const struct vgpu_setting *setting);

#endif
