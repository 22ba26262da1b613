/* SPDX-License-Identifier: Apache-2.0
 *
 * What a thread has launched and drawn: its credit, what it has not told the books yet, and its plans. For launch.c and
 * paying.c.
 *
 * A plan says that a kernel may be launched so many times more without anything being looked up: there is credit for
 * it, set aside, and none of these launches is to be measured. Such a launch costs a few comparisons: no clock, no
 * lock, no system call, and it goes on to the driver without a frame of its own.
 */
#ifndef VGPU_CUDA_THREAD_H
#define VGPU_CUDA_THREAD_H

#include "core/estimator.h"
#include "cuda/device.h"

enum { VGPU_PLANS = 4 };

struct vgpu__plan {
    CUfunction function;
    uint64_t xy; /* grid */
    uint32_t z;
    uint32_t ahead;        /* launches that are left */
    uint32_t turn;         /* of vgpu__plan_turn, when it was made */
    const uint32_t *flags; /* of the only share */
};

struct vgpu__thread {
    struct vgpu__plan plans[VGPU_PLANS];
    struct {
        uint32_t launches; /* planned */
        uint64_t gpu_ns;   /* for each */
        struct vgpu_estimate *estimate;
        uint64_t handles;
    } planned[VGPU_PLANS];
    uint32_t next_plan;         /* to be replaced */
    struct vgpu_device *device; /* that the rest is about */
    int64_t credit_ns;          /* drawn, not used and not set aside */
    int64_t gpu_ns;             /* with what follows: not yet in the books */
    uint64_t launches, throttled_ns;
    uint64_t launched_ns; /* of gpu_ns: predicted at launch */
    uint64_t key;         /* of the last launch */
    struct vgpu_estimate *estimate;
    bool watched; /* its end will be seen */
    int busy;     /* above 0: it is in the middle of paying, and a signal handler must not begin anew */
};

extern __thread struct vgpu__thread vgpu__thread __attribute__((tls_model("initial-exec")));
extern int vgpu__captures;       /* going on in this process */
extern uint64_t vgpu__handles;   /* how often handles may have come again, for another function */
extern uint32_t vgpu__plan_turn; /* another one with each of them, and when a capture begins: plans are void */

static inline uint64_t vgpu__xy(unsigned int x, unsigned int y) {
    return (uint64_t)x << 32 | y;
}

/* True if this launch is in the plan; it counts as launched then. A signal handler may come in between. */
static inline bool vgpu__planned(struct vgpu__plan *plan, CUfunction function, uint64_t xy, unsigned int z) {
    if (__builtin_expect(plan->function != function || plan->xy != xy || plan->z != z || plan->ahead == 0, 0) ||
        __builtin_expect(__atomic_load_n(&vgpu__plan_turn, __ATOMIC_RELAXED) != plan->turn, 0) ||
        __builtin_expect(__atomic_load_n(plan->flags, __ATOMIC_RELAXED) & VGPU_SUSPENDED, 0))
        return false;
    plan->ahead--;
    return true;
}

/* After a launch of this kernel that was looked at: plan the next ones, if they may be. */
void vgpu__plan(CUfunction function, uint64_t xy, unsigned int z);

/* Count what was launched by plans; what was set aside for the rest comes back. */
void vgpu__plan_end(struct vgpu__plan *plan);
void vgpu__plans_end(void);

/* The plan of a kernel; NULL if there is none. */
struct vgpu__plan *vgpu__plan_of(CUfunction function, uint64_t xy, unsigned int z);

/* This thread owes so much GPU time for a launch. */
static inline void vgpu__thread_charge(uint64_t gpu_ns) {
    vgpu__thread.gpu_ns += (int64_t)gpu_ns;
    vgpu__thread.launched_ns += gpu_ns;
    vgpu__thread.credit_ns -= (int64_t)gpu_ns;
}

/* It was not launched after all, and the books do not know of it yet. */
static inline void vgpu__thread_uncharge(uint64_t gpu_ns) {
    vgpu__thread.gpu_ns -= (int64_t)gpu_ns;
    vgpu__thread.launched_ns -= gpu_ns;
    vgpu__thread.credit_ns += (int64_t)gpu_ns;
}

/* Tell the books. Returns the mark of the work that was launched up to here (limiter.h). */
uint64_t vgpu__thread_account(void);

/* What follows is about another device (NULL: none): credit goes back. */
void vgpu__thread_turn_to(struct vgpu_device *device);

/* See to it that the thread's end is noticed. */
void vgpu__thread_watch(void);

enum { VGPU_ACCOUNT_EVERY = 256 }; /* launches that a thread keeps to itself */

#endif
