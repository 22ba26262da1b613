/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda/sampling.h"

#include <stddef.h>

enum { PAIRS = 64 };
/* FREE has no events; IDLE has; BUSY belongs to the thread that made it so; PENDING waits for its end event. */
enum { FREE = 0, IDLE, BUSY, PENDING };

struct vgpu__sample {
    int state;
    CUcontext context;
    CUevent start, end;
    struct vgpu_estimate *estimate;
    struct vgpu_group group;
    struct vgpu_device *device;
    uint64_t mark_ns;
};

static struct vgpu__sample samples[PAIRS];
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

/* A pair of this context, ours to use. */
static struct vgpu__sample *find_pair(CUcontext context) {
    for (int i = 0; i < PAIRS; i++) {
        struct vgpu__sample *sample = &samples[i];
        if (!become(sample, IDLE, BUSY))
            continue;
        if (sample->context == context)
            return sample;
        leave(sample, IDLE);
    }
    for (int i = 0; i < PAIRS; i++) {
        bool used = become(&samples[i], IDLE, BUSY); /* by another context, which has no need of it now */
        if (!used && !become(&samples[i], FREE, BUSY))
            continue;
        if (used)
            destroy_events(&samples[i]);
        if (create_events(&samples[i], context))
            return &samples[i];
        leave(&samples[i], FREE);
        return NULL;
    }
    return NULL;
}

bool vgpu__sample_possible(void) {
    for (int i = 0; i < PAIRS; i++) {
        int state = __atomic_load_n(&samples[i].state, __ATOMIC_RELAXED);
        if (state == FREE || state == IDLE)
            return true;
    }
    return false;
}

/* The sample is on its way to a result (+1) or has one (-1). */
static void count(const struct vgpu__sample *sample, int change) {
    __atomic_fetch_add(&pending, change, __ATOMIC_RELAXED);
    __atomic_fetch_add(&sample->estimate->under_way, (uint32_t)change, __ATOMIC_RELAXED);
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
    for (int i = 0; i < PAIRS; i++) {
        struct vgpu__sample *sample = &samples[i];
        if (!become(sample, PENDING, BUSY))
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
    for (int i = 0; i < PAIRS; i++) {
        struct vgpu__sample *sample = &samples[i];
        if (!become(sample, PENDING, BUSY))
            continue;
        if (estimate == NULL || sample->estimate == estimate) {
            count(sample, -1);
            sample->estimate = &nobody;
            count(sample, 1);
        }
        leave(sample, PENDING);
    }
}

void vgpu__sample_drop(CUcontext context) {
    for (int i = 0; i < PAIRS; i++) {
        struct vgpu__sample *sample = &samples[i];
        if (context == NULL) {
            leave(sample, FREE);
        } else if (become(sample, PENDING, BUSY)) {
            bool gone = sample->context == context;
            if (gone) {
                vgpu_estimate_ungroup(sample->estimate, &sample->group);
                vgpu_limiter_finished(sample->device, sample->mark_ns);
                count(sample, -1);
            }
            leave(sample, gone ? FREE : PENDING);
        } else if (become(sample, IDLE, BUSY)) {
            leave(sample, sample->context == context ? FREE : IDLE);
        }
    }
    if (context == NULL)
        __atomic_store_n(&pending, 0, __ATOMIC_RELAXED);
}
