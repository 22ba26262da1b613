/* SPDX-License-Identifier: Apache-2.0 */
#include "core/quota.h"

#include <stdbool.h>

static void raise_peak(uint64_t *peak, uint64_t value) {
    uint64_t seen = __atomic_load_n(peak, __ATOMIC_RELAXED);
    while (seen < value && !__atomic_compare_exchange_n(peak, &seen, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        continue;
}

static bool fits(uint64_t used, uint64_t limit_bytes, uint64_t bytes) {
    return used <= limit_bytes && bytes <= limit_bytes - used;
}

uint64_t vgpu_quota_used(const struct vgpu_books *books) {
    return __atomic_load_n(&books->used, __ATOMIC_ACQUIRE) & ~VGPU_RECOUNT;
}

int vgpu_quota_reserve(struct vgpu_books *books, struct vgpu_slot *slot, uint64_t limit_bytes, uint64_t bytes) {
    uint64_t used = __atomic_load_n(&books->used, __ATOMIC_SEQ_CST);
    if (!(used & VGPU_RECOUNT) && !fits(used, limit_bytes, bytes))
        return VGPU_OVER; /* the fast refusal: nothing was announced, nothing to take back */

    __atomic_fetch_add(&slot->inflight_bytes, bytes, __ATOMIC_SEQ_CST);
    used = __atomic_load_n(&books->used, __ATOMIC_SEQ_CST);
    int result = VGPU_OK;
    do {
        if (used & VGPU_RECOUNT)
            result = VGPU_BUSY;
        else if (!fits(used, limit_bytes, bytes))
            result = VGPU_OVER;
        if (result != VGPU_OK) {
            __atomic_fetch_sub(&slot->inflight_bytes, bytes, __ATOMIC_SEQ_CST);
            return result;
        }
    } while (!__atomic_compare_exchange_n(&books->used, &used, used + bytes, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    uint64_t own = __atomic_add_fetch(&slot->reserved_bytes, bytes, __ATOMIC_SEQ_CST);
    __atomic_fetch_sub(&slot->inflight_bytes, bytes, __ATOMIC_SEQ_CST);
    raise_peak(&books->peak_bytes, used + bytes);
    raise_peak(&slot->peak_bytes, own);
    return VGPU_OK;
}

int vgpu_quota_credit(struct vgpu_books *books, struct vgpu_slot *slot, uint64_t bytes, uint64_t *credited) {
    uint64_t own = __atomic_load_n(&slot->reserved_bytes, __ATOMIC_SEQ_CST);
    *credited = bytes = bytes < own ? bytes : own;
    if (bytes == 0)
        return VGPU_OK;
    __atomic_fetch_add(&slot->inflight_bytes, bytes, __ATOMIC_SEQ_CST);
    uint64_t used = __atomic_load_n(&books->used, __ATOMIC_SEQ_CST);
    uint64_t left;
    do {
        if (used & VGPU_RECOUNT) {
            __atomic_fetch_sub(&slot->inflight_bytes, bytes, __ATOMIC_SEQ_CST);
            *credited = 0;
            return VGPU_BUSY;
        }
        left = used > bytes ? used - bytes : 0; /* never wraps, whatever a tenant wrote into its books */
    } while (!__atomic_compare_exchange_n(&books->used, &used, left, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    __atomic_fetch_sub(&slot->reserved_bytes, bytes, __ATOMIC_SEQ_CST);
    __atomic_fetch_sub(&slot->inflight_bytes, bytes, __ATOMIC_SEQ_CST);
    return VGPU_OK;
}
