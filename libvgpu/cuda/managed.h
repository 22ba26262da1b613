/* SPDX-License-Identifier: Apache-2.0
 *
 * Managed memory that lies on another device than the one that it was allocated for. For the files of this folder.
 *
 * It may come back to its own whenever that touches it. So it stays charged there, and is charged in full on each
 * device that it was moved to by name (prefetching, a preferred location), until it is freed: a charge of kind
 * VGPU_KIND_VISITING with the key address + 1 + ordinal.
 */
#ifndef VGPU_CUDA_MANAGED_H
#define VGPU_CUDA_MANAGED_H

#include "core/ptrmap.h"
#include "cuda/device.h"

struct vgpu__visits {
    uint32_t count;
    struct vgpu_charge charges[VGPU_MAX_ORDINALS];
};

/* Around the driver's call that frees `dptr`, as vgpu__give and vgpu__given. */
void vgpu__visits_give(CUdeviceptr dptr, struct vgpu__visits *visits);
void vgpu__visits_given(const struct vgpu__visits *visits, CUresult result);

/* In a fork's child. */
void vgpu__managed_forget(void);

#endif
