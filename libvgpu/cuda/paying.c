/* SPDX-License-Identifier: Apache-2.0
 *
 * What a launch pays before it starts, and when it waits: the common part of all launches (launch.h). Each thread draws
 * credit of about a millisecond from the share at once; while that lasts, a launch costs no clock and no lock.
 */
#include "core/clock.h"
#include "core/limiter.h"
#include "core/ptrmap.h"
#include "cuda/footprint.h"
#include "cuda/kinds.h"
#include "cuda/launch.h"
#include "cuda/localmemory.h"
#include "cuda/place.h"
#include "cuda/sampling.h"
#include "cuda/thread.h"

#include <stddef.h>

#define thread vgpu__thread

enum {
    KEY_BITS = 56,                /* of a handle; above it, for kernels and copies, how large it is */
    HANDLE_BITS = 48,             /* of which so many are used; between, which device it is launched on */
    GUESS_NS = 100 * 1000 * 1000, /* of a launch that cannot be measured, if no other was */
    UNKNOWN_WAIT_NS = 1000 * 1000 *
        1000, /* for the first measurement, at each launch; not for ever: it may wait for what this thread does next */
    UNKNOWN_STEP_NS = 20 * 1000,
    UNKNOWN_LONGEST_STEP_NS = 1000 * 1000,
    PROBE_NS = 100 * 1000 * 1000, /* how long, and as long again, doubtful work waits for its payment */
    QUEUE_NS = 8 * 1000 * 1000,   /* predicted GPU time that may be queued */
    QUEUE_LEAST = 2,              /* pieces of work that may */
    QUEUE_UNKNOWN = 8,            /* pieces of work that were never measured */
    QUEUE_STEP_NS = 100 * 1000,
    QUEUE_LONGEST_STEP_NS = 1000 * 1000,
    QUEUE_WAIT_NS = 100 * 1000 * 1000,
};

/* ---- Handles and captures ---- */

void vgpu__launch_capture(int change) {
    __atomic_fetch_add(&vgpu__captures, change, __ATOMIC_RELAXED);
    if (change > 0)
        __atomic_fetch_add(&vgpu__plan_turn, 1, __ATOMIC_RELEASE);
}

void vgpu__launch_forget(void) {
    thread = (struct vgpu__thread){0};
    vgpu__captures = 0;
    vgpu__sample_forget();
    vgpu_estimator_forget();
}

/* A kernel of a library, or a graph, is launched on several devices by one handle: each has code and memory for its
 * threads, and a speed of its own. */
static uint64_t key_on(uint64_t key, uint32_t device) {
    return key ^ ((uint64_t)device << HANDLE_BITS);
}

static uint64_t key_here(uint64_t key, const struct vgpu_device *device) {
    return key_on(key, (uint32_t)(device - vgpu__process->devices));
}

void vgpu__launch_renew(uint64_t key) {
    for (uint32_t i = 0; i < vgpu__process->device_count; i++) {
        struct vgpu_estimate *estimate = vgpu_estimate_find(key_on(key, i)); /* one of its own */
        struct vgpu_charge launched;
        if (estimate != NULL) {
            vgpu__sample_disown(estimate);
            vgpu_estimate_renew(estimate);
        }
        vgpu_ptrmap_take(key_on(key, i), VGPU_KIND_LAUNCHED, &launched);
    }
}

static void renew_all(void) {
    __atomic_fetch_add(&vgpu__handles, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&vgpu__plan_turn, 1, __ATOMIC_RELEASE);
    vgpu_estimator_renew();
}

void vgpu__launch_renew_all(void) {
    vgpu__sample_disown(NULL);
    renew_all();
}

static bool something_is_captured(void) {
    return __atomic_load_n(&vgpu__captures, __ATOMIC_RELAXED) > 0;
}

uint64_t vgpu__launch_key(const void *handle, uint64_t size) {
    uint64_t log2 = size > 0 ? 64 - (uint64_t)__builtin_clzll(size) : 0; /* 0..64: user addresses leave 8 bits */
    uint64_t key = (uint64_t)(uintptr_t)handle ^ (log2 << KEY_BITS);
    return key != 0 ? key : 1;
}

/* What a key was made of. */
static bool is_kernel(uint64_t key) {
    return key >> KEY_BITS != 0;
}

static void *handle_of(uint64_t key) {
    return (void *)(uintptr_t)(key & ((UINT64_C(1) << HANDLE_BITS) - 1));
}

/* ---- Paying ---- */

/* Settle what measurements say about launches that were charged before: at once, so that whoever launches next waits
 * for it. */
static void harvest(CUcontext context) {
    int64_t owed = vgpu__sample_harvest(context);
    thread.gpu_ns += owed;
    vgpu_limiter_settle(thread.device, owed);
}

/* New work is launched again and again, and nobody knows yet what it takes: let the first measurement come in. Where
 * none is under way, this launch is measured. What was launched meanwhile is paid in full when it was measured, so
 * nothing is guessed here. */
static void wait_for_measurement(CUcontext context, struct vgpu_estimate *estimate) {
    uint64_t start = vgpu_now_ns(), now = start, step = UNKNOWN_STEP_NS;
    while (vgpu_estimate_unknown(estimate) && now - start < UNKNOWN_WAIT_NS) {
        if (__atomic_load_n(&estimate->under_way, __ATOMIC_RELAXED) == 0)
            break;
        vgpu_sleep_ns(step);
        step = step < UNKNOWN_LONGEST_STEP_NS ? 2 * step : step;
        harvest(context);
        now = vgpu_now_ns();
    }
    thread.throttled_ns += now - start;
}

static bool is_enough(const struct vgpu_device *device) {
    if (vgpu__sample_pending() < QUEUE_LEAST)
        return false;
    return vgpu_limiter_inflight_ns(device) > QUEUE_NS || vgpu__sample_unknown() >= QUEUE_UNKNOWN;
}

/* Enough is queued: go on when some of it is done. So a share that has to give way has little that still runs, and what
 * the bucket gains while neighbours have the GPU is kept. Two pieces of work may always be there, one that runs and one
 * that follows it. Work that nobody knows may be of any length: few of it may be there. Where nothing moves for a
 * while, the queue may wait for what this thread does next. */
static void wait_for_queue(CUcontext context, struct vgpu_device *device) {
    static uint64_t stalled_at_ns; /* the work that nobody waits for again before some of it is done */
    uint64_t start = vgpu_now_ns(), now = start, step = QUEUE_STEP_NS;
    while (is_enough(device)) {
        uint64_t finished_ns = __atomic_load_n(&device->finished_ns, __ATOMIC_RELAXED);
        if (__atomic_load_n(&stalled_at_ns, __ATOMIC_RELAXED) == finished_ns + 1)
            break;
        if (now - start > QUEUE_WAIT_NS + vgpu_limiter_inflight_ns(device)) {
            __atomic_store_n(&stalled_at_ns, finished_ns + 1, __ATOMIC_RELAXED);
            break;
        }
        vgpu_sleep_ns(step);
        step = step < QUEUE_LONGEST_STEP_NS ? 2 * step : step;
        harvest(context);
        vgpu_limiter_keep(device);
        now = vgpu_now_ns();
    }
}

/* Nothing runs before older debts are paid. But what new work takes is in doubt at first, and a share that pays for the
 * slices of its neighbours would not measure again for long: one launch at a time goes ahead then, to be measured. The
 * debt stays. */
static void pay(struct vgpu_device *device, CUcontext context, struct vgpu_estimate *estimate) {
    bool paid = false;
    while (!paid && context != NULL && vgpu_estimate_doubtful(estimate)) {
        uint64_t patience = PROBE_NS + vgpu_now_ns() % PROBE_NS; /* at random: not with all the others again */
        uint64_t waited = vgpu_limiter_wait(device, patience);
        thread.throttled_ns += waited;
        harvest(context);
        paid = waited < patience || __atomic_load_n(&estimate->under_way, __ATOMIC_RELAXED) == 0;
    }
    if (!paid)
        thread.throttled_ns += vgpu_limiter_wait(device, UINT64_MAX);
    int64_t chunk = (int64_t)VGPU_CHUNK_NS * vgpu_limiter_rate_percent(device) / 100;
    int64_t draw = chunk - (thread.credit_ns < 0 ? thread.credit_ns : chunk);
    vgpu_limiter_draw(device, draw);
    thread.credit_ns += draw;
}

static void charge(struct vgpu__launch *launch, uint64_t gpu_ns) {
    vgpu__thread_charge(gpu_ns);
    launch->gpu_ns += gpu_ns;
}

/* Off the hot path: no credit left, something to measure, or time to tell the books. */
static void settle(struct vgpu__launch *launch, struct vgpu_estimate *estimate, bool sample, uint64_t gpu_ns) {
    struct vgpu__place place;
    vgpu__thread_watch();
    vgpu__place_enter(&place, launch->stream, true);
    if (place.context != NULL) {
        harvest(place.context);
        if (vgpu_limiter_holds(thread.device)) {
            if (vgpu_estimate_unknown(estimate))
                wait_for_measurement(place.context, estimate);
            wait_for_queue(place.context, thread.device);
        }
    }
    if (gpu_ns == 0)
        charge(launch, vgpu_estimate_reprice(estimate));
    /* What is new costs nothing before it is measured: its credit never ends, but it runs after older debts too. */
    if (thread.credit_ns < 0 || vgpu_estimate_new(estimate) || vgpu_limiter_suspended(thread.device))
        pay(thread.device, place.context, estimate);
    uint64_t mark_ns = vgpu__thread_account();
    if (sample && place.context != NULL)
        launch->sample = vgpu__sample_begin(place.context, launch->stream, estimate, thread.device, mark_ns);
    if (launch->sample == NULL && vgpu_estimate_new(estimate)) {
        vgpu__thread_charge(GUESS_NS);
        launch->guessed_ns = GUESS_NS;
    }
    vgpu__place_leave(&place);
}

/* No call of the driver where nothing is captured: the usual case. */
bool vgpu__launch_captured(CUstream stream, uint64_t *capture) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    CUresult result;
    unsigned long long id = 0;
    if (!something_is_captured())
        return false;
    VGPU_CALL(result, cuStreamGetCaptureInfo, stream, &status, &id);
    *capture = id;
    return result == CUDA_SUCCESS && status != CU_STREAM_CAPTURE_STATUS_NONE;
}

/* True if that capture still goes on. Where it does not, another thread ended it, and what was put on the stream
 * meanwhile may have run. */
static bool captured_since(CUstream stream, uint64_t capture) {
    uint64_t now;
    return vgpu__launch_captured(stream, &now) && now == capture;
}

static struct vgpu_device *device_of(struct vgpu_process *process, CUstream stream, CUresult *result) {
    struct vgpu_device *device = __atomic_load_n(&process->only_device, __ATOMIC_RELAXED);
    CUdevice ordinal;
    if (device != NULL)
        return device;
    *result = vgpu__place_ordinal(stream, &ordinal);
    return *result == CUDA_SUCCESS ? vgpu__cuda_device(ordinal, result) : NULL;
}

/* A launch in the middle of a call of the driver, or of the payment for another launch: a signal handler's. What was
 * interrupted may hold locks, of ours and of the driver: nothing here takes one or asks the driver for anything. So it
 * cannot be measured, and what nobody knows yet is taken for a guess until another launch is. */
static void pay_at_once(struct vgpu_device *device, uint64_t key) {
    struct vgpu_estimate *estimate = vgpu_estimate_of(key_here(key, device));
    bool sample;
    uint64_t gpu_ns = vgpu_estimate_launch(estimate, &sample);
    if (gpu_ns == 0) {
        vgpu__footprint_suspect(device); /* its code may be loaded now */
        gpu_ns = GUESS_NS;
        __atomic_fetch_add(&estimate->charged_ns, gpu_ns, __ATOMIC_RELAXED);
    }
    uint64_t throttled_ns = vgpu_limiter_wait(device, UINT64_MAX);
    vgpu_limiter_draw(device, (int64_t)gpu_ns);
    vgpu_limiter_launched(device, gpu_ns);
    vgpu_limiter_account(device, 1, gpu_ns, throttled_ns);
}

/* The functions that were launched are told by their estimates, of which there are so many: beyond, they are remembered
 * one by one, until handles may come again. */
static bool is_first(const struct vgpu_estimate *estimate, uint64_t key) {
    struct vgpu_charge replaced, launched;
    if (vgpu_estimate_unlaunched(estimate))
        return true;
    if (__atomic_load_n(&estimate->key, __ATOMIC_RELAXED) == key)
        return false;
    uint64_t now = __atomic_load_n(&vgpu__handles, __ATOMIC_RELAXED) + 1;
    if (vgpu_ptrmap_look(key, VGPU_KIND_LAUNCHED, &launched) && launched.bytes == now)
        return false;
    launched = (struct vgpu_charge){.key = key, .kind = VGPU_KIND_LAUNCHED, .bytes = now};
    vgpu_ptrmap_put(&launched, &replaced);
    return true;
}

/* Work that was never launched brings its code to the device, and memory for its threads: nobody knows before how much
 * code that is, but there is room for the other. */
static CUresult first_coming(struct vgpu__launch *launch, struct vgpu_device *device, uint64_t key) {
    struct vgpu__place place;
    CUresult result = vgpu__footprint_code_coming(device);
    if (result != CUDA_SUCCESS)
        return result;
    vgpu__place_enter(&place, launch->stream, something_is_captured());
    if (place.context != NULL)
        result = vgpu__local_first(device, handle_of(key), is_kernel(key), &launch->local_bytes);
    vgpu__place_leave(&place);
    return result;
}

/* What was reserved for it is held now, or it comes back. */
static void first_came(const struct vgpu__launch *launch, CUresult result) {
    struct vgpu__place place;
    if (launch->local_bytes > 0 && result != CUDA_SUCCESS) {
        vgpu__place_enter(&place, launch->stream, something_is_captured());
        vgpu__local_not(launch->device, launch->local_bytes);
        vgpu__place_leave(&place);
    }
    vgpu__footprint_code_came(launch->device, launch->local_bytes > 0);
}

static CUresult begin(struct vgpu__launch *launch, uint64_t key, CUstream stream, bool code) {
    *launch = (struct vgpu__launch){.stream = stream};
    struct vgpu_process *process = vgpu_process();
    if (process == NULL)
        return CUDA_ERROR_NOT_PERMITTED;
    CUresult result = CUDA_SUCCESS;
    struct vgpu_device *device = device_of(process, stream, &result);
    if (device == NULL)
        return result;
    if (vgpu__launch_captured(stream, &launch->capture)) {
        launch->captured = true;
        launch->key = key;
        return CUDA_SUCCESS;
    }
    if (vgpu__inside > 0 || thread.busy > 0) {
        pay_at_once(device, key);
        return CUDA_SUCCESS;
    }
    thread.busy++;
    if (device != thread.device)
        vgpu__thread_turn_to(device);
    key = key_here(key, device);
    if (key != thread.key) {
        thread.key = key;
        thread.estimate = vgpu_estimate_of(key);
    }
    launch->first = code && is_first(thread.estimate, key);
    if (launch->first && (result = first_coming(launch, device, key)) != CUDA_SUCCESS) {
        thread.busy--;
        return result;
    }
    bool sample;
    uint64_t gpu_ns = vgpu_estimate_launch(thread.estimate, &sample);
    charge(launch, gpu_ns);
    if (thread.credit_ns < 0)
        vgpu__plans_end(); /* what they set aside comes back */
    if (thread.launches + 1 >= VGPU_ACCOUNT_EVERY || thread.credit_ns < 0 || sample || vgpu_limiter_suspended(device))
        settle(launch, thread.estimate, sample, gpu_ns);
    thread.launches++;
    launch->charged = true;
    launch->device = device;
    launch->estimate = thread.estimate;
    thread.busy--;
    return CUDA_SUCCESS;
}

CUresult vgpu__launch_begin(struct vgpu__launch *launch, uint64_t key, CUstream stream) {
    return begin(launch, key, stream, true);
}

CUresult vgpu__launch_begin_copy(struct vgpu__launch *launch, uint64_t key, CUstream stream) {
    return begin(launch, key, stream, false);
}

static void take_back(const struct vgpu__launch *launch) {
    uint64_t gpu_ns = launch->gpu_ns + launch->guessed_ns;
    vgpu_estimate_uncount(launch->estimate, launch->gpu_ns);
    bool here = thread.device == launch->device;
    thread.launches -= here && thread.launches > 0;
    if (here && thread.launched_ns >= gpu_ns) {
        vgpu__thread_uncharge(gpu_ns);
        return;
    }
    vgpu_limiter_settle(launch->device, -(int64_t)gpu_ns); /* the books have it already */
    if (here)
        thread.gpu_ns -= (int64_t)gpu_ns;
}

/* What was to be captured ran instead, if another thread ended that capture in between. */
static void pay_unless_captured(const struct vgpu__launch *launch) {
    CUresult result;
    if (captured_since(launch->stream, launch->capture))
        return;
    struct vgpu_device *device = device_of(vgpu__process, launch->stream, &result);
    if (device != NULL)
        pay_at_once(device, launch->key);
}

void vgpu__launch_end(struct vgpu__launch *launch, CUresult result) {
    if (launch->sample != NULL)
        vgpu__sample_end(launch->sample, launch->stream, result == CUDA_SUCCESS);
    if (__builtin_expect(result != CUDA_SUCCESS, 0) && launch->charged)
        take_back(launch);
    if (launch->captured && result == CUDA_SUCCESS)
        pay_unless_captured(launch);
    if (__builtin_expect(launch->first, 0))
        first_came(launch, result);
}

/* ---- What is paid after the work ---- */

void vgpu__launch_synchronized(void) {
    struct vgpu_process *process = vgpu_process();
    struct vgpu__place place;
    CUresult result;
    if (process == NULL || vgpu__sample_pending() <= 0 || vgpu__inside > 0 || thread.busy > 0)
        return;
    thread.busy++;
    vgpu__place_enter(&place, NULL, true);
    struct vgpu_device *device = place.context != NULL ? device_of(process, NULL, &result) : NULL;
    if (device != NULL) {
        vgpu__thread_watch();
        if (device != thread.device)
            vgpu__thread_turn_to(device);
        harvest(place.context);
        vgpu__thread_account();
    }
    vgpu__place_leave(&place);
    thread.busy--;
}

void vgpu__launch_context_ending(CUcontext context, bool surely) {
    struct vgpu__place place;
    if (context == NULL)
        return;
    if (vgpu__sample_pending() > 0) {
        vgpu__place_enter_context(&place, context, true);
        if (place.context != NULL)
            vgpu__launch_synchronized();
        vgpu__place_leave(&place);
    }
    vgpu__sample_hold(context);
    if (surely)
        renew_all(); /* another thread may get the handles of its functions before we know that it has ended */
}

void vgpu__launch_context_ended(CUcontext context, bool ended) {
    if (context == NULL)
        return;
    vgpu__sample_let_go(context, ended);
    if (ended)
        renew_all(); /* its functions ended with it */
}

/* Amid of a call of the driver it might hold what another one waits for. A fork's child that has not used the driver
 * itself has its parent's samples, and must not ask for them. */
void vgpu__launch_process_ends(void) {
    const struct vgpu_process *process = vgpu__process;
    if (process != NULL && __atomic_load_n(&process->state, __ATOMIC_ACQUIRE) == VGPU_ATTACHED &&
        vgpu__sample_pending() > 0)
        vgpu__sample_finish(vgpu__inside == 0 && thread.busy == 0);
}
