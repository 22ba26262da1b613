/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda/sampling.h"

#include "core/clock.h"

#include <stddef.h>

enum { PAIRS = 256 };
/* FREE has no events; IDLE has; BUSY belongs to the thread that made it so, for a launch; PENDING waits for its end
 * event. The next two are IDLE and PENDING in a context that may be ending. A thread that LOOKS at one is soon done. */
enum { FREE = 0, IDLE, BUSY, PENDING, HELD_IDLE, HELD_PENDING, LOOKED_AT };

struct vgpu__sample {
    int state;
    CUcontext context;
    CUevent start, end;
    struct vgpu_estimate *estimate;
    struct vgpu_group group;
    struct vgpu_device *device;
    uint64_t mark_ns, begun_ns;
};

static struct vgpu__sample samples[PAIRS];
static int known;   /* pairs that ever were more than FREE */
static int pending; /* about how many: spares the walk when there is none */

static bool become(struct vgpu__sample *sample, int from, int to) {
    return __atomic_compare_exchange_n(&sample->state, &from, to, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

static void leave(struct vgpu__sample *sample, int state) {
    __atomic_store_n(&sample->state, state, __ATOMIC_RELEASE);
}

static bool create_events(struct vgpu__sample *sample, CUcontext context) {
    CUresult result;
    sample->context = context;
    VGPU_CALL(result, cuEventCreate, &sample->start, CU_EVENT_DEFAULT);
    if (result != CUDA_SUCCESS)
        return false;
    VGPU_CALL(result, cuEventCreate, &sample->end, CU_EVENT_DEFAULT);
    if (result == CUDA_SUCCESS)
        return true;
    VGPU_CALL(result, cuEventDestroy_v2, sample->start);
    return false;
}

static void destroy_events(const struct vgpu__sample *sample) {
    CUresult ignored;
    VGPU_CALL(ignored, cuEventDestroy_v2, sample->start);
    VGPU_CALL(ignored, cuEventDestroy_v2, sample->end);
    (void)ignored;
}

/* The sample is on its way to a result (+1) or has one (-1). */
static void count(const struct vgpu__sample *sample, int change) {
    __atomic_fetch_add(&pending, change, __ATOMIC_RELAXED);
    __atomic_fetch_add(&sample->estimate->under_way, (uint32_t)change, __ATOMIC_RELAXED);
}

static void know(int i) {
    int before = __atomic_load_n(&known, __ATOMIC_RELAXED);
    while (before <= i &&
           !__atomic_compare_exchange_n(&known, &before, i + 1, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        continue;
}

/* A pair of this context, ours to use. */
static struct vgpu__sample *find_pair(CUcontext context) {
    for (int i = 0; i < __atomic_load_n(&known, __ATOMIC_RELAXED); i++) {
        struct vgpu__sample *sample = &samples[i];
        if (!become(sample, IDLE, LOOKED_AT))
            continue;
        bool same = sample->context == context;
        leave(sample, same ? BUSY : IDLE);
        if (same)
            return sample;
    }
    for (int i = 0; i < PAIRS; i++) {
        bool used = become(&samples[i], IDLE, LOOKED_AT); /* by another context, which has no need of it now */
        if (!used && !become(&samples[i], FREE, LOOKED_AT))
            continue;
        if (used)
            destroy_events(&samples[i]);
        else
            know(i);
        bool made = create_events(&samples[i], context);
        leave(&samples[i], made ? BUSY : FREE);
        return made ? &samples[i] : NULL;
    }
    return NULL;
}

struct vgpu__sample *vgpu__sample_begin(CUcontext context, CUstream stream, struct vgpu_estimate *estimate,
                                        struct vgpu_device *device, uint64_t mark_ns) {
    struct vgpu__sample *sample = find_pair(context);
    CUresult result;
    if (sample == NULL)
        return NULL;
    sample->estimate = estimate;
    sample->device = device;
    sample->mark_ns = mark_ns;
    sample->begun_ns = vgpu_now_ns();
    VGPU_CALL(result, cuEventRecord, sample->start, stream);
    if (result != CUDA_SUCCESS) {
        leave(sample, IDLE);
        return NULL;
    }
    sample->group = vgpu_estimate_group(estimate);
    return sample;
}

void vgpu__sample_end(struct vgpu__sample *sample, CUstream stream, bool launched) {
    CUresult result = CUDA_ERROR_UNKNOWN;
    if (launched)
        VGPU_CALL(result, cuEventRecord, sample->end, stream);
    if (result == CUDA_SUCCESS) {
        bool first = vgpu__sample_pending() <= 0;
        count(sample, 1);
        vgpu_limiter_tell(sample->device, first);
    } else {
        vgpu_estimate_ungroup(sample->estimate, &sample->group);
    }
    leave(sample, result == CUDA_SUCCESS ? PENDING : IDLE);
}

int vgpu__sample_pending(void) {
    return __atomic_load_n(&pending, __ATOMIC_RELAXED);
}

static int64_t harvest_one(struct vgpu__sample *sample) {
    CUresult result;
    float milliseconds = 0;
    VGPU_CALL(result, cuEventQuery, sample->end);
    if (result == CUDA_ERROR_NOT_READY) {
        leave(sample, PENDING);
        return 0;
    }
    if (result == CUDA_SUCCESS)
        VGPU_CALL(result, cuEventElapsedTime, &milliseconds, sample->start, sample->end);
    int64_t owed_ns = 0;
    if (result == CUDA_SUCCESS && milliseconds >= 0)
        owed_ns = vgpu_estimate_measured(sample->estimate, &sample->group, (uint64_t)((double)milliseconds * 1e6),
                                         vgpu_limiter_corrected(sample->device));
    else
        vgpu_estimate_ungroup(sample->estimate, &sample->group);
    count(sample, -1);
    vgpu_limiter_finished(sample->device, sample->mark_ns);
    vgpu_limiter_tell(sample->device, vgpu__sample_pending() > 0);
    leave(sample, IDLE);
    return owed_ns;
}

int64_t vgpu__sample_harvest(CUcontext context) {
    int64_t owed_ns = 0;
    if (vgpu__sample_pending() <= 0)
        return 0;
    for (int i = 0; i < __atomic_load_n(&known, __ATOMIC_RELAXED); i++) {
        struct vgpu__sample *sample = &samples[i];
        if (!become(sample, PENDING, LOOKED_AT))
            continue;
        if (sample->context == context)
            owed_ns += harvest_one(sample);
        else
            leave(sample, PENDING);
    }
    return owed_ns;
}

void vgpu__sample_disown(struct vgpu_estimate *estimate) {
    static struct vgpu_estimate nobody;
    for (int i = 0; i < __atomic_load_n(&known, __ATOMIC_RELAXED); i++) {
        struct vgpu__sample *sample = &samples[i];
        if (!become(sample, PENDING, LOOKED_AT))
            continue;
        if (estimate == NULL || sample->estimate == estimate) {
            count(sample, -1);
            sample->estimate = &nobody;
            count(sample, 1);
        }
        leave(sample, PENDING);
    }
}

int vgpu__sample_unknown(void) {
    int unknown = 0;
    for (int i = 0; i < __atomic_load_n(&known, __ATOMIC_RELAXED); i++) {
        struct vgpu__sample *sample = &samples[i];
        if (!become(sample, PENDING, LOOKED_AT))
            continue;
        unknown += vgpu_estimate_new(sample->estimate);
        leave(sample, PENDING);
    }
    return unknown;
}

static void owe(struct vgpu_device *device, int64_t gpu_ns) {
    vgpu_limiter_settle(device, gpu_ns);
    vgpu_limiter_account(device, 0, gpu_ns > 0 ? (uint64_t)gpu_ns : 0, 0);
}

/* Without a result: its work took no longer than from its begin until now. `paid_from_ns` is from when on that time is
 * paid already, by another one. */
static void give_up(struct vgpu__sample *sample, uint64_t *paid_from_ns) {
    int64_t owed_ns = -(int64_t)sample->group.charged_ns;
    if (sample->begun_ns < *paid_from_ns) {
        owed_ns += (int64_t)(*paid_from_ns - sample->begun_ns);
        *paid_from_ns = sample->begun_ns;
    }
    count(sample, -1);
    vgpu_limiter_finished(sample->device, sample->mark_ns);
    if (owed_ns > 0)
        owe(sample->device, owed_ns);
}

/* Look at one that is IDLE or PENDING: *waits says which. Another thread that looks at it, of whatever context, is
 * waited for; not for ever: it may be interrupted by us. */
static bool look(struct vgpu__sample *sample, bool *waits) {
    enum { TRIES = 1000, STEP_NS = 20 * 1000 };
    for (int i = 0; i < TRIES; i++) {
        *waits = become(sample, PENDING, LOOKED_AT);
        if (*waits || become(sample, IDLE, LOOKED_AT))
            return true;
        int state = __atomic_load_n(&sample->state, __ATOMIC_RELAXED);
        if (state == LOOKED_AT)
            vgpu_sleep_ns(STEP_NS);
        else if (state != PENDING && state != IDLE)
            return false;
    }
    return false;
}

void vgpu__sample_hold(CUcontext context) {
    for (int i = 0; i < __atomic_load_n(&known, __ATOMIC_RELAXED); i++) {
        struct vgpu__sample *sample = &samples[i];
        bool waits;
        if (!look(sample, &waits))
            continue;
        if (sample->context == context)
            leave(sample, waits ? HELD_PENDING : HELD_IDLE);
        else
            leave(sample, waits ? PENDING : IDLE);
    }
}

void vgpu__sample_let_go(CUcontext context, bool ended) {
    uint64_t paid_from_ns = vgpu_now_ns();
    for (int i = 0; i < __atomic_load_n(&known, __ATOMIC_RELAXED); i++) {
        struct vgpu__sample *sample = &samples[i];
        bool waits = become(sample, HELD_PENDING, LOOKED_AT);
        if (!waits && !become(sample, HELD_IDLE, LOOKED_AT))
            continue;
        if (sample->context != context) {
            leave(sample, waits ? HELD_PENDING : HELD_IDLE);
            continue;
        }
        if (ended && waits)
            give_up(sample, &paid_from_ns);
        leave(sample, ended ? FREE : waits ? PENDING : IDLE);
    }
}

void vgpu__sample_finish(bool driver_may_be_asked) {
    uint64_t paid_from_ns = vgpu_now_ns();
    for (int i = 0; i < __atomic_load_n(&known, __ATOMIC_RELAXED); i++) {
        struct vgpu__sample *sample = &samples[i];
        struct vgpu_device *device;
        if (!become(sample, PENDING, BUSY))
            continue;
        device = sample->device;
        if (driver_may_be_asked)
            owe(device, harvest_one(sample));
        else
            leave(sample, PENDING);
        if (become(sample, PENDING, BUSY)) {
            give_up(sample, &paid_from_ns);
            leave(sample, IDLE);
        }
    }
}

void vgpu__sample_forget(void) {
    for (int i = 0; i < PAIRS; i++)
        leave(&samples[i], FREE);
    __atomic_store_n(&pending, 0, __ATOMIC_RELAXED);
}
