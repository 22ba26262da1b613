/* SPDX-License-Identifier: Apache-2.0
 *
 * What the driver takes of a device that no call asked for: contexts, modules, heaps, and what it rounds allocations up
 * to. For the files of this folder.
 *
 * NVML says what the driver holds for this process. What is above the bytes that calls were charged is the footprint,
 * and is charged too: measured anew whenever a context or a module comes or goes, a function is launched for the first
 * time, or there are more allocations than before. What plain allocations are rounded up to: rounding.h.
 * Where NVML does not name this process (some containers), each context is charged what the limits say of one.
 */
#ifndef VGPU_CUDA_FOOTPRINT_H
#define VGPU_CUDA_FOOTPRINT_H

#include "core/share.h"
#include "cuda/real.h"

/* Around all of the calls up to vgpu__footprint_grown: something is made, and only the driver knows what it takes. One
 * at a time on a device: who makes something is answered for that alone, and what is there before it is refused is
 * never more than one. NULL: on no device. */
void vgpu__footprint_begin(struct vgpu_device *device);
void vgpu__footprint_end(struct vgpu_device *device);

/* A context is about to be made: reserve what one takes. CUDA_ERROR_OUT_OF_MEMORY: the driver need not be asked. */
CUresult vgpu__footprint_coming(struct vgpu_device *device);

/* It was made (`made`) or not. CUDA_ERROR_OUT_OF_MEMORY: it took more than there is, or NVML cannot say now what it
 * took: unmake it. */
CUresult vgpu__footprint_came(struct vgpu_device *device, bool made);

/* Before the driver is started: whether NVML names this process is told by its being listed then or not. */
void vgpu__footprint_first_look(void);

/* A context is there that was made in a way that we do not see: it is charged, whatever room there is. */
void vgpu__footprint_found(struct vgpu_device *device);

/* A context has ended. */
void vgpu__footprint_context_gone(struct vgpu_device *device);

/* A module was loaded: as for vgpu__footprint_came. What another thread was made to charge for it meanwhile, beyond the
 * limit, is no room for it either. */
CUresult vgpu__footprint_grown(struct vgpu_device *device);

/* Something was unloaded, or could not be made: take what the driver holds now for what it is. */
void vgpu__footprint_settle(struct vgpu_device *device);

/* Managed memory may lie on the device or not: what is charged of it changes by `bytes`. */
void vgpu__footprint_managed(struct vgpu_device *device, int64_t bytes);

/* This process has opened memory of another, and may be counted for it when that one lets go: from now on the driver is
 * asked before anything large is reserved. CUDA_ERROR_OUT_OF_MEMORY: the driver counts it here already, and there is no
 * room. */
CUresult vgpu__footprint_imported(void);

/* It may be closed now, on whichever device it was. */
void vgpu__footprint_settle_all(void);

/* `bytes` will be reserved: know what the driver counts here, if that may be more than is charged. */
void vgpu__footprint_before(uint64_t bytes);

/* Called for every allocation and for its end: asking NVML takes long where many processes use the card, so it is asked
 * again when there are more of them than there were (the driver rounds them up), and else after a while. */
void vgpu__footprint_allocated(struct vgpu_device *device);
void vgpu__footprint_freed(struct vgpu_device *device);

/* The driver may have taken something now (code of a function that is launched for the first time, stacks): ask before
 * anybody is told what is free, and at the next allocation. */
void vgpu__footprint_suspect(struct vgpu_device *device);
void vgpu__footprint_look_if_suspect(struct vgpu_device *device);

/* Around the first launch of a function, which may bring its code to the device. CUDA_ERROR_OUT_OF_MEMORY: there is
 * more than the share has, and so no room for code. */
CUresult vgpu__footprint_code_coming(struct vgpu_device *device);
/* True where code that comes with a launch could pass for managed memory, which may lie on the device or not. */
bool vgpu__footprint_hides(const struct vgpu_device *device);

void vgpu__footprint_code_came(struct vgpu_device *device, bool look_at_once);

/* What the driver counts for this process, and what this process has reserved. False: it does not say. */
bool vgpu__footprint_held(struct vgpu_device *device, uint64_t *held_bytes, uint64_t *own_bytes);

/* Ask it now. True if what it counts beyond all that calls were charged has grown by a block or more. */
bool vgpu__footprint_look(struct vgpu_device *device);

/* In a fork's child. */
void vgpu__footprint_forget(void);

#endif
