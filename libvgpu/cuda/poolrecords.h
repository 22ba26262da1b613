/* SPDX-License-Identifier: Apache-2.0
 *
 * The records of pools, for pools.c (stream-ordered memory) and graphmemory.c (what a device's graphs hold).
 *
 * A pool is charged what it holds of the card (the driver's RESERVED_MEM_CURRENT), not what is in use of it: what it
 * keeps for later is still memory that nobody else can have. It is asked after each call that may change it, and again
 * before anybody is refused; nothing here ever waits for a stream.
 *
 * One mutex guards the records, and is held over the driver's call, so that a pool's growth has one author. The calls
 * that it is held over do not wait for the device; a launch may, where too much is queued, so it is made without.
 */
#ifndef VGPU_CUDA_POOLRECORDS_H
#define VGPU_CUDA_POOLRECORDS_H

#include "core/share.h"
#include "cuda/real.h"

struct vgpu__pool {
    struct vgpu__pool *next;
    CUmemoryPool handle; /* NULL: the memory of a device's graphs */
    bool of_graphs;
    bool made;                  /* by the application, which may destroy it */
    bool managed;               /* its memory moves between devices and the host */
    bool destroyed;             /* for the application; the driver's pool goes when it holds nothing any more */
    CUdevice ordinal;           /* of_graphs */
    struct vgpu_device *device; /* NULL: not on a device (host memory) */
    uint64_t charged_bytes;
    uint64_t live_bytes;   /* allocations that were not freed */
    uint64_t coming_bytes; /* that launches may take which the driver is at: not to be given back meanwhile */
};

void vgpu__pools_enter(void);
void vgpu__pools_leave(void);

/* ---- All that follows: between enter and leave ---- */

/* The record of a handle; made for a pool that we did not see being made. NULL: no memory. */
struct vgpu__pool *vgpu__pool_of(CUmemoryPool handle);

/* The record of what a device's graphs hold. NULL: no memory. */
struct vgpu__pool *vgpu__pool_of_graphs(CUdevice ordinal, struct vgpu_device *device);

/* The same where nothing is made: NULL if there is none. */
struct vgpu__pool *vgpu__pool_find(CUmemoryPool handle);
struct vgpu__pool *vgpu__pool_find_of_graphs(CUdevice ordinal);

/* A pool was created. */
struct vgpu__pool *vgpu__pool_remember(CUmemoryPool handle, struct vgpu_device *device);

/* Give back what it has let go of. True if that is anything. A destroyed pool that holds nothing ends here. */
bool vgpu__pool_settle(struct vgpu__pool *pool);

/* The driver is to destroy it, of which nothing is in use: its record ends with it. */
CUresult vgpu__pool_end(struct vgpu__pool *pool);

/* The application destroys it. What is in use of it lives on until it is freed, and the driver does not say what a
 * destroyed pool still holds: so the driver's pool lives as long. */
CUresult vgpu__pool_destroy(struct vgpu__pool *pool);

/* An allocation of it was freed: the driver has taken it back, or will in stream order. */
void vgpu__pool_freed(struct vgpu__pool *pool, uint64_t bytes);

/* The same for all pools of a device, which are trimmed before if `trim_first`. */
bool vgpu__pool_shrink_all(struct vgpu_device *device, bool trim_first);

/* The most that a pool grows by for an allocation, by what was seen of the driver: it takes memory of the card in
 * steps. */
uint64_t vgpu__pool_growth(uint64_t bytes);

/* The driver has allocated: learn from it. Before it is charged. */
void vgpu__pool_grown(const struct vgpu__pool *pool, uint64_t bytes);

/* The driver has allocated: charge exactly what the pool holds now, of which `reserved` is reserved already. False: it
 * holds more than the share has. That is charged too: the books say what is, and nobody gets anything until it is given
 * back. */
bool vgpu__pool_charge_growth(struct vgpu__pool *pool, uint64_t reserved);

#endif
