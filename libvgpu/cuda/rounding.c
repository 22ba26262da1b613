/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda/rounding.h"

#include "cuda/callers.h"
#include "cuda/footprint.h"

#include <string.h>

enum { LOOKS = 16 }; /* asking NVML for each allocation would take too long */

struct rounding {
    uint64_t unit;        /* of plain allocations, a power of two; 0: the largest, nothing smaller was seen */
    uint32_t unit_looks;  /* that it stood, or that nothing could be learned of it */
    uint32_t small_looks; /* the same of the blocks of small allocations */
    bool alone;           /* there are none */
};

static struct rounding roundings[VGPU_MAX_SHARES]; /* changed without a lock */

void vgpu__rounding_forget(void) {
    memset(roundings, 0, sizeof roundings);
}

/* Devices are never forgotten before a fork, so their index is theirs. */
static struct rounding *rounding_of(const struct vgpu_device *device) {
    return &roundings[device - vgpu__process->devices];
}

static uint64_t round_up(uint64_t bytes, uint64_t unit) {
    return bytes > UINT64_MAX - unit ? UINT64_MAX : (bytes + unit - 1) & ~(unit - 1);
}

static uint64_t unit_of(const struct rounding *rounding) {
    uint64_t unit = __atomic_load_n(&rounding->unit, __ATOMIC_RELAXED);
    return unit > 0 ? unit : VGPU_BLOCK_BYTES;
}

static bool is_small(uint64_t bytes) {
    return bytes <= VGPU_BLOCK_BYTES / 2;
}

uint64_t vgpu__rounded(struct vgpu_device *device, uint64_t bytes) {
    return is_small(bytes) ? bytes : round_up(bytes, unit_of(rounding_of(device)));
}

bool vgpu__rounding_shares(const struct vgpu_device *device, uint64_t bytes) {
    return is_small(bytes) && bytes > 0 && !__atomic_load_n(&rounding_of(device)->alone, __ATOMIC_RELAXED);
}

bool vgpu__rounding_blocks_known(const struct vgpu_device *device) {
    return __atomic_load_n(&rounding_of(device)->small_looks, __ATOMIC_RELAXED) >= LOOKS;
}

static bool is_known(const struct rounding *rounding, uint64_t bytes) {
    if (is_small(bytes))
        return __atomic_load_n(&rounding->small_looks, __ATOMIC_RELAXED) >= LOOKS ||
               __atomic_load_n(&rounding->alone, __ATOMIC_RELAXED);
    return bytes % unit_of(rounding) == 0 || __atomic_load_n(&rounding->unit_looks, __ATOMIC_RELAXED) >= LOOKS;
}

bool vgpu__rounding_watch(struct vgpu_device *device, uint64_t bytes, struct vgpu__rounding *before) {
    if (is_known(rounding_of(device), bytes) || vgpu__holding > 0)
        return false;
    return vgpu__footprint_held(device, &before->held_bytes, &before->own_bytes);
}

/* What the driver has taken since. False: other threads of this process changed something meanwhile. */
static bool ask_grown(struct vgpu_device *device, const struct vgpu__rounding *before, uint64_t *grown) {
    uint64_t held, own;
    *grown = 0;
    if (!vgpu__footprint_held(device, &held, &own) || own != before->own_bytes)
        return false;
    *grown = held > before->held_bytes ? held - before->held_bytes : 0;
    return true;
}

uint64_t vgpu__rounding_learn(struct vgpu_device *device, uint64_t bytes, const struct vgpu__rounding *before) {
    struct rounding *rounding = rounding_of(device);
    uint64_t grown, unit = unit_of(rounding), taken = round_up(bytes, unit);
    ask_grown(device, before, &grown);
    if (grown >= bytes && grown < taken) {
        while (round_up(bytes, unit) > grown)
            unit /= 2;
        __atomic_store_n(&rounding->unit, unit, __ATOMIC_RELAXED);
        return grown;
    }
    __atomic_fetch_add(&rounding->unit_looks, grown >= taken ? LOOKS : 1, __ATOMIC_RELAXED);
    return taken;
}

bool vgpu__rounding_learn_small(struct vgpu_device *device, uint64_t bytes, const struct vgpu__rounding *before) {
    struct rounding *rounding = rounding_of(device);
    uint64_t grown;
    ask_grown(device, before, &grown);
    bool alone = grown >= bytes && grown < VGPU_BLOCK_BYTES;
    if (alone)
        __atomic_store_n(&rounding->alone, true, __ATOMIC_RELAXED);
    __atomic_fetch_add(&rounding->small_looks, grown >= VGPU_BLOCK_BYTES ? LOOKS : 1, __ATOMIC_RELAXED);
    return alone;
}
