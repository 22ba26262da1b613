/* SPDX-License-Identifier: Apache-2.0
 *
 * Past the share: memory on the host that the device reaches over the bus. For the files of this folder.
 */
#ifndef VGPU_CUDA_OVERSUBSCRIBE_H
#define VGPU_CUDA_OVERSUBSCRIBE_H

#include "cuda/device.h"

/* Ask, before the driver starts and reads it, for a setting that would have all managed memory on the device. */
void vgpu__oversubscribe_first_look(void);

/* Allocate what the share has no room for, if it allows that: managed memory that stays on the host. `refused` is what
 * the caller would return otherwise, and what is returned where it is not allowed or not possible. */
CUresult vgpu__oversubscribe(CUdeviceptr *dptr, uint64_t bytes, CUresult refused);

/* True if this process has had such memory: VGPU_KIND_HOSTED. */
bool vgpu__oversubscribed(void);

#endif
