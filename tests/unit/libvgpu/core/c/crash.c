/* SPDX-License-Identifier: Apache-2.0
 *
 * kill -9 at every instruction: a child is stepped through its work on the books, one instruction further in each
 * round, then killed. What it had must come back, to the byte, and nothing of the living.
 *
 * Usage: crash_test BOOKS WORK, with WORK one of those at the end. BOOKS are fresh.
 */
#include "check.h"
#include "core/books.h"
#include "core/quota.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LIMIT = 100000, OURS = 777 };

static const char *path;
static struct vgpu_books *books;
static struct vgpu_slot *slot;

/* ---- What the child does under the knife ---- */

static void reserve_and_credit(void) {
    uint64_t credited;
    vgpu_quota_reserve(books, slot, LIMIT, 1000);
    vgpu_quota_reserve(books, slot, LIMIT, LIMIT); /* refused */
    vgpu_quota_reserve(books, slot, LIMIT, 500);
    vgpu_quota_credit(books, slot, 1000, &credited);
}

/* A slot that a dead process left with 4000 bytes; with `inflight` it is not known whether `used` has them all. */
static void leave_dead_slot(uint64_t inflight) {
    struct vgpu_slot *dead = &books->slots[2];
    dead->pid = 1;
    dead->reserved_bytes = 4000 - inflight;
    dead->inflight_bytes = inflight;
    __atomic_fetch_add(&books->used, 4000, __ATOMIC_SEQ_CST);
    books->slots_high = 3;
}

static void reap(void) {
    vgpu_books_reap(path, books);
}

static void nothing(void) {}
static void one_dead(void) {
    leave_dead_slot(0);
}
static void one_uncertain(void) {
    leave_dead_slot(1500);
}

static const struct work {
    const char *name;
    void (*prepare)(void);
    void (*run)(void);
} works[] = {
    {"reserve-and-credit", nothing, reserve_and_credit},
    {"reap-a-dead-process", one_dead, reap},
    {"recount", one_uncertain, reap},
};

/* ---- The knife ---- */

static void child(const struct work *work) {
    if (vgpu_books_attach(path, &books, &slot) != 0)
        _exit(3);
    work->prepare();
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP);
    work->run();
    raise(SIGSTOP);
    _exit(0);
}

/* Step over `skip` instructions, then kill. False: the work was done before. */
static int kill_after(const struct work *work, long skip) {
    int status, within = 1;
    pid_t pid = fork();
    if (pid == 0)
        child(work);
    CHECK(waitpid(pid, &status, 0), pid);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP, 1);
    for (long i = 0; i < skip && within; i++) {
        CHECK(ptrace(PTRACE_SINGLESTEP, pid, 0, 0), 0);
        CHECK(waitpid(pid, &status, 0), pid);
        within = WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP;
    }
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, &status, 0), pid);
    return within;
}

int main(int argc, char **argv) {
    const struct work *work = NULL;
    path = argv[1];
    for (size_t i = 0; argc == 3 && i < sizeof works / sizeof works[0]; i++)
        if (strcmp(works[i].name, argv[2]) == 0)
            work = &works[i];
    if (work == NULL || vgpu_books_attach(path, &books, &slot) != 0)
        return 2;
    CHECK(vgpu_quota_reserve(books, slot, LIMIT, OURS), VGPU_OK);
    long step = 0;
    for (; kill_after(work, step); step++) {
        vgpu_books_reap(path, books);
        CHECK(vgpu_quota_used(books), OURS);
        CHECK(books->used & VGPU_RECOUNT ? 1 : 0, 0);
        CHECK(slot->reserved_bytes, OURS);
        CHECK(vgpu_quota_reserve(books, slot, LIMIT, LIMIT - OURS), VGPU_OK); /* all of the rest can be had */
        uint64_t credited;
        CHECK(vgpu_quota_credit(books, slot, LIMIT - OURS, &credited), VGPU_OK);
    }
    CHECK(step > 50, 1);
    printf("%ld instructions\n", step);
    return 0;
}
