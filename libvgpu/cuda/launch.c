/* SPDX-License-Identifier: Apache-2.0
 *
 * Launches of kernels in all their forms, and the common part of all launches. Each thread draws credit of about a
 * millisecond from the share at once; while that lasts, a launch costs no clock, no lock and no system call.
 */
#include "cuda/launch.h"

#include "core/clock.h"
#include "core/limiter.h"
#include "cuda/footprint.h"
#include "cuda/sampling.h"
#include "preload/libc.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>

enum {
    ACCOUNT_EVERY = 256, /* launches that a thread keeps to itself */
    UNKNOWN_WAIT_NS = 1000 * 1000 *
        1000, /* for the first measurement, at each launch; not for ever: it may wait for what this thread does next */
    UNKNOWN_STEP_NS = 20 * 1000,
    UNKNOWN_LONGEST_STEP_NS = 1000 * 1000,
    PROBE_NS = 100 * 1000 * 1000, /* how long, and as long again, doubtful work waits for its payment */
    QUEUE_NS = 8 * 1000 * 1000,   /* predicted GPU time that may be queued */
    QUEUE_LEAST = 2,              /* pieces of work that may */
    QUEUE_STEP_NS = 100 * 1000,
    QUEUE_LONGEST_STEP_NS = 1000 * 1000,
    QUEUE_WAIT_NS = 100 * 1000 * 1000,
};

struct thread_state {
    struct vgpu_device *device; /* that the rest is about */
    int64_t credit_ns;          /* drawn and not used */
    int64_t gpu_ns;             /* with what follows: not yet in the books */
    uint64_t launches, throttled_ns;
    uint64_t launched_ns; /* of gpu_ns: predicted at launch */
    uint64_t key;         /* of the last launch */
    struct vgpu_estimate *estimate;
    bool watched; /* thread_ends will be called */
    /* What the quick path needs: this kernel again, so many times, at so much each. */
    uint32_t ahead, ahead_planned;
    uint64_t ahead_ns, blocks;
    CUfunction function;
    const uint32_t *flags; /* of the only share */
};

static __thread struct thread_state thread __attribute__((tls_model("initial-exec")));
static int captures; /* going on in this process */

void vgpu__launch_capture(int change) {
    __atomic_fetch_add(&captures, change, __ATOMIC_RELAXED);
}

void vgpu__launch_leave_context(CUcontext context) {
    if (context == NULL)
        return;
    vgpu__sample_drop(context);
    vgpu_estimator_renew(); /* its functions end with it */
}

void vgpu__launch_forget(void) {
    thread = (struct thread_state){0};
    captures = 0;
    vgpu__sample_drop(NULL);
    vgpu_estimator_forget();
}

void vgpu__launch_renew(uint64_t key) {
    struct vgpu_estimate *estimate = vgpu_estimate_of(key);
    vgpu__sample_disown(estimate);
    vgpu_estimate_renew(estimate);
}

void vgpu__launch_renew_all(void) {
    vgpu__sample_disown(NULL);
    vgpu_estimator_renew();
}

uint64_t vgpu__launch_key(const void *handle, uint64_t blocks) {
    uint64_t size =
        blocks > 0 ? 64 - (uint64_t)__builtin_clzll(blocks) : 0; /* 0..64: log2, user addresses leave 8 bits */
    uint64_t key = (uint64_t)(uintptr_t)handle ^ (size << 56);
    return key != 0 ? key : 1;
}

static void charge(uint64_t gpu_ns) {
    thread.gpu_ns += (int64_t)gpu_ns;
    thread.launched_ns += gpu_ns;
    thread.credit_ns -= (int64_t)gpu_ns;
}

/* ---- The quick path: the same kernel again, while there is credit and nothing to look after ---- */

static void count_ahead(void) {
    uint32_t launches = thread.ahead_planned - thread.ahead;
    thread.ahead = thread.ahead_planned = 0;
    if (launches == 0)
        return;
    thread.launches += launches;
    charge(launches * thread.ahead_ns);
    vgpu_estimate_count(thread.estimate, launches, launches * thread.ahead_ns);
}

/* After a launch that went the long way. */
static void plan_ahead(CUfunction function, uint64_t blocks) {
    const struct vgpu_process *process = vgpu__process;
    if (vgpu__inside > 0 || thread.device == NULL || thread.device->count != 1 || thread.credit_ns < 0 ||
        __atomic_load_n(&process->only_device, __ATOMIC_RELAXED) != thread.device ||
        vgpu__launch_key(function, blocks) != thread.key)
        return;
    uint64_t gpu_ns = __atomic_load_n(&thread.estimate->gpu_ns, __ATOMIC_RELAXED);
    uint64_t room = gpu_ns > 0 ? (uint64_t)thread.credit_ns / gpu_ns : 0;
    uint64_t measured = vgpu_estimate_room(thread.estimate), told = ACCOUNT_EVERY - thread.launches;
    room = room < measured ? room : measured;
    thread.function = function;
    thread.blocks = blocks;
    thread.ahead_ns = gpu_ns;
    thread.flags = &thread.device->shares[0]->limits->flags;
    thread.ahead = thread.ahead_planned = (uint32_t)(thread.launches >= ACCOUNT_EVERY ? 0 : room < told ? room : told);
}

static inline bool quick(CUfunction function, uint64_t blocks) {
    if (__builtin_expect(thread.ahead == 0 || function != thread.function || blocks != thread.blocks, 0) ||
        __builtin_expect(vgpu__inside > 0 || __atomic_load_n(&captures, __ATOMIC_RELAXED) > 0, 0) ||
        __builtin_expect(__atomic_load_n(thread.flags, __ATOMIC_RELAXED) & VGPU_SUSPENDED, 0))
        return false;
    thread.ahead--;
    return true;
}

/* ---- Accounting ---- */

/* What came back waits until there is something to take it from: figures of the books never go down. Returns the mark
 * of the work that was launched up to here. */
static uint64_t account(void) {
    if (thread.device == NULL)
        return 0;
    count_ahead();
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
        account();
}

static void turn_to(struct vgpu_device *device) {
    if (thread.device != NULL) {
        account();
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
        turn_to(NULL);
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

static void watch_thread(void) {
    make_key();
    int state = __atomic_load_n(&keys.state, __ATOMIC_ACQUIRE);
    if (state == 2)
        keys.set(keys.key, &thread);
    thread.watched = state > 1;
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
 * none is under way, go on as soon as there is a pair of events to measure this launch with. What was launched
 * meanwhile is paid in full when it was measured, so nothing is guessed here. */
static void wait_for_measurement(CUcontext context, struct vgpu_estimate *estimate) {
    uint64_t start = vgpu_now_ns(), now = start, step = UNKNOWN_STEP_NS;
    while (vgpu_estimate_unknown(estimate) && now - start < UNKNOWN_WAIT_NS) {
        if (__atomic_load_n(&estimate->under_way, __ATOMIC_RELAXED) == 0 && vgpu__sample_possible())
            break;
        vgpu_sleep_ns(step);
        step = step < UNKNOWN_LONGEST_STEP_NS ? 2 * step : step;
        harvest(context);
        now = vgpu_now_ns();
    }
    thread.throttled_ns += now - start;
}

/* Enough is queued: go on when some of it is done. So a share that has to give way has little that still runs, and what
 * the bucket gains while neighbours have the GPU is kept. Two pieces of work may always be there, one that runs and one
 * that follows it. Where nothing moves for a while, the queue may wait for what this thread does next. */
static void wait_for_queue(CUcontext context, struct vgpu_device *device) {
    static uint64_t stalled_at_ns; /* the work that nobody waits for again before some of it is done */
    uint64_t start = vgpu_now_ns(), now = start, step = QUEUE_STEP_NS;
    while (vgpu_limiter_inflight_ns(device) > QUEUE_NS && vgpu__sample_pending() >= QUEUE_LEAST) {
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

/* Off the hot path: no credit left, something to measure, or time to tell the books. */
static void settle(struct vgpu__launch *launch, struct vgpu_estimate *estimate, bool sample, uint64_t gpu_ns) {
    CUcontext context = NULL;
    CUresult result;
    if (!thread.watched)
        watch_thread();
    if (gpu_ns == 0)
        vgpu__footprint_suspect(thread.device); /* its code may have been loaded by the first launch */
    VGPU_CALL(result, cuCtxGetCurrent, &context);
    bool measurable = result == CUDA_SUCCESS && context != NULL && __atomic_load_n(&captures, __ATOMIC_RELAXED) <= 0;
    if (measurable) {
        harvest(context);
        if (vgpu_limiter_holds(thread.device)) {
            if (vgpu_estimate_unknown(estimate))
                wait_for_measurement(context, estimate);
            wait_for_queue(context, thread.device);
        }
    }
    if (gpu_ns == 0)
        charge(vgpu_estimate_reprice(estimate));
    if (thread.credit_ns < 0 || vgpu_limiter_suspended(thread.device))
        pay(thread.device, measurable ? context : NULL, estimate);
    uint64_t mark_ns = account();
    if (sample && measurable)
        launch->sample = vgpu__sample_begin(context, launch->stream, estimate, thread.device, mark_ns);
}

bool vgpu__launch_captured(CUstream stream) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    CUresult result;
    if (__atomic_load_n(&captures, __ATOMIC_RELAXED) <= 0)
        return false; /* no call of the driver: the usual case */
    VGPU_CALL(result, cuStreamIsCapturing, stream, &status);
    return result == CUDA_SUCCESS && status != CU_STREAM_CAPTURE_STATUS_NONE;
}

CUresult vgpu__launch_begin(struct vgpu__launch *launch, uint64_t key, CUstream stream) {
    launch->sample = NULL;
    launch->stream = stream;
    if (vgpu__inside > 0)
        return CUDA_SUCCESS;
    struct vgpu_process *process = vgpu_process();
    if (process == NULL)
        return CUDA_ERROR_NOT_PERMITTED;
    struct vgpu_device *device = __atomic_load_n(&process->only_device, __ATOMIC_RELAXED);
    if (device == NULL) {
        CUcontext context;
        CUresult result;
        device = vgpu__cuda_current(&context, &result);
        if (device == NULL)
            return result;
    }
    if (vgpu__launch_captured(stream))
        return CUDA_SUCCESS;
    count_ahead();
    if (device != thread.device)
        turn_to(device);
    if (key != thread.key) {
        thread.key = key;
        thread.estimate = vgpu_estimate_of(key);
    }
    bool sample;
    uint64_t gpu_ns = vgpu_estimate_launch(thread.estimate, &sample);
    charge(gpu_ns);
    if (++thread.launches >= ACCOUNT_EVERY || thread.credit_ns < 0 || sample || vgpu_limiter_suspended(device))
        settle(launch, thread.estimate, sample, gpu_ns);
    return CUDA_SUCCESS;
}

void vgpu__launch_end(struct vgpu__launch *launch, CUresult result) {
    if (launch->sample != NULL)
        vgpu__sample_end(launch->sample, launch->stream, result == CUDA_SUCCESS);
}

#define LAUNCH(key, stream, symbol, ...)                                                                               \
    do {                                                                                                               \
        struct vgpu__launch launch;                                                                                    \
        CUresult result = vgpu__launch_begin(&launch, key, stream);                                                    \
        if (result != CUDA_SUCCESS)                                                                                    \
            return result;                                                                                             \
        VGPU_CALL(result, symbol, __VA_ARGS__);                                                                        \
        vgpu__launch_end(&launch, result);                                                                             \
        return result;                                                                                                 \
    } while (0)

/* Of kernels, again and again the same. */
#define LAUNCH_KERNEL(function, size, stream, symbol, ...)                                                             \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        uint64_t many = size;                                                                                          \
        if (quick(function, many)) {                                                                                   \
            VGPU_CALL(result, symbol, __VA_ARGS__);                                                                    \
            return result;                                                                                             \
        }                                                                                                              \
        struct vgpu__launch launch;                                                                                    \
        result = vgpu__launch_begin(&launch, vgpu__launch_key(function, many), stream);                                \
        if (result != CUDA_SUCCESS)                                                                                    \
            return result;                                                                                             \
        VGPU_CALL(result, symbol, __VA_ARGS__);                                                                        \
        vgpu__launch_end(&launch, result);                                                                             \
        plan_ahead(function, many);                                                                                    \
        return result;                                                                                                 \
    } while (0)

static uint64_t blocks(unsigned int x, unsigned int y, unsigned int z) {
    return (uint64_t)x * y * (z > 0 ? z : 1);
}

CUresult cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                        unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared_bytes,
                        CUstream hStream, void **params, void **extra) {
    LAUNCH_KERNEL(function, blocks(grid_x, grid_y, grid_z), hStream, cuLaunchKernel, function, grid_x, grid_y, grid_z,
                  block_x, block_y, block_z, shared_bytes, hStream, params, extra);
}

CUresult cuLaunchKernel_ptsz(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                             unsigned int block_x, unsigned int block_y, unsigned int block_z,
                             unsigned int shared_bytes, CUstream hStream, void **params, void **extra) {
    LAUNCH_KERNEL(function, blocks(grid_x, grid_y, grid_z), vgpu__per_thread(hStream), cuLaunchKernel_ptsz, function,
                  grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, hStream, params, extra);
}

static uint64_t config_key(const CUlaunchConfig *config, CUfunction function) {
    return vgpu__launch_key(function,
                            config != NULL ? blocks(config->gridDimX, config->gridDimY, config->gridDimZ) : 0);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **params, void **extra) {
    LAUNCH(config_key(config, function), config != NULL ? config->hStream : NULL, cuLaunchKernelEx, config, function,
           params, extra);
}

CUresult cuLaunchKernelEx_ptsz(const CUlaunchConfig *config, CUfunction function, void **params, void **extra) {
    LAUNCH(config_key(config, function), vgpu__per_thread(config != NULL ? config->hStream : NULL),
           cuLaunchKernelEx_ptsz, config, function, params, extra);
}

CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                                   unsigned int block_x, unsigned int block_y, unsigned int block_z,
                                   unsigned int shared_bytes, CUstream hStream, void **params) {
    LAUNCH(vgpu__launch_key(function, blocks(grid_x, grid_y, grid_z)), hStream, cuLaunchCooperativeKernel, function,
           grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, hStream, params);
}

CUresult cuLaunchCooperativeKernel_ptsz(CUfunction function, unsigned int grid_x, unsigned int grid_y,
                                        unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                                        unsigned int block_z, unsigned int shared_bytes, CUstream hStream,
                                        void **params) {
    LAUNCH(vgpu__launch_key(function, blocks(grid_x, grid_y, grid_z)), vgpu__per_thread(hStream),
           cuLaunchCooperativeKernel_ptsz, function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes,
           hStream, params);
}

/* One kernel per device, each paid on its own, and measured from before all of them to behind them: nothing of ours may
 * stand between. The context of its stream is made current for that. */
static CUresult enter(CUstream stream) {
    CUcontext context = NULL;
    CUresult result;
    VGPU_CALL(result, cuStreamGetCtx, stream, &context);
    if (result == CUDA_SUCCESS)
        VGPU_CALL(result, cuCtxPushCurrent_v2, context);
    return result;
}

static void leave(void) {
    CUcontext context;
    CUresult ignored;
    VGPU_CALL(ignored, cuCtxPopCurrent_v2, &context);
    (void)ignored;
}

static void end_all(struct vgpu__launch *launches, const CUDA_LAUNCH_PARAMS *list, unsigned int count,
                    CUresult result) {
    for (unsigned int i = 0; i < count; i++) {
        if (launches[i].sample == NULL || enter(list[i].hStream) != CUDA_SUCCESS)
            continue;
        vgpu__launch_end(&launches[i], result);
        leave();
    }
}

CUresult cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *list, unsigned int count, unsigned int flags) {
    struct vgpu__launch launches[VGPU_MAX_ORDINALS];
    CUresult result = CUDA_SUCCESS;
    unsigned int paid = 0;
    if (list == NULL || count > VGPU_MAX_ORDINALS)
        return CUDA_ERROR_INVALID_VALUE; /* more than one for each device */
    for (; result == CUDA_SUCCESS && paid < count; paid++) {
        const CUDA_LAUNCH_PARAMS *one = &list[paid];
        uint64_t key = vgpu__launch_key(one->function, blocks(one->gridDimX, one->gridDimY, one->gridDimZ));
        launches[paid].sample = NULL;
        result = enter(one->hStream);
        if (result != CUDA_SUCCESS)
            break;
        result = vgpu__launch_begin(&launches[paid], key, one->hStream);
        leave();
    }
    if (result == CUDA_SUCCESS)
        VGPU_CALL(result, cuLaunchCooperativeKernelMultiDevice, list, count, flags);
    end_all(launches, list, paid, result);
    return result;
}

CUresult cuLaunch(CUfunction function) {
    LAUNCH(vgpu__launch_key(function, 1), NULL, cuLaunch, function);
}

CUresult cuLaunchGrid(CUfunction function, int width, int height) {
    LAUNCH(vgpu__launch_key(function, (uint64_t)width * (uint64_t)height), NULL, cuLaunchGrid, function, width, height);
}

CUresult cuLaunchGridAsync(CUfunction function, int width, int height, CUstream hStream) {
    LAUNCH(vgpu__launch_key(function, (uint64_t)width * (uint64_t)height), hStream, cuLaunchGridAsync, function, width,
           height, hStream);
}
