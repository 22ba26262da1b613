/* SPDX-License-Identifier: Apache-2.0
 *
 * What plain allocations take of a card beyond what they ask for, as it was seen of this driver. For memory.c.
 *
 * Drivers give memory out in 2 MiB. That is taken for granted until this one is seen to give out less, by NVML, around
 * an allocation that nothing else came between.
 */
#ifndef VGPU_CUDA_ROUNDING_H
#define VGPU_CUDA_ROUNDING_H

#include "core/share.h"

#define VGPU_BLOCK_BYTES (2ull << 20)

/* What an allocation of `bytes` takes of the card at most. */
uint64_t vgpu__rounded(struct vgpu_device *device, uint64_t bytes);

/* True if an allocation of `bytes` is one of those that the driver puts into a block with others (blocks.h). */
bool vgpu__rounding_shares(const struct vgpu_device *device, uint64_t bytes);

/* True if nothing is to be learned of that any more. */
bool vgpu__rounding_blocks_known(const struct vgpu_device *device);

/* Begin to watch what the driver takes for an allocation that is reserved already; false: there is nothing to learn, or
 * nobody to learn it from. */
struct vgpu__rounding {
    uint64_t held_bytes, own_bytes;
};
bool vgpu__rounding_watch(struct vgpu_device *device, uint64_t bytes, struct vgpu__rounding *before);

/* It has allocated `bytes`: return what that took. */
uint64_t vgpu__rounding_learn(struct vgpu_device *device, uint64_t bytes, const struct vgpu__rounding *before);

/* The same for one that may share a block. True: this driver has no such blocks, it takes what it is asked for. */
bool vgpu__rounding_learn_small(struct vgpu_device *device, uint64_t bytes, const struct vgpu__rounding *before);

/* In a fork's child. */
void vgpu__rounding_forget(void);

#endif
