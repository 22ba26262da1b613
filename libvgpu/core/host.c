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

static uint64_t on_host(const struct vgpu_books *books) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < VGPU_SLOTS; i++) {
        uint64_t bytes = __atomic_load_n(&books->slots[i].host_bytes, __ATOMIC_SEQ_CST);
        if (__builtin_add_overflow(sum, bytes, &sum))
            return UINT64_MAX;
    }
    return sum;
}

static bool take(struct vgpu_share *share, uint64_t bytes) {
    uint64_t limit = vgpu_limits_host_memory_bytes(share->limits);
    if (!(vgpu_limits_flags(share->limits) & VGPU_OVERSUBSCRIBE) || bytes > limit)
        return false;
    vgpu_books_reap(share->books_path, share->books); /* the dead have nothing on the host */
    __atomic_fetch_add(&share->slot->host_bytes, bytes, __ATOMIC_SEQ_CST);
    if (on_host(share->books) <= limit)
        return true;
    __atomic_fetch_sub(&share->slot->host_bytes, bytes, __ATOMIC_SEQ_CST);
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
        uint64_t *own = &device->shares[i]->slot->host_bytes, now = __atomic_load_n(own, __ATOMIC_SEQ_CST), part;
        do
            part = now < bytes ? now : bytes;
        while (!__atomic_compare_exchange_n(own, &now, now - part, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
        bytes -= part;
    }
}

void vgpu_not_refused(struct vgpu_device *device) {
    __atomic_fetch_sub(&device->shares[0]->slot->out_of_memory, 1, __ATOMIC_RELAXED);
}
