/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda/thread.h"

#include "core/limiter.h"
#include "cuda/launch.h"
#include "preload/libc.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>

#define thread vgpu__thread

__thread struct vgpu__thread vgpu__thread __attribute__((tls_model("initial-exec")));
int vgpu__captures;
uint64_t vgpu__handles;
uint32_t vgpu__plan_turn;

/* ---- Plans ---- */

void vgpu__plan_end(struct vgpu__plan *plan) {
    size_t i = (size_t)(plan - thread.plans);
    uint32_t launches = thread.planned[i].launches - plan->ahead;
    uint64_t each_ns = thread.planned[i].gpu_ns;
    thread.credit_ns += (int64_t)(thread.planned[i].launches * each_ns);
    plan->ahead = thread.planned[i].launches = 0;
    if (launches == 0)
        return;
    thread.launches += launches;
    vgpu__thread_charge(launches * each_ns);
    if (thread.planned[i].handles == __atomic_load_n(&vgpu__handles, __ATOMIC_RELAXED)) /* else it is another's now */
        vgpu_estimate_count(thread.planned[i].estimate, launches, launches * each_ns);
}

void vgpu__plans_end(void) {
    for (int i = 0; i < VGPU_PLANS; i++)
        vgpu__plan_end(&thread.plans[i]);
}

struct vgpu__plan *vgpu__plan_of(CUfunction function, uint64_t xy, unsigned int z) {
    for (int i = 0; i < VGPU_PLANS; i++) {
        struct vgpu__plan *plan = &thread.plans[i];
        if (plan->function == function && plan->xy == xy && plan->z == z)
            return plan;
    }
    return NULL;
}

/* Half of the credit: the next kernel may want some too. */
void vgpu__plan(CUfunction function, uint64_t xy, unsigned int z) {
    const struct vgpu_process *process = vgpu__process;
    uint32_t turn =
        __atomic_load_n(&vgpu__plan_turn, __ATOMIC_ACQUIRE); /* before what made it another one is looked at */
    if (vgpu__inside > 0 || thread.busy > 0 || thread.device == NULL || thread.device->count != 1 ||
        thread.credit_ns < 0 || __atomic_load_n(&vgpu__captures, __ATOMIC_RELAXED) > 0 ||
        __atomic_load_n(&process->only_device, __ATOMIC_RELAXED) != thread.device)
        return;
    uint64_t gpu_ns = __atomic_load_n(&thread.estimate->gpu_ns, __ATOMIC_RELAXED);
    uint64_t room = gpu_ns > 0 ? ((uint64_t)thread.credit_ns / gpu_ns + 1) / 2 : 0;
    uint64_t measured = vgpu_estimate_room(thread.estimate);
    uint64_t told = thread.launches < VGPU_ACCOUNT_EVERY ? VGPU_ACCOUNT_EVERY - thread.launches : 0;
    room = room < measured ? room : measured;
    room = room < told ? room : told;
    if (room == 0)
        return;
    struct vgpu__plan *plan = vgpu__plan_of(function, xy, z);
    if (plan == NULL) {
        plan = &thread.plans[thread.next_plan++ % VGPU_PLANS];
        vgpu__plan_end(plan);
    }
    size_t i = (size_t)(plan - thread.plans);
    thread.planned[i].launches = (uint32_t)room;
    thread.planned[i].gpu_ns = gpu_ns;
    thread.planned[i].estimate = thread.estimate;
    thread.planned[i].handles = __atomic_load_n(&vgpu__handles, __ATOMIC_RELAXED);
    thread.credit_ns -= (int64_t)(room * gpu_ns);
    *plan = (struct vgpu__plan){function, xy, z, (uint32_t)room, turn, &thread.device->shares[0]->limits->flags};
}

/* ---- Accounting ---- */

/* What came back waits until there is something to take it from: figures of the books never go down. */
uint64_t vgpu__thread_account(void) {
    if (thread.device == NULL)
        return 0;
    vgpu__plans_end();
    uint64_t mark_ns = vgpu_limiter_launched(thread.device, thread.launched_ns);
    uint64_t gpu_ns = thread.gpu_ns > 0 ? (uint64_t)thread.gpu_ns : 0;
    if (thread.launches | gpu_ns | thread.throttled_ns)
        vgpu_limiter_account(thread.device, thread.launches, gpu_ns, thread.throttled_ns);
    thread.gpu_ns -= (int64_t)gpu_ns;
    thread.launches = thread.launched_ns = thread.throttled_ns = 0;
    return mark_ns;
}

/* What the last thread did since it last told the books. */
__attribute__((destructor)) static void account_at_exit(void) {
    struct vgpu_process *process = vgpu__process;
    if (process != NULL && __atomic_load_n(&process->state, __ATOMIC_ACQUIRE) == VGPU_ATTACHED)
        vgpu__thread_account();
}

void vgpu__thread_turn_to(struct vgpu_device *device) {
    if (thread.device != NULL) {
        vgpu__thread_account();
        vgpu_limiter_charge(thread.device, -thread.credit_ns);
    }
    thread.device = device;
    thread.credit_ns = 0;
}

/* ---- The end of a thread ---- */

/* A destructor of thread-specific data: looked up, since where it lives depends on the version of the C library. */
struct thread_keys {
    int (*create)(pthread_key_t *key, void (*destructor)(void *value));
    int (*set)(pthread_key_t key, const void *value);
    pthread_key_t key;
    int state; /* 0: not made, 1: being made, 2: made, 3: there are no threads */
};
static struct thread_keys keys;

static void thread_ends(void *value) {
    (void)value;
    struct vgpu_process *process = vgpu__process;
    if (process != NULL && __atomic_load_n(&process->state, __ATOMIC_ACQUIRE) == VGPU_ATTACHED)
        vgpu__thread_turn_to(NULL);
}

static void make_key(void) {
    int unmade = 0;
    if (!__atomic_compare_exchange_n(&keys.state, &unmade, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return;
    vgpu_dlsym_function look_up = vgpu__libc_dlsym();
    if (look_up != NULL) {
        *(void **)&keys.create = look_up(RTLD_DEFAULT, "pthread_key_create");
        *(void **)&keys.set = look_up(RTLD_DEFAULT, "pthread_setspecific");
    }
    bool made = keys.create != NULL && keys.set != NULL && keys.create(&keys.key, thread_ends) == 0;
    __atomic_store_n(&keys.state, made ? 2 : 3, __ATOMIC_RELEASE);
}

void vgpu__thread_watch(void) {
    if (thread.watched)
        return;
    make_key();
    int state = __atomic_load_n(&keys.state, __ATOMIC_ACQUIRE);
    if (state == 2)
        keys.set(keys.key, &thread);
    thread.watched = state > 1;
}
