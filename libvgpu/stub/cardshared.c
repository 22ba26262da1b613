/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory of a card that several processes hold: exported, and opened by others. A real driver counts its holders and
 * frees it with the last one; to a process it counts what only that one holds, or what it made. While several others
 * hold what its maker has let go, a real driver counts it to none of them; here one of them is charged. (Open GPU
 * kernel modules, resource manager: memory descriptors and their duplicates.)
 */
#include "cards.h"

#include <string.h>

static bool holds(const struct stub_shared *entry, uint32_t number) {
    return entry->owner != 0 && entry->holders[number / 64] >> (number % 64) & 1;
}

/* The entry's owner has let go: another holder is charged, or the memory is free. */
static void pass_on(struct stub_card *card, struct stub_shared *entry) {
    struct stub_slot *from = &card->slots[entry->owner - 1];
    uint32_t next = 0;
    while (next < STUB_SLOTS && !holds(entry, next))
        next++;
    STORE_RELAXED(from->memory_bytes, from->memory_bytes - entry->bytes);
    if (next == STUB_SLOTS) {
        STORE_RELAXED(card->used_bytes, card->used_bytes - entry->bytes);
        memset(entry, 0, sizeof *entry);
        return;
    }
    struct stub_slot *to = &card->slots[next];
    entry->owner = next + 1;
    STORE_RELAXED(to->memory_bytes, to->memory_bytes + entry->bytes);
    if (to->memory_bytes > to->peak_bytes)
        STORE_RELAXED(to->peak_bytes, to->memory_bytes);
}

static void let_go(struct stub_card *card, struct stub_shared *entry, uint32_t number) {
    if (!holds(entry, number))
        return;
    entry->holders[number / 64] &= ~(1ull << (number % 64));
    if (entry->owner == number + 1)
        pass_on(card, entry);
}

void card_let_go_all(struct stub_card *shared, uint32_t number) {
    for (int i = 0; i < STUB_SHARED; i++)
        let_go(shared, &shared->shared[i], number);
}

void card_let_go(struct card *card, int entry) {
    card_lock(card);
    let_go(card->shared, &card->shared->shared[entry], card->slot_number);
    card_unlock(card);
}

static int find(const struct stub_card *shared, uint64_t inode) {
    for (int i = 0; i < STUB_SHARED; i++)
        if (shared->shared[i].owner != 0 && shared->shared[i].inode == inode)
            return i;
    return -1;
}

static void add_self(struct card *card, struct stub_shared *entry) {
    entry->holders[card->slot_number / 64] |= 1ull << (card->slot_number % 64);
}

int card_share(struct card *card, uint64_t inode, uint64_t bytes) {
    int number = 0;
    card_lock(card);
    while (number < STUB_SHARED && card->shared->shared[number].owner != 0)
        number++;
    if (number < STUB_SHARED) {
        struct stub_shared *entry = &card->shared->shared[number];
        *entry = (struct stub_shared){.inode = inode, .bytes = bytes, .owner = card->slot_number + 1};
        add_self(card, entry);
    }
    card_unlock(card);
    return number < STUB_SHARED ? number : -1;
}

int card_hold(struct card *card, uint64_t inode) {
    card_lock(card);
    int number = find(card->shared, inode);
    if (number >= 0)
        add_self(card, &card->shared->shared[number]);
    card_unlock(card);
    return number;
}

/* Who will be charged once the dead are buried. */
static uint32_t heir(const struct card *card, const struct stub_shared *entry) {
    uint32_t next = 0;
    while (next < STUB_SLOTS && (!holds(entry, next) || !card_slot_lives(card, next)))
        next++;
    return next;
}

uint64_t card_slot_bytes(const struct card *card, uint32_t number) {
    uint64_t bytes = LOAD(card->shared->slots[number].memory_bytes);
    for (int i = 0; i < STUB_SHARED; i++) {
        const struct stub_shared *entry = &card->shared->shared[i];
        uint32_t owner = LOAD(entry->owner);
        if (holds(entry, number) && owner != number + 1 && !card_slot_lives(card, owner - 1) &&
            heir(card, entry) == number)
            bytes += entry->bytes;
    }
    return bytes;
}

uint64_t card_opened_bytes(const struct card *card, uint32_t number) {
    uint64_t bytes = 0;
    for (int i = 0; i < STUB_SHARED && LOAD_RELAXED(card->shared->opened_counts); i++)
        if (holds(&card->shared->shared[i], number) && card->shared->shared[i].owner != number + 1)
            bytes += card->shared->shared[i].bytes;
    return bytes;
}
