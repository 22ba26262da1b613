/* SPDX-License-Identifier: Apache-2.0
 *
 * The arithmetic of one share's memory: reserve and credit, exact to the byte with any number of processes.
 *
 * Pure operations on the shared mapping; no system call, no lock. `slot` belongs to the caller (it holds the slot's
 * lock, layout.h). All read-modify-writes are sequentially consistent: the order of inflight_bytes against `used` is
 * what makes a recount right (layout.h, "Crash safety").
 */
#ifndef VGPU_QUOTA_H
#define VGPU_QUOTA_H

#include "vgpu/layout.h"

enum {
    VGPU_OK = 0,
    VGPU_OVER = 1, /* the limit would be exceeded */
    VGPU_BUSY = 2, /* somebody counts anew: nothing was changed, try again */
};

/* Bytes in use now, of all processes; a recount's flag is not among them. */
uint64_t vgpu_quota_used(const struct vgpu_books *books);

/* Take `bytes` (above 0) if `used` stays at or below limit_bytes. A limit below what is in use denies, and takes
 * nothing away. */
int vgpu_quota_reserve(struct vgpu_books *books, struct vgpu_slot *slot, uint64_t limit_bytes, uint64_t bytes);

/* Give back min(bytes, what the slot has); *credited says how much. VGPU_OK or VGPU_BUSY. */
int vgpu_quota_credit(struct vgpu_books *books, struct vgpu_slot *slot, uint64_t bytes, uint64_t *credited);

#endif
