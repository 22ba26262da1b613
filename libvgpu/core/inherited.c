/* SPDX-License-Identifier: Apache-2.0 */
#include "core/inherited.h"

#include "core/identity.h"

#include <sys/mman.h>

struct mapping {
    const struct vgpu_limits *limits;
    struct vgpu_books *books;
    const struct vgpu_slot *slot;
    uint64_t pid_namespace, start_time;
    uint32_t pid;
};

/* Not wiped when a process forks, and changed by whoever attaches alone: one thread at a time. What finds no room is
 * kept for good. */
enum { MOST = 4 * VGPU_MAX_SHARES };
static struct mapping mappings[MOST];
static uint32_t count;

void vgpu_inherited_note(const struct vgpu_share *share) {
    const struct vgpu_slot *slot = share->slot;
    if (count == MOST)
        return;
    mappings[count] =
        (struct mapping){share->limits, share->books, slot, slot->pid_namespace, slot->start_time, slot->pid};
    __atomic_store_n(&count, count + 1, __ATOMIC_RELEASE); /* another thread may fork at any time */
}

static bool held_nothing(const struct vgpu_slot *slot) {
    return __atomic_load_n(&slot->reserved_bytes, __ATOMIC_SEQ_CST) == 0 &&
           __atomic_load_n(&slot->inflight_bytes, __ATOMIC_SEQ_CST) == 0 &&
           __atomic_load_n(&slot->host_bytes, __ATOMIC_SEQ_CST) == 0;
}

void vgpu_inherited_drop(void) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct mapping mapping = mappings[i];
        if (vgpu_has_ended(mapping.pid, mapping.pid_namespace, mapping.start_time) && held_nothing(mapping.slot)) {
            munmap(mapping.books, sizeof *mapping.books);
            munmap((void *)mapping.limits, VGPU_LIMITS_FILE_BYTES);
        } else {
            mappings[kept++] = mapping;
        }
    }
    count = kept;
}
