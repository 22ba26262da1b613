/* SPDX-License-Identifier: Apache-2.0 */
#include "core/ptrmap.h"

#include <sched.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

enum { SHARDS = 64, FIRST_CAPACITY = 64 };
enum { EMPTY = 0, FULL = 1, REMOVED = 2, ASIDE = 3 /* in use, and found by its owner alone */ };

struct shard {
    int locked;
    uint32_t full;    /* entries in use */
    uint32_t touched; /* in use or removed: what lengthens a probe */
    uint32_t capacity;
    struct vgpu_charge *table;
} __attribute__((aligned(64)));

static struct shard shards[SHARDS];

static uint64_t hash(uint64_t key, uint32_t kind) {
    uint64_t value = (key >> 4) + kind; /* allocations are aligned */
    value ^= value >> 29;
    value *= UINT64_C(0x9E3779B97F4A7C15); /* 2^64 / golden ratio */
    return value ^ (value >> 32);
}

static void lock(struct shard *shard) {
    while (__atomic_exchange_n(&shard->locked, 1, __ATOMIC_ACQUIRE))
        while (__atomic_load_n(&shard->locked, __ATOMIC_RELAXED))
            sched_yield();
}

static void unlock(struct shard *shard) {
    __atomic_store_n(&shard->locked, 0, __ATOMIC_RELEASE);
}

static struct vgpu_charge *find(struct shard *shard, uint64_t hashed, uint64_t key, uint32_t kind) {
    if (shard->table == NULL)
        return NULL;
    for (uint32_t i = (uint32_t)(hashed >> 6);; i++) {
        struct vgpu_charge *entry = &shard->table[i & (shard->capacity - 1)];
        if (entry->state == EMPTY)
            return NULL;
        if (entry->state == FULL && entry->key == key && entry->kind == kind)
            return entry;
    }
}

static bool is_used(const struct vgpu_charge *entry) {
    return entry->state == FULL || entry->state == ASIDE;
}

static void insert(struct shard *shard, const struct vgpu_charge *charge, uint32_t state) {
    uint32_t i = (uint32_t)(hash(charge->key, charge->kind) >> 6);
    while (is_used(&shard->table[i & (shard->capacity - 1)]))
        i++;
    struct vgpu_charge *entry = &shard->table[i & (shard->capacity - 1)];
    shard->touched += entry->state == EMPTY;
    shard->full++;
    *entry = *charge;
    entry->state = state;
}

/* Room for one more, at most half full with live and removed entries together. */
static bool make_room(struct shard *shard) {
    if (shard->table != NULL && 2 * (shard->touched + 1) <= shard->capacity)
        return true;
    struct shard old = *shard;
    uint32_t capacity = shard->table == NULL ? FIRST_CAPACITY : shard->capacity;
    while (4 * (shard->full + 1) > capacity)
        capacity *= 2;
    void *table =
        mmap(NULL, capacity * sizeof *shard->table, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (table == MAP_FAILED)
        return shard->table != NULL && shard->touched + 1 < shard->capacity;
    shard->table = table;
    shard->capacity = capacity;
    shard->full = shard->touched = 0;
    for (uint32_t i = 0; i < old.capacity; i++)
        if (is_used(&old.table[i]))
            insert(shard, &old.table[i], old.table[i].state);
    if (old.table != NULL)
        munmap(old.table, old.capacity * sizeof *old.table);
    return true;
}

static void remove_entry(struct shard *shard, struct vgpu_charge *entry) {
    entry->state = REMOVED;
    shard->full--;
    /* Where the probe ends behind it, nothing can be missed: most frees leave no trace. */
    struct vgpu_charge *next = &shard->table[((uint32_t)(entry - shard->table) + 1) & (shard->capacity - 1)];
    if (next->state == EMPTY) {
        entry->state = EMPTY;
        shard->touched--;
    }
}

bool vgpu_ptrmap_put(const struct vgpu_charge *charge, struct vgpu_charge *replaced) {
    uint64_t hashed = hash(charge->key, charge->kind);
    struct shard *shard = &shards[hashed % SHARDS];
    replaced->bytes = 0;
    lock(shard);
    struct vgpu_charge *entry = find(shard, hashed, charge->key, charge->kind);
    bool good = true;
    if (entry != NULL) {
        *replaced = *entry;
        *entry = *charge;
        entry->state = FULL;
    } else {
        good = make_room(shard);
        if (good)
            insert(shard, charge, FULL);
    }
    unlock(shard);
    return good;
}

int64_t vgpu_ptrmap_add(const struct vgpu_charge *charge, int64_t change) {
    uint64_t hashed = hash(charge->key, charge->kind);
    struct shard *shard = &shards[hashed % SHARDS];
    int64_t now = -1;
    lock(shard);
    struct vgpu_charge *entry = find(shard, hashed, charge->key, charge->kind);
    if (entry != NULL) {
        entry->bytes += (uint64_t)change;
        now = (int64_t)entry->bytes;
        if (now == 0)
            remove_entry(shard, entry);
    } else if (change > 0 && make_room(shard)) {
        struct vgpu_charge first = *charge;
        first.bytes = (uint64_t)change;
        insert(shard, &first, FULL);
        now = change;
    }
    unlock(shard);
    return now;
}

static bool look(uint64_t key, uint32_t kind, struct vgpu_charge *charge, bool take) {
    uint64_t hashed = hash(key, kind);
    struct shard *shard = &shards[hashed % SHARDS];
    lock(shard);
    struct vgpu_charge *entry = find(shard, hashed, key, kind);
    if (entry != NULL) {
        *charge = *entry;
        if (take)
            remove_entry(shard, entry);
    }
    unlock(shard);
    return entry != NULL;
}

bool vgpu_ptrmap_take(uint64_t key, uint32_t kind, struct vgpu_charge *charge) {
    return look(key, kind, charge, true);
}

bool vgpu_ptrmap_look(uint64_t key, uint32_t kind, struct vgpu_charge *charge) {
    return look(key, kind, charge, false);
}

bool vgpu_ptrmap_take_owned(void *owner, struct vgpu_charge *charge) {
    for (uint32_t s = 0; s < SHARDS; s++) {
        struct shard *shard = &shards[s];
        lock(shard);
        for (uint32_t i = 0; i < shard->capacity && shard->full > 0; i++) {
            struct vgpu_charge *entry = &shard->table[i];
            if (is_used(entry) && entry->owner == owner) {
                *charge = *entry;
                remove_entry(shard, entry);
                unlock(shard);
                return true;
            }
        }
        unlock(shard);
    }
    return false;
}

/* All that `from` owns, and is in one state, is of another owner and in another state. */
static void change(void *from, uint32_t from_state, void *to, uint32_t to_state) {
    for (uint32_t s = 0; s < SHARDS; s++) {
        struct shard *shard = &shards[s];
        lock(shard);
        for (uint32_t i = 0; i < shard->capacity && shard->full > 0; i++) {
            struct vgpu_charge *entry = &shard->table[i];
            if (entry->state == from_state && entry->owner == from) {
                entry->owner = to;
                entry->state = to_state;
            }
        }
        unlock(shard);
    }
}

void vgpu_ptrmap_hand_over(void *from, void *to) {
    change(from, FULL, to, FULL);
}

void vgpu_ptrmap_set_aside(void *owner, void *keeper) {
    change(owner, FULL, keeper, ASIDE);
}

void vgpu_ptrmap_put_back(void *keeper, void *owner) {
    change(keeper, ASIDE, owner, FULL);
}

void vgpu_ptrmap_forget(void) {
    memset(shards, 0, sizeof shards); /* the tables are copies; leaking them beats trusting them */
}
