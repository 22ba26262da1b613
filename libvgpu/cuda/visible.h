/* SPDX-License-Identifier: Apache-2.0
 *
 * Which devices CUDA shows: those that this process has a share of, as NVML has them (nvml/devices.c), in the same
 * order.
 *
 * The driver itself can do this: it reads CUDA_VISIBLE_DEVICES when it starts. Where there are cards without a share,
 * it is started with an environment of its own, in which that variable names the cards with a share, less what the
 * application's own setting leaves out. The application's environment stays as it is (docs/adr/0005).
 */
#ifndef VGPU_CUDA_VISIBLE_H
#define VGPU_CUDA_VISIBLE_H

#include "core/share.h"

/* Around the driver's cuInit. begin keeps in *environment what end takes (NULL for a program that has cleared its own);
 * false: all cards that there are have a share, nothing was changed and nothing is to be ended. */
bool vgpu__visible_begin(struct vgpu_process *process, char ***environment);
void vgpu__visible_end(char **environment);

#endif
