/* SPDX-License-Identifier: Apache-2.0
 *
 * The limits file: mapped read-only once, then read with plain loads; a change by the agent is seen at once.
 *
 * An invalid file is never half used: vgpu_limits_map says on stderr what was found and what was expected, and the
 * caller refuses the driver (fail closed).
 */
#ifndef VGPU_LIMITS_H
#define VGPU_LIMITS_H

#include "vgpu/layout.h"

/* Map and validate a limits file. NULL, with one line on stderr, if it can't be used. The mapping is the caller's. */
const struct vgpu_limits *vgpu_limits_map(const char *path);

/* Copy between two equal, even sequences. 0, or -1 if a writer stays in the middle for 100 ms (it died). */
int vgpu_limits_copy(const struct vgpu_limits *limits, struct vgpu_limits *copy);

/* Single fields: relaxed loads, no seqlock needed. */
static inline uint64_t vgpu_limits_memory_bytes(const struct vgpu_limits *limits) {
    return __atomic_load_n(&limits->memory_bytes, __ATOMIC_RELAXED);
}
/* What the driver counts beyond the books, as the agent found it: at most all of the memory. */
static inline uint64_t vgpu_limits_unseen_bytes(const struct vgpu_limits *limits) {
    uint64_t unseen = __atomic_load_n(&limits->unseen_bytes, __ATOMIC_RELAXED);
    uint64_t memory = vgpu_limits_memory_bytes(limits);
    return unseen < memory ? unseen : memory;
}

/* What the books may say is used. */
static inline uint64_t vgpu_limits_room_bytes(const struct vgpu_limits *limits) {
    uint64_t memory = vgpu_limits_memory_bytes(limits), unseen = vgpu_limits_unseen_bytes(limits);
    return unseen < memory ? memory - unseen : 0;
}
static inline uint64_t vgpu_limits_host_memory_bytes(const struct vgpu_limits *limits) {
    return __atomic_load_n(&limits->host_memory_bytes, __ATOMIC_RELAXED);
}
static inline uint32_t vgpu_limits_flags(const struct vgpu_limits *limits) {
    return __atomic_load_n(&limits->flags, __ATOMIC_RELAXED);
}

/* 0: nothing said. What an older writer left there is zero. */
static inline uint64_t vgpu_limits_context_bytes(const struct vgpu_limits *limits) {
    return __atomic_load_n(&limits->context_bytes, __ATOMIC_RELAXED);
}

/* Events around work contain the neighbours' slices, and long work has always some; copies and fills are in no
 * estimate: the agent, who sees real GPU time, says how much of it stands behind 1000 parts that were predicted. 0:
 * nobody says so, or nobody has for a while: neighbours may have gone. */
uint32_t vgpu_limits_charge_permille(const struct vgpu_limits *limits, uint64_t now_ns);

/* What the agent gave back of the share's charges so far. */
static inline int64_t vgpu_limits_settled_ns(const struct vgpu_limits *limits) {
    return __atomic_load_n(&limits->settled_ns, __ATOMIC_RELAXED);
}

/* GPU time that the share may use now, 1..100 percent: what the agent grants, never above the ceiling. Where
 * it has granted something and not said so again for ten seconds, the share's guarantee. */
uint32_t vgpu_limits_rate_percent(const struct vgpu_limits *limits);

#endif
