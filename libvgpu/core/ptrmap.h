/* SPDX-License-Identifier: Apache-2.0
 *
 * What each live allocation of this process was charged: a hash table from the driver's pointer or handle to its
 * charge.
 *
 * Sharded, open addressing, O(1) at any number of live entries; memory comes from mmap, never from the tenant's malloc.
 * A shard's spin lock is held for a few instructions (and once per doubling). All functions may be called from any
 * thread.
 */
#ifndef VGPU_PTRMAP_H
#define VGPU_PTRMAP_H

#include <stdbool.h>
#include <stdint.h>

struct vgpu_device;

struct vgpu_charge {
    uint64_t key;
    uint64_t bytes;
    struct vgpu_device *device;
    void *owner;    /* the context (or other object) whose end frees it; NULL: none */
    uint32_t kind;  /* what the key means: handles of different kinds may have the same value. The front-end's own */
    uint32_t state; /* of the table */
};

/* Remember a charge; an old one of the same key and kind is returned through *replaced (bytes 0: none). False: no
 * memory. */
bool vgpu_ptrmap_put(const struct vgpu_charge *charge, struct vgpu_charge *replaced);

/* Add `change` to the bytes of a key: it is put there if it is new, and taken out where nothing is left. Returns what
 * it has then; -1: no memory, or no such key to take from. */
int64_t vgpu_ptrmap_add(const struct vgpu_charge *charge, int64_t change);

/* Take the charge of a key out of the table. False: none known (not ours, or the parent's). */
bool vgpu_ptrmap_take(uint64_t key, uint32_t kind, struct vgpu_charge *charge);

/* The same, and leave it there. */
bool vgpu_ptrmap_look(uint64_t key, uint32_t kind, struct vgpu_charge *charge);

/* Take out one entry of an owner; call until false. */
bool vgpu_ptrmap_take_owned(void *owner, struct vgpu_charge *charge);

/* Whatever `from` owns, `to` owns from now on. */
void vgpu_ptrmap_hand_over(void *from, void *to);

/* `owner` is about to end, and the driver may hand out the keys of what it owns at once: from now on that is found by
 * vgpu_ptrmap_take_owned(keeper) alone, until it is put back. */
void vgpu_ptrmap_set_aside(void *owner, void *keeper);
void vgpu_ptrmap_put_back(void *keeper, void *owner);

/* In a fork's child: forget everything, whatever state its locks were in. */
void vgpu_ptrmap_forget(void);

#endif
