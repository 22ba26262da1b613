/* SPDX-License-Identifier: Apache-2.0
 *
 * Address space for device, managed and pinned host memory.
 *
 * Each arena is one large reservation, cut into segments of 256 MiB that serve one size class each, so that the
 * allocation behind any address, also one in its middle, is found by a shift and a division. A device address is not an
 * address of the host: the bytes behind it lie in a second reservation of the same shape, a constant away, and the
 * first one is inaccessible, so that a program which follows a device pointer on the host faults as on a real card.
 * Pages come into being when they are written and go when their allocation goes.
 */
#define _GNU_SOURCE
#include "driver.h"

#include <stdlib.h>
#include <sys/mman.h>

#define SEGMENT_SHIFT 28
#define SEGMENT_BYTES (1ull << SEGMENT_SHIFT)
#define CLASSES       256
#define UNIT          4096 /* whole pages, so that a file can be put behind any allocation */

struct segment {
    struct allocation **slots;
    uint64_t slot_bytes;
    uint32_t first; /* the segment in which this run of segments begins */
};

struct size_class {
    uint64_t *free;
    size_t free_count, free_room;
    uint64_t next, end; /* what is left of the class's newest segment, as offsets */
};

struct arena {
    uint64_t base;
    int64_t bytes_distance; /* from an address to its bytes */
    uint64_t size;
    uint32_t segments_used;
    struct segment *segments;
    struct size_class classes[CLASSES];
};

static struct arena arenas[ARENA_COUNT];

/* Four classes to each doubling: (4..7) << k pages; below 4 pages one each. whole: powers of two only. */
static unsigned class_of(size_t size, bool whole, uint64_t *slot_bytes) {
    uint64_t units = (size + UNIT - 1) / UNIT;
    units = units ? units : 1;
    if (units < 4 && !whole) {
        *slot_bytes = units * UNIT;
        return (unsigned)units;
    }
    unsigned top = 63 - (unsigned)__builtin_clzll(units);
    if (whole) {
        top += (units & (units - 1)) != 0;
        *slot_bytes = (UNIT * 1ull) << top;
        return top < 2 ? (unsigned)(*slot_bytes / UNIT) : 4 * top;
    }
    unsigned shift = top - 2;
    uint64_t quarters = (units + (1ull << shift) - 1) >> shift; /* 4..8 */
    *slot_bytes = (quarters << shift) * UNIT;
    return 4 * top + (unsigned)(quarters - 4); /* 8 quarters are the 4 of the next doubling */
}

static bool arena_map(struct arena *arena, int which) {
    for (uint64_t size = 2ull << 40; size >= 1ull << 30; size /= 2) {
        uint64_t room = size + SEGMENT_BYTES;
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        char *bytes = mmap(NULL, room, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (bytes == MAP_FAILED)
            continue;
        char *addresses = bytes;
        if (which == ARENA_DEVICE) {
            addresses = mmap(NULL, room, PROT_NONE, flags, -1, 0);
            if (addresses == MAP_FAILED) {
                munmap(bytes, room);
                continue;
            }
            madvise(bytes, room, MADV_DONTFORK);
        }
        madvise(bytes, room, MADV_DONTDUMP);
        uint64_t base = ((uint64_t)addresses + SEGMENT_BYTES - 1) & ~(SEGMENT_BYTES - 1);
        arena->bytes_distance = bytes - addresses;
        arena->segments = calloc(size >> SEGMENT_SHIFT, sizeof *arena->segments);
        arena->size = arena->segments ? size : 0;
        __atomic_store_n(&arena->base, base, __ATOMIC_RELEASE);
        return arena->segments != NULL;
    }
    return false;
}

/* A new run of segments for a class; false if the address space is used up. */
static bool class_grow(struct arena *arena, struct size_class *class, uint64_t slot_bytes) {
    uint64_t run = (slot_bytes + SEGMENT_BYTES - 1) >> SEGMENT_SHIFT;
    uint32_t first = arena->segments_used;
    if (first + run > arena->size >> SEGMENT_SHIFT)
        return false;
    size_t slots = run > 1 ? 1 : SEGMENT_BYTES / slot_bytes;
    struct allocation **table = calloc(slots, sizeof *table);
    if (!table)
        return false;
    for (uint64_t i = 0; i < run; i++)
        arena->segments[first + i] = (struct segment){table, slot_bytes, first};
    arena->segments_used += (uint32_t)run;
    class->next = (uint64_t)first << SEGMENT_SHIFT;
    class->end = class->next + slots * slot_bytes;
    return true;
}

static struct allocation **slot_at(struct arena *arena, uint64_t offset) {
    struct segment *segment = &arena->segments[offset >> SEGMENT_SHIFT];
    if (!segment->slots)
        return NULL;
    uint64_t index = (offset - ((uint64_t)segment->first << SEGMENT_SHIFT)) / segment->slot_bytes;
    if (segment->slot_bytes <= SEGMENT_BYTES && index >= SEGMENT_BYTES / segment->slot_bytes)
        return NULL; /* the rest behind the last slot */
    return &segment->slots[index];
}

CUdeviceptr arena_take(int which, size_t size, bool whole, struct allocation *owner) {
    struct arena *arena = &arenas[which];
    if (!arena->base && !arena_map(arena, which))
        return 0;
    if (size > arena->size)
        return 0;
    uint64_t slot_bytes;
    struct size_class *class = &arena->classes[class_of(size, whole, &slot_bytes)];
    uint64_t offset;
    if (class->free_count > 0) {
        offset = class->free[--class->free_count];
    } else {
        if (class->next == class->end && !class_grow(arena, class, slot_bytes))
            return 0;
        offset = class->next;
        class->next += slot_bytes;
    }
    *slot_at(arena, offset) = owner;
    owner->arena = which;
    owner->base = arena->base + offset;
    return owner->base;
}

void arena_drop_pages(struct allocation *owner) {
    struct arena *arena = &arenas[owner->arena];
    if (!owner->touched && !owner->mapped_file)
        return;
    void *bytes = (char *)owner->base + arena->bytes_distance;
    size_t length = (owner->size + UNIT - 1) & ~((size_t)UNIT - 1);
    if (owner->mapped_file)
        mmap(bytes, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    else
        madvise(bytes, length, MADV_DONTNEED);
}

void arena_give(struct allocation *owner) {
    struct arena *arena = &arenas[owner->arena];
    uint64_t offset = owner->base - arena->base;
    uint64_t slot_bytes;
    struct size_class *class = &arena->classes[class_of(
        owner->size, owner->kind == ALLOCATION_RESERVATION || owner->kind == ALLOCATION_BLOCK, &slot_bytes)];
    arena_drop_pages(owner);
    *slot_at(arena, offset) = NULL;
    if (class->free_count == class->free_room) {
        size_t room = class->free_room ? 2 * class->free_room : 64;
        uint64_t *more = realloc(class->free, room * sizeof *more);
        if (!more)
            return; /* the address range is lost, nothing else */
        class->free = more;
        class->free_room = room;
    }
    class->free[class->free_count++] = offset;
}

struct allocation *arena_find(CUdeviceptr address) {
    for (int which = 0; which < ARENA_COUNT; which++) {
        struct arena *arena = &arenas[which];
        uint64_t offset = address - arena->base;
        if (!arena->base || offset >= (uint64_t)arena->segments_used << SEGMENT_SHIFT)
            continue;
        struct allocation **slot = slot_at(arena, offset);
        struct allocation *found = slot ? *slot : NULL;
        if (found && found->kind == ALLOCATION_BLOCK)
            found = block_part(found->block, address);
        return found && address - found->base < (found->size ? found->size : 1) ? found : NULL;
    }
    return NULL;
}

void *arena_bytes(CUdeviceptr address) {
    struct arena *arena = &arenas[ARENA_DEVICE];
    if (arena->base && address - arena->base < arena->size)
        return (char *)address + arena->bytes_distance;
    return (void *)address;
}

void arena_forget_all(void) {
    for (int which = 0; which < ARENA_COUNT; which++)
        arenas[which] = (struct arena){0};
}
