/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory of a device over all its shares: the part of share.h that moves bytes.
 */
#include "core/books.h"
#include "core/clock.h"
#include "core/limits.h"
#include "core/log.h"
#include "core/quota.h"
#include "core/share.h"

enum {
    BUSY_SLEEP_NS = 50 * 1000,
    BUSY_RELIEVE_AFTER = 40,   /* about 2 ms: a recount takes microseconds unless its owner died or waits for someone */
    BUSY_REFUSE_AFTER = 20000, /* about 1 s, then a reservation is refused */
    REAP_INTERVAL_NS = 1000000, /* who asks in a loop, for memory or how much there is, looks at most this often ... */
    REFUSALS_IN_A_ROW = 16,     /* ... and this many refusals in a row are a loop: before, each one looks at once */
    SPLIT_ATTEMPTS = 3,
};

/* A recount holds off all changes: sleep, and finish it if whoever began it has died. */
static void wait_for_recount(struct vgpu_share *share, int round) {
    vgpu_sleep_ns(BUSY_SLEEP_NS);
    if (round % BUSY_RELIEVE_AFTER == BUSY_RELIEVE_AFTER - 1)
        vgpu_books_relieve(share->books_path, share->books);
}

/* Take min(bytes, what this process holds) off what it holds, and off the books. Returns it. */
static uint64_t credit_in(struct vgpu_share *share, uint64_t bytes) {
    uint64_t credited, part, held = __atomic_load_n(&share->held_bytes, __ATOMIC_SEQ_CST);
    do {
        part = bytes < held ? bytes : held;
    } while (part > 0 && !__atomic_compare_exchange_n(&share->held_bytes, &held, held - part, true, __ATOMIC_SEQ_CST,
                                                      __ATOMIC_SEQ_CST));
    for (int round = 0; vgpu_quota_credit(share->books, share->slot, part, &credited) == VGPU_BUSY; round++)
        wait_for_recount(share, round);
    return part;
}

/* Count what the books have granted. In sound books a process never holds more than all do (here it is counted after
 * them, and given back before them), so the limit bounds it too. In books that a tenant damaged it still does.
 * What is taken by force is only counted. */
static int hold(struct vgpu_share *share, uint64_t bytes, bool forced) {
    uint64_t held = __atomic_add_fetch(&share->held_bytes, bytes, __ATOMIC_SEQ_CST);
    if (forced || held <= vgpu_limits_memory_bytes(share->limits))
        return VGPU_OK;
    uint64_t used = vgpu_quota_used(share->books);
    if (used < held)
        vgpu_complain("%s: used: found %llu bytes, expected the %llu of this process at least; memory is refused",
                      share->books_path, (unsigned long long)used, (unsigned long long)(held - bytes));
    credit_in(share, bytes);
    return VGPU_OVER;
}

static int reserve_in(struct vgpu_share *share, uint64_t bytes, bool forced) {
    int result = VGPU_BUSY;
    for (int round = 0; result == VGPU_BUSY && (forced || round < BUSY_REFUSE_AFTER); round++) {
        uint64_t limit = forced ? INT64_MAX : vgpu_limits_room_bytes(share->limits);
        result = vgpu_quota_reserve(share->books, share->slot, limit, bytes);
        if (result == VGPU_BUSY)
            wait_for_recount(share, round);
    }
    return result == VGPU_OK ? hold(share, bytes, forced) : result;
}

static uint64_t room_in(const struct vgpu_share *share) {
    uint64_t limit = vgpu_limits_room_bytes(share->limits), used = vgpu_quota_used(share->books);
    return used < limit ? limit - used : 0;
}

/* One piece over several shares. All or nothing; who comes between may make us start over. */
static int reserve_split(struct vgpu_device *device, uint64_t bytes) {
    for (int attempt = 0; attempt < SPLIT_ATTEMPTS; attempt++) {
        uint64_t room = 0, left = bytes;
        for (uint32_t i = 0; i < device->count; i++)
            room += room_in(device->shares[i]);
        if (room < bytes)
            return VGPU_OVER;
        for (uint32_t i = 0; i < device->count && left > 0; i++) {
            uint64_t part = room_in(device->shares[i]);
            part = part < left ? part : left;
            if (part > 0 && reserve_in(device->shares[i], part, false) == VGPU_OK)
                left -= part;
        }
        if (left == 0)
            return VGPU_OK;
        vgpu_credit(device, bytes - left);
    }
    return VGPU_OVER;
}

static int reserve_once(struct vgpu_device *device, uint64_t bytes) {
    for (uint32_t i = 0; i < device->count; i++)
        if (reserve_in(device->shares[i], bytes, false) == VGPU_OK)
            return VGPU_OK;
    return device->count > 1 ? reserve_split(device, bytes) : VGPU_OVER;
}

/* Somebody's bytes but our own are in the books: look whether their owner has died. */
static bool reap(struct vgpu_device *device, bool at_once) {
    bool progress = false;
    for (uint32_t i = 0; i < device->count; i++) {
        struct vgpu_share *share = device->shares[i];
        uint64_t own = __atomic_load_n(&share->slot->reserved_bytes, __ATOMIC_RELAXED);
        if (vgpu_quota_used(share->books) <= own)
            continue;
        uint64_t now = vgpu_now_ns();
        if (!at_once && now - __atomic_load_n(&share->reaped_at_ns, __ATOMIC_RELAXED) < REAP_INTERVAL_NS)
            continue;
        progress |= vgpu_books_reap(share->books_path, share->books);
        __atomic_store_n(&share->reaped_at_ns, vgpu_now_ns(), __ATOMIC_RELAXED);
    }
    return progress;
}

int vgpu_reserve(struct vgpu_device *device, uint64_t bytes) {
    if (bytes == 0)
        return VGPU_OK;
    if (device->count == 0)
        return VGPU_OVER;
    struct vgpu_share *first = device->shares[0];
    if (reserve_once(device, bytes) == VGPU_OK) {
        if (__atomic_load_n(&first->refusals, __ATOMIC_RELAXED) != 0)
            __atomic_store_n(&first->refusals, 0, __ATOMIC_RELAXED);
        return VGPU_OK;
    }
    bool in_a_loop = __atomic_load_n(&first->refusals, __ATOMIC_RELAXED) >= REFUSALS_IN_A_ROW;
    if (reap(device, !in_a_loop) && reserve_once(device, bytes) == VGPU_OK)
        return VGPU_OK;
    __atomic_fetch_add(&first->refusals, !in_a_loop, __ATOMIC_RELAXED);
    __atomic_fetch_add(&first->slot->out_of_memory, 1, __ATOMIC_RELAXED);
    return VGPU_OVER;
}

void vgpu_charge(struct vgpu_device *device, uint64_t bytes) {
    if (bytes > 0 && device->count > 0)
        reserve_in(device->shares[0], bytes, true);
}

void vgpu_credit(struct vgpu_device *device, uint64_t bytes) {
    for (uint32_t i = device->count; i-- > 0 && bytes > 0;)
        bytes -= credit_in(device->shares[i], bytes);
}

void vgpu_usage(struct vgpu_device *device, uint64_t *total_bytes, uint64_t *used_bytes) {
    reap(device, false);
    *total_bytes = *used_bytes = 0;
    for (uint32_t i = 0; i < device->count; i++) {
        *total_bytes += vgpu_limits_memory_bytes(device->shares[i]->limits);
        *used_bytes += vgpu_quota_used(device->shares[i]->books) + vgpu_limits_unseen_bytes(device->shares[i]->limits);
    }
}
