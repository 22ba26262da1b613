/* SPDX-License-Identifier: Apache-2.0
 *
 * Reserve, then allocate: what all hooks that take device memory do. For the files of this folder.
 *
 *     struct vgpu__taking taking;
 *     CUresult result = vgpu__take(&taking, bytes);       refused? the driver is not called
 *     if (result == CUDA_SUCCESS) {
 *         VGPU_CALL(result, cuMemAlloc_v2, VGPU_OUT(dptr, made), bytes);
 *         result = vgpu__taken(&taking, result, VGPU_KIND_POINTER, made);
 *     }
 */
#ifndef VGPU_CUDA_MEMORY_H
#define VGPU_CUDA_MEMORY_H

#include "core/ptrmap.h"
#include "cuda/device.h"
#include "cuda/footprint.h"
#include "cuda/rounding.h"

struct vgpu__taking {
    struct vgpu_device *device; /* NULL: not charged (a call from inside the driver) */
    CUcontext context;          /* whose end frees it; NULL: nobody's */
    uint64_t bytes;             /* reserved */
    uint64_t small_bytes;       /* asked for, of what may share a block with others (blocks.h); 0: it does not */
    uint64_t watched_bytes;     /* asked for, if it is watched what the driver makes of them */
    struct vgpu__rounding before;
};

/* Reserve on the current context's device. CUDA_ERROR_OUT_OF_MEMORY over the limit. */
CUresult vgpu__take(struct vgpu__taking *taking, uint64_t bytes);

/* The same on a given device, for memory that no context owns. */
CUresult vgpu__take_on(struct vgpu__taking *taking, CUdevice ordinal, uint64_t bytes);

/* What the driver said: give the reservation back if it failed, else remember it under `key`. */
CUresult vgpu__taken(struct vgpu__taking *taking, CUresult result, enum vgpu_kind kind, uint64_t key);

/* A free, around the driver's call: take the charge of `key` out of the table (the driver may hand the key out again at
 * once), then give it back, or remember it again if the driver failed. The driver frees before the books know: a kill
 * in between leaves bytes charged to a dead process, and never bytes that are free and in use at once. */
struct vgpu_charge vgpu__give(enum vgpu_kind kind, uint64_t key);
CUresult vgpu__given(const struct vgpu_charge *charge, CUresult result);

/* Reserve, and where that fails take back what the pools keep for later and try again. VGPU_OK or VGPU_OVER. */
int vgpu__reserve(struct vgpu_device *device, uint64_t bytes);

/* The driver has freed everything of an owner of charges: a context. */
void vgpu__memory_gone(void *owner);

/* A thread uses this context, which may be one whose making nobody saw. */
void vgpu__contexts_see(CUcontext context, struct vgpu_device *device, CUdevice ordinal);

/* In a fork's child. */
void vgpu__memory_forget(void);
void vgpu__contexts_forget(void);

#endif
