/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda/blocks.h"

#include "core/ptrmap.h"
#include "core/quota.h"
#include "cuda/footprint.h"
#include "cuda/kinds.h"
#include "cuda/memory.h"

#include <stddef.h>
#include <string.h>

enum {
    ALIGNMENT = 512,   /* of what lies in a block */
    LOOKS_AT_ENDS = 16 /* of blocks, that the driver lets go of them at once */
};

struct blocks {
    uint64_t count, live_bytes;
    uint64_t hopeless_bytes; /* so many found no place though there was room, and nothing was freed since; 0: none */
    uint32_t ends;           /* that were looked at */
    int trying;              /* a thread has nothing reserved, and asks the driver all the same */
};

static struct blocks all[VGPU_MAX_SHARES]; /* changed without a lock */

void vgpu__blocks_forget(void) {
    memset(all, 0, sizeof all);
}

static struct blocks *blocks_of(const struct vgpu_device *device) {
    return &all[device - vgpu__process->devices];
}

static uint64_t aligned(uint64_t bytes) {
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* Count what lies in the block of an address, for each device by itself: addresses that one has given back another may
 * have before we know. Returns how many there are then. */
static int64_t count(struct vgpu_device *device, uint64_t address, int64_t change) {
    uint64_t block_at = address / VGPU_BLOCK_BYTES * VGPU_BLOCK_BYTES;
    struct vgpu_charge block = {
        .key = block_at + (uint64_t)(blocks_of(device) - all), .kind = VGPU_KIND_BLOCK, .device = device};
    return vgpu_ptrmap_add(&block, change);
}

/* One thread at a time finds out what the driver does without a block for it. */
static bool try_begin(struct blocks *blocks) {
    return __atomic_exchange_n(&blocks->trying, 1, __ATOMIC_ACQUIRE) == 0;
}

static void try_end(struct blocks *blocks, uint64_t reserved) {
    if (reserved < VGPU_BLOCK_BYTES)
        __atomic_store_n(&blocks->trying, 0, __ATOMIC_RELEASE);
}

/* May it find a place in a block that is there already? */
static bool has_place(const struct blocks *blocks, uint64_t bytes) {
    uint64_t held = __atomic_load_n(&blocks->count, __ATOMIC_RELAXED) * VGPU_BLOCK_BYTES;
    uint64_t live = __atomic_load_n(&blocks->live_bytes, __ATOMIC_RELAXED);
    uint64_t hopeless = __atomic_load_n(&blocks->hopeless_bytes, __ATOMIC_RELAXED);
    return live + aligned(bytes) <= held && (hopeless == 0 || bytes < hopeless);
}

int vgpu__block_coming(struct vgpu_device *device, uint64_t bytes, uint64_t *reserved) {
    struct blocks *blocks = blocks_of(device);
    *reserved = VGPU_BLOCK_BYTES;
    vgpu__footprint_before(bytes);
    if (vgpu_reserve(device, VGPU_BLOCK_BYTES) == VGPU_OK)
        return VGPU_OK;
    vgpu_not_refused(device); /* the second answer counts */
    if (has_place(blocks, bytes) && try_begin(blocks)) {
        *reserved = 0;
        return VGPU_OK;
    }
    if (vgpu__reserve(device, VGPU_BLOCK_BYTES) == VGPU_OK)
        return VGPU_OK;
    if (vgpu__rounding_blocks_known(device) || !try_begin(blocks))
        return VGPU_OVER;
    /* Nobody knows yet whether this driver has blocks. */
    *reserved = bytes;
    vgpu_not_refused(device);
    if (vgpu_reserve(device, bytes) == VGPU_OK)
        return VGPU_OK;
    try_end(blocks, 0);
    return VGPU_OVER;
}

void vgpu__block_alone(struct vgpu_device *device, uint64_t reserved) {
    try_end(blocks_of(device), reserved);
}

void vgpu__block_failed(struct vgpu_device *device, uint64_t reserved) {
    vgpu_credit(device, reserved);
    try_end(blocks_of(device), reserved);
}

int vgpu__block_came(struct vgpu_device *device, uint64_t address, uint64_t bytes, uint64_t reserved) {
    struct blocks *blocks = blocks_of(device);
    bool new = count(device, address, 1) <= 1; /* or there is no memory to remember it: then it stays charged */
    uint64_t missing = new ? VGPU_BLOCK_BYTES - reserved : 0;
    int result = missing > 0 ? vgpu__reserve(device, missing) : VGPU_OK;
    if (result == VGPU_OK) {
        __atomic_fetch_add(&blocks->count, new, __ATOMIC_RELAXED);
        __atomic_fetch_add(&blocks->live_bytes, aligned(bytes), __ATOMIC_RELAXED);
    } else {
        count(device, address, -1);
        __atomic_store_n(&blocks->hopeless_bytes, bytes, __ATOMIC_RELAXED);
    }
    if (!new || result != VGPU_OK)
        vgpu_credit(device, reserved);
    try_end(blocks, reserved);
    return result;
}

/* A driver that keeps an empty block for later is counted for it: then that is the footprint's. */
static void look_at_end(struct vgpu_device *device, struct blocks *blocks) {
    if (__atomic_load_n(&blocks->ends, __ATOMIC_RELAXED) >= LOOKS_AT_ENDS || vgpu__holding > 0)
        return;
    if (!vgpu__footprint_look(device))
        __atomic_fetch_add(&blocks->ends, 1, __ATOMIC_RELAXED);
}

void vgpu__block_left(struct vgpu_device *device, uint64_t address, uint64_t bytes) {
    struct blocks *blocks = blocks_of(device);
    __atomic_fetch_sub(&blocks->live_bytes, aligned(bytes), __ATOMIC_RELAXED);
    if (__atomic_load_n(&blocks->hopeless_bytes, __ATOMIC_RELAXED) > 0)
        __atomic_store_n(&blocks->hopeless_bytes, 0, __ATOMIC_RELAXED);
    if (count(device, address, -1) != 0)
        return;
    __atomic_fetch_sub(&blocks->count, 1, __ATOMIC_RELAXED);
    vgpu_credit(device, VGPU_BLOCK_BYTES);
    look_at_end(device, blocks);
}
