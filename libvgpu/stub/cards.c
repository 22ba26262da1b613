/* SPDX-License-Identifier: Apache-2.0
 *
 * The shared state of the cards. See card.h for what is in a card's file and cards.h for who calls this.
 *
 * Two things must hold whatever dies where: the sum of what living processes hold is what the card counts as used, and
 * nobody waits forever for a dead process. Both lean on the file lock of each slot, which the kernel drops when its
 * owner ends (also across pid namespaces, where process ids mean nothing), and on the card's lock naming its holder.
 */
#define _GNU_SOURCE
#include "cards.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOCK_WAITED      0x80000000u
#define LOCK_PATIENCE_NS 20000000u /* after this long, see whether the holder still lives */

void futex_wait_until(uint32_t *word, uint32_t value, uint64_t until_ns) {
    struct timespec until = {(time_t)(until_ns / 1000000000u), (long)(until_ns % 1000000000u)};
    syscall(SYS_futex, word, FUTEX_WAIT_BITSET, value, until_ns ? &until : NULL, NULL, FUTEX_BITSET_MATCH_ANY);
}

void futex_wake(uint32_t *word, int count) {
    syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
}

/* ---- Files ---- */

static bool open_card(struct card *card, const char *directory, int minor, bool writable) {
    char path[4096];
    snprintf(path, sizeof path, "%s/nvidia%d", directory, minor);
    int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    if (fd < 0)
        return false;
    struct stat st;
    struct stub_card *shared = MAP_FAILED;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size >= (off_t)sizeof(struct stub_card))
        shared = mmap(NULL, sizeof *shared, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (shared == MAP_FAILED) {
        close(fd);
        return false;
    }
    if (shared->magic != STUB_CARD_MAGIC || shared->version != STUB_CARD_VERSION || shared->size != sizeof *shared) {
        munmap(shared, sizeof *shared);
        close(fd);
        return false;
    }
    *card = (struct card){.shared = shared, .fd = fd, .minor = minor};
    return true;
}

int cards_open(struct card *cards, bool writable) {
    const char *directory = getenv("VGPU_STUB_DEV_DIR");
    if (!directory || !*directory)
        directory = "/dev";
    int count = 0;
    for (int minor = 0; minor < CARDS_MAX; minor++)
        count += open_card(&cards[count], directory, minor, writable);
    return count;
}

void cards_close(struct card *cards, int count) {
    for (int i = 0; i < count; i++) {
        munmap(cards[i].shared, sizeof *cards[i].shared);
        close(cards[i].fd);
    }
}

/* ---- Slots ---- */

static struct flock slot_range(uint32_t number, short type) {
    return (struct flock){.l_type = type,
                          .l_whence = SEEK_SET,
                          .l_start = (off_t)(offsetof(struct stub_card, slots) + number * sizeof(struct stub_slot)),
                          .l_len = sizeof(struct stub_slot)};
}

bool card_slot_lives(const struct card *card, uint32_t number) {
    if (card->slot && card->slot_number == number)
        return true;
    struct flock range = slot_range(number, F_WRLCK);
    /* If the question itself fails, the answer that harms nobody is that the process lives. */
    return fcntl(card->fd, F_OFD_GETLK, &range) != 0 || range.l_type != F_UNLCK;
}

static bool take_slot_lock(const struct card *card, uint32_t number) {
    struct flock range = slot_range(number, F_WRLCK);
    return fcntl(card->fd, F_OFD_SETLK, &range) == 0;
}

static uint64_t own_start_time(void) {
    char text[1024];
    FILE *file = fopen("/proc/self/stat", "re");
    if (!file)
        return 0;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    char *at = strrchr(text, ')'); /* the name may hold anything but ends at the last parenthesis: field 2 */
    for (int field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    return at ? strtoull(at, NULL, 10) : 0;
}

/* By its host name a reader knows whose process it is: a container's is the pod's. Processes that stand for containers,
 * all on one host, are told apart by the environment. */
static void own_hostname(char *name, size_t size) {
    const char *given = getenv("VGPU_STUB_HOSTNAME");
    if (given && *given)
        snprintf(name, size, "%s", given);
    else
        gethostname(name, size - 1);
}

static void describe_self(struct stub_slot *slot) {
    struct stat st;
    slot->pid = (uint32_t)getpid();
    slot->pid_namespace = stat("/proc/self/ns/pid", &st) == 0 ? st.st_ino : 0;
    slot->start_time = own_start_time();
    own_hostname(slot->hostname, sizeof slot->hostname);
    int fd = open("/proc/self/comm", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        ssize_t length = read(fd, slot->comm, sizeof slot->comm - 1);
        if (length > 0 && slot->comm[length - 1] == '\n')
            slot->comm[length - 1] = 0;
        close(fd);
    }
    slot->began_ns = now_ns();
}

/* A slot nobody ever had, else the one whose process ended first. */
static int next_candidate(const struct stub_card *shared, const bool *tried) {
    int best = -1;
    for (int i = 0; i < STUB_SLOTS; i++) {
        if (tried[i] || LOAD(shared->slots[i].state) == STUB_SLOT_LIVE)
            continue;
        if (LOAD(shared->slots[i].state) == STUB_SLOT_FREE)
            return i;
        if (best < 0 || shared->slots[i].ended_ns < shared->slots[best].ended_ns)
            best = i;
    }
    return best;
}

bool card_join(struct card *card) {
    struct stub_card *shared = card->shared;
    bool tried[STUB_SLOTS] = {false};
    int number;
    while ((number = next_candidate(shared, tried)) >= 0 && !take_slot_lock(card, (uint32_t)number))
        tried[number] = true;
    if (number < 0)
        return false;
    card->slot = &shared->slots[number];
    card->slot_number = (uint32_t)number;
    card_lock(card);
    shared->ended_gpu_time_ns += card->slot->gpu_time_ns;
    memset(card->slot, 0, sizeof *card->slot);
    describe_self(card->slot);
    STORE(card->slot->state, STUB_SLOT_LIVE);
    shared->live[number / 64] |= 1ull << (number % 64);
    card_unlock(card);
    return true;
}

void card_forget(struct card *card) {
    munmap(card->shared, sizeof *card->shared);
    close(card->fd); /* the lock belongs to the open file, which the parent still has: closing drops only our part */
    card->slot = NULL;
}

/* ---- The lock ---- */

void card_bury(struct card *card, uint32_t number) {
    struct stub_card *shared = card->shared;
    struct stub_slot *slot = &shared->slots[number];
    uint64_t now = now_ns();
    if (shared->engine_owner == number + 1) {
        /* Its kernel ran until now, or until it or the slice ended: no other process could have had that time. */
        uint64_t until = shared->engine_since_ns + shared->slice_ns;
        until = until < shared->engine_until_ns ? until : shared->engine_until_ns;
        until = until < now ? until : now;
        if (until > shared->engine_since_ns) {
            slot->gpu_time_ns += until - shared->engine_since_ns;
            usage_add(slot->usage, STUB_SLOT_USAGE, shared->engine_since_ns, until);
            usage_add(shared->usage, STUB_CARD_USAGE, shared->engine_since_ns, until);
            shared->engine_free_ns = until;
        }
        STORE(shared->engine_owner, 0);
    }
    card_let_go_all(shared, number);
    shared->used_bytes -= slot->memory_bytes;
    slot->memory_bytes = 0;
    slot->pool_idle_bytes = 0;
    slot->host_bytes = 0;
    slot->contexts = 0;
    shared->engine_waiters -= slot->waiting_since_ns != 0;
    slot->waiting_since_ns = 0;
    slot->ended_ns = now;
    shared->live[number / 64] &= ~(1ull << (number % 64));
    STORE(slot->state, STUB_SLOT_ENDED);
}

/* The holder of the lock died with the counters half changed: count again. Under the lock. */
static void recount(struct card *card) {
    struct stub_card *shared = card->shared;
    uint64_t used = 0;
    uint32_t waiters = 0;
    memset(shared->live, 0, sizeof shared->live);
    for (uint32_t i = 0; i < STUB_SLOTS; i++) {
        if (shared->slots[i].state != STUB_SLOT_LIVE)
            continue;
        shared->live[i / 64] |= 1ull << (i % 64);
        used += shared->slots[i].memory_bytes;
        waiters += shared->slots[i].waiting_since_ns != 0;
    }
    shared->used_bytes = used;
    shared->engine_waiters = waiters;
}

/* The lock is held by somebody else: waits for it, and takes it from a dead holder. */
static void lock_slowly(struct card *card) {
    uint32_t *lock = &card->shared->lock;
    uint32_t mine = (card->slot_number + 1) | LOCK_WAITED;
    for (;;) {
        uint32_t seen = LOAD(*lock);
        if (seen == 0) {
            if (__atomic_compare_exchange_n(lock, &seen, mine, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
                return;
            continue;
        }
        uint32_t waited = seen | LOCK_WAITED;
        if (seen != waited &&
            !__atomic_compare_exchange_n(lock, &seen, waited, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            continue;
        uint64_t until = now_ns() + LOCK_PATIENCE_NS;
        futex_wait_until(lock, waited, until);
        if (LOAD(*lock) != waited || now_ns() < until || card_slot_lives(card, (waited & ~LOCK_WAITED) - 1))
            continue;
        if (__atomic_compare_exchange_n(lock, &waited, mine, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
            recount(card);
            return;
        }
    }
}

void card_lock(struct card *card) {
    uint32_t expected = 0;
    uint32_t mine = card->slot_number + 1;
    if (!__atomic_compare_exchange_n(&card->shared->lock, &expected, mine, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        lock_slowly(card);
}

void card_unlock(struct card *card) {
    if (__atomic_exchange_n(&card->shared->lock, 0, __ATOMIC_RELEASE) & LOCK_WAITED)
        futex_wake(&card->shared->lock, 1);
}

/* ---- Memory ---- */

/* Calls for each live slot but our own; stops when the visitor returns true. */
#define EACH_LIVE_SLOT(card, number)                                                                                   \
    for (uint32_t word_ = 0; word_ < STUB_LIVE_WORDS; word_++)                                                         \
        for (uint64_t bits_ = LOAD((card)->shared->live[word_]), number = 0;                                           \
             bits_ && (number = word_ * 64u + (uint32_t)__builtin_ctzll(bits_), true); bits_ &= bits_ - 1)

void card_reap(struct card *card) {
    EACH_LIVE_SLOT(card, number) {
        if (card_slot_lives(card, (uint32_t)number))
            continue;
        card_lock(card);
        if (card->shared->slots[number].state == STUB_SLOT_LIVE && !card_slot_lives(card, (uint32_t)number))
            card_bury(card, (uint32_t)number);
        card_unlock(card);
    }
}

uint64_t card_room_bytes(const struct stub_card *shared) {
    return shared->memory_bytes > shared->reserved_bytes ? shared->memory_bytes - shared->reserved_bytes : 0;
}

static bool try_charge(struct card *card, uint64_t bytes) {
    struct stub_card *shared = card->shared;
    struct stub_slot *slot = card->slot;
    card_lock(card);
    bool fits = shared->used_bytes <= card_room_bytes(shared) && bytes <= card_room_bytes(shared) - shared->used_bytes;
    if (fits) {
        STORE_RELAXED(slot->memory_bytes, slot->memory_bytes + bytes);
        STORE_RELAXED(shared->used_bytes, shared->used_bytes + bytes);
        if (slot->memory_bytes > slot->peak_bytes)
            STORE_RELAXED(slot->peak_bytes, slot->memory_bytes);
        if (shared->used_bytes > shared->peak_bytes)
            STORE_RELAXED(shared->peak_bytes, shared->used_bytes);
    }
    card_unlock(card);
    return fits;
}

bool card_charge(struct card *card, uint64_t bytes) {
    if (try_charge(card, bytes))
        return true;
    card_reap(card);
    return try_charge(card, bytes);
}

void card_credit(struct card *card, uint64_t bytes) {
    card_lock(card);
    STORE_RELAXED(card->slot->memory_bytes, card->slot->memory_bytes - bytes);
    STORE_RELAXED(card->shared->used_bytes, card->shared->used_bytes - bytes);
    card_unlock(card);
}

uint64_t card_used_bytes(const struct card *card) {
    uint64_t used = 0;
    EACH_LIVE_SLOT(card, number) {
        if (card_slot_lives(card, (uint32_t)number))
            used += card_slot_bytes(card, (uint32_t)number);
    }
    return used;
}

/* ---- Usage ---- */

#define TENTH_NS 100000000u

void usage_add(struct stub_usage *history, uint32_t length, uint64_t from_ns, uint64_t to_ns) {
    while (from_ns < to_ns) {
        uint64_t tenth = from_ns / TENTH_NS;
        uint64_t end = (tenth + 1) * TENTH_NS;
        end = end < to_ns ? end : to_ns;
        struct stub_usage *bucket = &history[tenth % length];
        if (bucket->tenth != tenth) {
            STORE_RELAXED(bucket->busy_ns, 0);
            STORE_RELAXED(bucket->tenth, tenth);
        }
        STORE_RELAXED(bucket->busy_ns, bucket->busy_ns + (end - from_ns));
        from_ns = end;
    }
}

uint64_t usage_last_second(const struct stub_usage *history, uint32_t length, uint64_t now) {
    uint64_t tenth = now / TENTH_NS;
    uint64_t busy = 0;
    for (uint64_t back = 1; back <= 10 && back <= tenth; back++) {
        const struct stub_usage *bucket = &history[(tenth - back) % length];
        if (LOAD_RELAXED(bucket->tenth) == tenth - back)
            busy += LOAD_RELAXED(bucket->busy_ns);
    }
    return busy;
}
