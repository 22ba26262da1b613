/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory pools (pools.c), for those who allocate from them.
 */
#ifndef VGPU_STUB_POOLS_H
#define VGPU_STUB_POOLS_H

#include "driver.h"

struct CUmemPoolHandle_st {
    struct device *device;
    CUmemPoolProps props;
    bool implicit; /* the device's own: cannot be destroyed */
    bool gone;     /* destroyed: the handle comes again with the end of its last allocation */
    unsigned live; /* allocations; under the pools' lock */
    uint64_t reserved, reserved_high, used, used_high;
    uint64_t threshold;
    uint64_t reuse[4];
    struct pending_free *pending;
    CUmemoryPool next;
};

/* Takes bytes from a pool for a stream, growing it if need be. */
bool pool_take(CUmemoryPool pool, uint64_t bytes, CUstream stream);
/* Gives them back; if stream is not NULL they are free for others only once free_done was called with the result. */
struct pending_free *pool_give(CUmemoryPool pool, uint64_t bytes, CUstream stream);
void pool_give_done(struct pending_free *pending);
/* A synchronisation point: pools fall back to their thresholds. */
void pools_settle(struct device *device);
/* Gives back everything that pools keep for nobody. Returns whether that was anything. */
bool pools_trim_all(struct device *device);
CUresult pool_free(struct allocation *allocation, CUstream stream);
/* The device's pool for the memory of graphs, which needs no creating. */
CUmemoryPool pool_of_graphs(struct device *device);
void pool_trim(CUmemoryPool pool, uint64_t keep_bytes);
void pools_forget_all(void);
/* May the application use it? */
bool pool_lives(CUmemoryPool pool);
/* An allocation of it is made, or ends. */
void pool_joined(CUmemoryPool pool);
void pool_left(CUmemoryPool pool);

#endif
