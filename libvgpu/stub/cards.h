/* SPDX-License-Identifier: Apache-2.0
 *
 * The cards that this process sees: opening their files, taking a slot, charging memory. Used by the driver (libcuda)
 * and, only to look, by NVML. Nothing here knows the CUDA API.
 */
#ifndef VGPU_STUB_CARDS_H
#define VGPU_STUB_CARDS_H

#include "card.h"

#include <stdbool.h>
#include <time.h>

#define CARDS_MAX 64

struct card {
    struct stub_card *shared;
    struct stub_slot *slot; /* ours, NULL until card_join */
    uint32_t slot_number;
    int fd;
    int minor; /* N of /dev/nvidiaN */
};

/*
 * Opens every card whose file lies in $VGPU_STUB_DEV_DIR (else /dev), lowest number first, into cards[CARDS_MAX].
 * writable is false for lookers. Returns how many; a file that cannot be opened or is no card is not there.
 */
int cards_open(struct card *cards, bool writable);
void cards_close(struct card *cards, int count);

/* Takes a slot on the card for this process. Returns false if all are taken by living processes. */
bool card_join(struct card *card);

/* The child of a fork: forgets the parent's slot without touching it. */
void card_forget(struct card *card);

void card_lock(struct card *card);
void card_unlock(struct card *card);

/* Is the process of this slot alive? A system call unless the slot is ours. */
bool card_slot_lives(const struct card *card, uint32_t number);

/* Frees what dead processes held and takes the engine from them. Call without the lock. */
void card_reap(struct card *card);

/* Ends the slot of a dead process. Call with the lock. */
void card_bury(struct card *card, uint32_t number);

/* Takes bytes of the card's memory for this process, or returns false. */
bool card_charge(struct card *card, uint64_t bytes);
void card_credit(struct card *card, uint64_t bytes);

/* Memory that this process is charged for becomes memory that others can hold, by the inode of its file; card_hold:
 * this process holds it too. The entry's number, -1 if there is none (left). Who lets go as the last frees it; who is
 * charged and lets go first leaves the charge to another. (cardshared.c) */
int card_share(struct card *card, uint64_t inode, uint64_t bytes);
int card_hold(struct card *card, uint64_t inode);
void card_let_go(struct card *card, int entry);
/* The same for all that a dead process held. Call with the lock. */
void card_let_go_all(struct stub_card *shared, uint32_t number);

/* Bytes that a slot's process holds, with what it is charged for since a process died that nobody has buried yet. */
uint64_t card_slot_bytes(const struct card *card, uint32_t number);

/* What NVML adds to that with the setting opened_counts. */
uint64_t card_opened_bytes(const struct card *card, uint32_t number);

/* Bytes that living processes hold; never writes. */
uint64_t card_used_bytes(const struct card *card);
/* Bytes that all processes together may hold. */
uint64_t card_room_bytes(const struct stub_card *shared);

/* Adds GPU time [from, to) to the usage history of a slot or of the card. */
void usage_add(struct stub_usage *history, uint32_t length, uint64_t from_ns, uint64_t to_ns);
/* Busy nanoseconds in the second before now, in whole tenths. */
uint64_t usage_last_second(const struct stub_usage *history, uint32_t length, uint64_t now_ns);

static inline uint64_t now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Waits until *word is no longer value, at most until the given CLOCK_MONOTONIC time (0: forever). */
void futex_wait_until(uint32_t *word, uint32_t value, uint64_t until_ns);
void futex_wake(uint32_t *word, int count);

/* Shorthands for the counters in the shared file. */
#define LOAD(field)                 __atomic_load_n(&(field), __ATOMIC_ACQUIRE)
#define STORE(field, value)         __atomic_store_n(&(field), (value), __ATOMIC_RELEASE)
#define LOAD_RELAXED(field)         __atomic_load_n(&(field), __ATOMIC_RELAXED)
#define STORE_RELAXED(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELAXED)

#endif
