/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory of a share that lies on the host: the part of share.h about oversubscription.
 *
 * Each process says in its own slot what it has there, before it has it; the sum over living processes must stay below
 * the limit. Two that ask at once may both be refused, but never both be let in. A slot dies with its process, and so
 * does what it says.
 */
#include "core/books.h"
#include "core/limits.h"
#include "core/quota.h"
#include "core/share.h"

/* For this process's own slot counts what it knows itself: others can write the slot. */
static uint64_t on_host(const struct vgpu_share *share) {
    uint64_t sum = __atomic_load_n(&share->held_host_bytes, __ATOMIC_SEQ_CST);
    for (uint32_t i = 0; i < VGPU_SLOTS; i++) {
        const struct vgpu_slot *slot = &share->books->slots[i];
        uint64_t bytes = slot != share->slot ? __atomic_load_n(&slot->host_bytes, __ATOMIC_SEQ_CST) : 0;
        if (__builtin_add_overflow(sum, bytes, &sum))
            return UINT64_MAX;
    }
    return sum;
}

/* Take min(bytes, what there is) off a count. Returns it. */
static uint64_t take_off(uint64_t *count, uint64_t bytes) {
    uint64_t now = __atomic_load_n(count, __ATOMIC_SEQ_CST), part;
    do
        part = now < bytes ? now : bytes;
    while (!__atomic_compare_exchange_n(count, &now, now - part, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return part;
}

static bool take(struct vgpu_share *share, uint64_t bytes) {
    uint64_t limit = vgpu_limits_host_memory_bytes(share->limits);
    if (!(vgpu_limits_flags(share->limits) & VGPU_OVERSUBSCRIBE) || bytes > limit)
        return false;
    vgpu_books_reap(share->books_path, share->books); /* the dead have nothing on the host */
    __atomic_fetch_add(&share->slot->host_bytes, bytes, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&share->held_host_bytes, bytes, __ATOMIC_SEQ_CST);
    if (on_host(share) <= limit)
        return true;
    take_off(&share->held_host_bytes, bytes);
    take_off(&share->slot->host_bytes, bytes);
    return false;
}

int vgpu_reserve_host(struct vgpu_device *device, uint64_t bytes) {
    for (uint32_t i = 0; i < device->count; i++)
        if (take(device->shares[i], bytes))
            return VGPU_OK;
    return VGPU_OVER;
}

void vgpu_credit_host(struct vgpu_device *device, uint64_t bytes) {
    for (uint32_t i = device->count; i-- > 0 && bytes > 0;) {
        uint64_t part = take_off(&device->shares[i]->held_host_bytes, bytes);
        take_off(&device->shares[i]->slot->host_bytes, part);
        bytes -= part;
    }
}

void vgpu_not_refused(struct vgpu_device *device) {
    __atomic_fetch_sub(&device->shares[0]->slot->out_of_memory, 1, __ATOMIC_RELAXED);
}
