/* SPDX-License-Identifier: Apache-2.0
 *
 * Small allocations (1 MiB and less): the driver puts them into blocks of 2 MiB that they have in common. For memory.c.
 *
 * Which of them takes a new block the driver tells nobody, but where it lies does: 2 MiB of addresses in which this
 * process has nothing else are a new block. So a block is reserved before each of them, stays charged where one was
 * taken, and comes back where not; it ends with the last allocation in it. Where there is no room for another block,
 * what is left in those that there are may still be had: the driver is asked, and what it gives from a new block after
 * all is freed at once. That is the one time that more is held than the limit: one block, in one thread of a process,
 * for as long as these two calls take.
 */
#ifndef VGPU_CUDA_BLOCKS_H
#define VGPU_CUDA_BLOCKS_H

#include "core/share.h"
#include "cuda/rounding.h"

/* In the bytes of a charge: it is a part of a block, which is charged for all of them. */
#define VGPU_IN_BLOCK (1ull << 63)

/* One is about to be made. VGPU_OK with what was reserved for it: a block, or less, and then the calling thread holds
 * the right to try, which one of the next three gives back; or VGPU_OVER. */
int vgpu__block_coming(struct vgpu_device *device, uint64_t bytes, uint64_t *reserved);
void vgpu__block_failed(struct vgpu_device *device, uint64_t reserved);

/* It is there, and lies in no block: the reservation is the caller's. */
void vgpu__block_alone(struct vgpu_device *device, uint64_t reserved);

/* It lies here. VGPU_OVER: in a new block, for which there is no room: free it. Else the reservation is settled. */
int vgpu__block_came(struct vgpu_device *device, uint64_t address, uint64_t bytes, uint64_t reserved);

/* It was freed, or is about to be charged in another way. */
void vgpu__block_left(struct vgpu_device *device, uint64_t address, uint64_t bytes);

/* In a fork's child. */
void vgpu__blocks_forget(void);

#endif
