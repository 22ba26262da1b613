/* SPDX-License-Identifier: Apache-2.0 */
#include "handles.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* What stands before each record. */
struct header {
    struct header *next; /* of those that are destroyed */
    uint64_t turn;       /* odd: something has the handle */
    enum handle_kind kind;
    uint64_t unused; /* for the alignment of what follows */
};

_Static_assert(sizeof(struct header) % 16 == 0, "records are aligned as by malloc");

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct header *destroyed[HANDLE_KINDS]; /* the last one first; none is ever freed */

static struct header *header_of(const void *record) {
    return (struct header *)record - 1;
}

static struct header *take_destroyed(enum handle_kind kind) {
    pthread_mutex_lock(&lock);
    struct header *header = destroyed[kind];
    if (header)
        destroyed[kind] = header->next;
    pthread_mutex_unlock(&lock);
    return header;
}

void *handle_take(enum handle_kind kind, size_t size) {
    struct header *header = take_destroyed(kind);
    if (!header && !(header = calloc(1, sizeof *header + size)))
        return NULL;
    header->kind = kind;
    memset(header + 1, 0, size);
    __atomic_fetch_add(&header->turn, 1, __ATOMIC_RELEASE);
    return header + 1;
}

void handle_give(void *record) {
    struct header *header = header_of(record);
    __atomic_fetch_add(&header->turn, 1, __ATOMIC_RELEASE);
    pthread_mutex_lock(&lock);
    header->next = destroyed[header->kind];
    destroyed[header->kind] = header;
    pthread_mutex_unlock(&lock);
}

uint64_t handle_turn(const void *record) {
    return __atomic_load_n(&header_of(record)->turn, __ATOMIC_ACQUIRE);
}

bool handle_lives(const void *record) {
    return record && handle_turn(record) % 2 == 1;
}

void handles_forget_all(void) {
    pthread_mutex_init(&lock, NULL); /* a thread of the parent may have held it */
}
