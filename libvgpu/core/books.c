/* SPDX-License-Identifier: Apache-2.0 */
#include "core/books.h"

#include "core/clock.h"
#include "core/identity.h"
#include "core/log.h"
#include "core/origin.h"
#include "core/quota.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Since Linux 3.15; older C libraries do not name it. */
#ifndef F_OFD_SETLK
#define F_OFD_SETLK 37
#endif

enum { RECOUNT_PATIENCE_NS = 200 * 1000 * 1000 };

static int lock_byte(int descriptor, short type, uint64_t offset) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)offset, .l_len = 1};
    return fcntl(descriptor, F_OFD_SETLK, &lock);
}

static uint32_t slots_high(const struct vgpu_books *books) {
    uint32_t high = __atomic_load_n(&books->slots_high, __ATOMIC_ACQUIRE);
    return high < VGPU_SLOTS ? high : VGPU_SLOTS; /* a tenant may have written anything */
}

static bool is_clean(const struct vgpu_slot *slot) {
    return __atomic_load_n(&slot->pid, __ATOMIC_ACQUIRE) == 0 &&
           __atomic_load_n(&slot->reserved_bytes, __ATOMIC_ACQUIRE) == 0 &&
           __atomic_load_n(&slot->inflight_bytes, __ATOMIC_ACQUIRE) == 0;
}

static void move(uint64_t *from, uint64_t *to) {
    __atomic_fetch_add(to, __atomic_exchange_n(from, 0, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
}

/* Free a dead slot whose bytes are settled; its totals go to those of the ended. */
static void retire(struct vgpu_books *books, struct vgpu_slot *slot) {
    move(&slot->launches, &books->ended_launches);
    move(&slot->gpu_time_ns, &books->ended_gpu_time_ns);
    move(&slot->throttled_ns, &books->ended_throttled_ns);
    move(&slot->out_of_memory, &books->ended_out_of_memory);
    slot->peak_bytes = slot->host_bytes = 0;
    slot->pid_namespace = slot->start_time = 0;
    memset(slot->command, 0, sizeof slot->command);
    __atomic_store_n(&slot->pid, 0, __ATOMIC_RELEASE);
}

/* A tenant can write its books. Where `used` is not what the slots say, though nothing changed meanwhile and nothing is
 * on its way, somebody did: count anew. */
static bool adds_up(const struct vgpu_books *books) {
    uint64_t used = __atomic_load_n(&books->used, __ATOMIC_SEQ_CST), sum = 0;
    for (uint32_t i = 0; i < slots_high(books); i++) {
        if (__atomic_load_n(&books->slots[i].inflight_bytes, __ATOMIC_SEQ_CST) != 0)
            return true; /* not to be told; a dead owner's are found below */
        sum += __atomic_load_n(&books->slots[i].reserved_bytes, __ATOMIC_SEQ_CST);
    }
    return sum == used || __atomic_load_n(&books->used, __ATOMIC_SEQ_CST) != used;
}

static int recount(int descriptor, struct vgpu_books *books);

/* `descriptor` is open for writing on the books, here and below. */
static bool reap(int descriptor, struct vgpu_books *books) {
    bool progress = false, uncertain = !adds_up(books);
    for (uint32_t i = 0; i < slots_high(books); i++) {
        struct vgpu_slot *slot = &books->slots[i];
        if (is_clean(slot) || lock_byte(descriptor, F_WRLCK, VGPU_SLOT_LOCKS + i) != 0)
            continue;
        if (__atomic_load_n(&slot->inflight_bytes, __ATOMIC_SEQ_CST) != 0) {
            uncertain = true;
        } else {
            uint64_t credited;
            uint64_t left = __atomic_load_n(&slot->reserved_bytes, __ATOMIC_SEQ_CST);
            if (vgpu_quota_credit(books, slot, left, &credited) == VGPU_OK) {
                progress |= credited > 0;
                retire(books, slot);
            }
        }
        lock_byte(descriptor, F_UNLCK, VGPU_SLOT_LOCKS + i);
    }
    /* Whoever counted anew may have died after it had settled the slots: the flag alone tells. */
    uncertain |= (__atomic_load_n(&books->used, __ATOMIC_SEQ_CST) & VGPU_RECOUNT) != 0;
    return (uncertain && recount(descriptor, books) == 0) || progress;
}

/* Hold every dead slot's lock, and wait until no living process has bytes in flight. 0, or -1 when one keeps us
 * waiting. */
static int settle(int descriptor, struct vgpu_books *books, uint32_t high, bool dead[VGPU_SLOTS]) {
    uint64_t deadline = vgpu_now_ns() + RECOUNT_PATIENCE_NS;
    for (uint32_t i = 0; i < high; i++) {
        struct vgpu_slot *slot = &books->slots[i];
        dead[i] = false;
        if (is_clean(slot))
            continue;
        for (;;) {
            /* Asked again and again: the owner may die while we wait for it. */
            dead[i] = lock_byte(descriptor, F_WRLCK, VGPU_SLOT_LOCKS + i) == 0;
            if (dead[i] || __atomic_load_n(&slot->inflight_bytes, __ATOMIC_SEQ_CST) == 0)
                break;
            if (vgpu_now_ns() > deadline)
                return -1;
            vgpu_sleep_ns(20 * 1000);
        }
    }
    return 0;
}

static int recount(int descriptor, struct vgpu_books *books) {
    bool dead[VGPU_SLOTS] = {false};
    if (lock_byte(descriptor, F_WRLCK, VGPU_RECOUNT_LOCK) != 0)
        return -1; /* somebody else is at it */
    __atomic_fetch_or(&books->used, VGPU_RECOUNT, __ATOMIC_SEQ_CST);
    uint32_t high = slots_high(books); /* slots claimed from now on can't get any bytes */
    int result = settle(descriptor, books, high, dead);
    if (result == 0) {
        uint64_t sum = 0;
        for (uint32_t i = 0; i < high; i++) {
            struct vgpu_slot *slot = &books->slots[i];
            if (dead[i]) {
                __atomic_store_n(&slot->reserved_bytes, 0, __ATOMIC_SEQ_CST);
                __atomic_store_n(&slot->inflight_bytes, 0, __ATOMIC_SEQ_CST);
                retire(books, slot);
            } else {
                sum += __atomic_load_n(&slot->reserved_bytes, __ATOMIC_SEQ_CST);
            }
        }
        __atomic_store_n(&books->used, sum & ~VGPU_RECOUNT, __ATOMIC_SEQ_CST);
    } else {
        /* A stopped process has bytes in flight: `used` stays as it is, at worst too high. */
        __atomic_fetch_and(&books->used, ~VGPU_RECOUNT, __ATOMIC_SEQ_CST);
    }
    for (uint32_t i = 0; i < high; i++)
        if (dead[i])
            lock_byte(descriptor, F_UNLCK, VGPU_SLOT_LOCKS + i);
    lock_byte(descriptor, F_UNLCK, VGPU_RECOUNT_LOCK);
    return result;
}

bool vgpu_books_reap(const char *path, struct vgpu_books *books) {
    int saved = errno, cancel_state;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state); /* a descriptor is open, with locks */
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    bool progress = descriptor >= 0 && reap(descriptor, books);
    if (descriptor >= 0)
        close(descriptor);
    pthread_setcancelstate(cancel_state, NULL);
    errno = saved;
    return progress;
}

void vgpu_books_relieve(const char *path, struct vgpu_books *books) {
    int saved = errno, cancel_state;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state); /* a descriptor is open, with locks */
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    if (descriptor >= 0) {
        recount(descriptor, books);
        close(descriptor);
    }
    pthread_setcancelstate(cancel_state, NULL);
    errno = saved;
}

static const char *flaw(const struct vgpu_books *books) {
    if (books->magic != VGPU_BOOKS_MAGIC)
        return "magic";
    if (books->version != VGPU_VERSION)
        return "version";
    if (books->slot_count != VGPU_SLOTS)
        return "slot_count";
    if (books->slot_size != sizeof(struct vgpu_slot))
        return "slot_size";
    return NULL;
}

static struct vgpu_books *map(int descriptor, const char *path) {
    long long size = lseek(descriptor, 0, SEEK_END); /* fstat is tied to a version of the C library */
    if (size != VGPU_BOOKS_FILE_BYTES) {
        vgpu_complain("%s: found %lld bytes, expected a file of %d bytes; the GPU is refused", path, size,
                      VGPU_BOOKS_FILE_BYTES);
        return NULL;
    }
    struct vgpu_books *books = mmap(NULL, sizeof *books, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (books == MAP_FAILED) {
        vgpu_complain("%s: found %s, expected to map it; the GPU is refused", path, strerror(errno));
        return NULL;
    }
    const char *field = flaw(books);
    if (field == NULL)
        return books;
    vgpu_complain("%s: %s: found another value, expected books of version %d; the GPU is refused", path, field,
                  VGPU_VERSION);
    munmap(books, sizeof *books);
    return NULL;
}

static struct vgpu_slot *claim(int descriptor, struct vgpu_books *books) {
    for (uint32_t i = 0; i < VGPU_SLOTS; i++) {
        struct vgpu_slot *slot = &books->slots[i];
        if (!is_clean(slot) || lock_byte(descriptor, F_WRLCK, VGPU_SLOT_LOCKS + i) != 0)
            continue;
        if (!is_clean(slot)) { /* somebody had it and died meanwhile: leave it to a reaper */
            lock_byte(descriptor, F_UNLCK, VGPU_SLOT_LOCKS + i);
            continue;
        }
        uint32_t high = __atomic_load_n(&books->slots_high, __ATOMIC_RELAXED);
        while (high < i + 1 &&
               !__atomic_compare_exchange_n(&books->slots_high, &high, i + 1, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
            continue;
        vgpu_identify(slot);
        return slot;
    }
    return NULL;
}

/* That a lock was granted proves little: a system call filter can say so, and so can a filesystem without locks. Then
 * the living would look dead to others, who would take back their bytes. */
static bool is_locked_for_others(const char *path, uint32_t index) {
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    bool locked = descriptor >= 0 && lock_byte(descriptor, F_WRLCK, VGPU_SLOT_LOCKS + index) != 0;
    if (descriptor >= 0)
        close(descriptor);
    return locked;
}

int vgpu_books_attach(const char *path, struct vgpu_books **books, struct vgpu_slot **slot) {
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) {
        vgpu_complain("%s: found %s, expected writable books; the GPU is refused", path, strerror(errno));
        return -1;
    }
    int result = -1;
    *books = vgpu_origin_check(descriptor, path, false) == 0 ? map(descriptor, path) : NULL;
    if (*books != NULL) {
        vgpu_books_reap(path, *books); /* on a description of its own: closing it drops the locks that reaping takes */
        *slot = claim(descriptor, *books);
        if (*slot == NULL)
            vgpu_complain("%s: found %d processes, expected a free slot; the GPU is refused", path, VGPU_SLOTS);
        else if (!is_locked_for_others(path, (uint32_t)(*slot - (*books)->slots)))
            vgpu_complain("%s: found locks that hold off nobody, expected those of Linux; the GPU is refused", path);
        else
            result = 0;
    }
    if (result != 0 && *books != NULL)
        munmap(*books, sizeof **books);
    close(descriptor); /* the slot's lock stays with the mapping */
    return result;
}
