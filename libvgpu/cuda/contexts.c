/* SPDX-License-Identifier: Apache-2.0
 *
 * Contexts: only on devices with a share; charged for what they take themselves; their end frees what was allocated in
 * them.
 */
#include "core/lock.h"
#include "cuda/footprint.h"
#include "cuda/launch.h"
#include "cuda/memory.h"
#include "cuda/pools.h"

#include <stddef.h>

static unsigned int endings; /* of contexts, and forks: what a thread has seen before may be another one now */

/* Held from before a call that may end a context (but cuCtxDestroy: below) until all that was known of it is forgotten,
 * and while what another call has made is remembered: the driver may give the handle again at once. And whether a call
 * makes or ends a primary context must not change before it is made. */
static struct vgpu_lock lives = VGPU_UNLOCKED;

/* The context that may be ending with the lock held. It is so before `endings` is another one, and no longer once it is
 * forgotten: a thread that uses any other context that is known need not wait for that. */
static CUcontext ending_now;

void vgpu__contexts_forget(void) {
    endings++;
    ending_now = NULL;
    vgpu_lock_renew(&lives);
}

/* ---- Created contexts ---- */

static void remember(CUcontext context, struct vgpu_device *device) {
    struct vgpu_charge replaced, charge = {.key = (uintptr_t)context, .kind = VGPU_KIND_CONTEXT, .device = device};
    vgpu_ptrmap_put(&charge, &replaced); /* without memory to remember it, it stays charged */
}

static void remember_created(CUcontext context, struct vgpu_device *device) {
    vgpu__enter(&lives);
    remember(context, device);
    vgpu__leave(&lives);
}

/* What a context that surely ends has owned. The addresses are other threads' before we know. */
static char aside;

/* The lock is held. NULL: there is none. */
static void ending(CUcontext context, bool surely) {
    if (context == NULL)
        return;
    __atomic_store_n(&ending_now, context, __ATOMIC_RELEASE);
    __atomic_fetch_add(&endings, 1, __ATOMIC_RELEASE); /* whoever has seen it waits for us */
    vgpu__launch_context_ending(context, surely);
    vgpu__pools_context_ending(context);
    if (surely)
        vgpu_ptrmap_set_aside(context, &aside);
}

/* What was allocated in it is freed, and what it took itself. */
static void forget(CUcontext context) {
    struct vgpu_charge known;
    vgpu__memory_gone(&aside);
    vgpu__memory_gone(context);
    if (vgpu_ptrmap_take((uintptr_t)context, VGPU_KIND_CONTEXT, &known))
        vgpu__footprint_context_gone(known.device);
}

static void ended(CUcontext context, bool over) {
    if (context == NULL)
        return;
    vgpu__launch_context_ended(context, over);
    vgpu__pools_context_ended(context, over);
    if (over)
        forget(context);
    else
        vgpu_ptrmap_put_back(&aside, context);
    __atomic_store_n(&ending_now, NULL, __ATOMIC_RELEASE);
}

/* A context on a device without a share is refused; so no other call can reach that device. `unmake` undoes the call,
 * which has put the context into `made`; `known` remembers it. */
#define CREATE(context, ordinal, known, unmake, symbol, ...)                                                           \
    do {                                                                                                               \
        CUresult result, room;                                                                                         \
        CUcontext made = NULL;                                                                                         \
        struct vgpu_device *device = vgpu__cuda_device(ordinal, &result);                                              \
        if (device == NULL)                                                                                            \
            return result;                                                                                             \
        vgpu__footprint_begin(device);                                                                                 \
        if ((result = vgpu__footprint_coming(device)) == CUDA_SUCCESS) {                                               \
            VGPU_CALL(result, symbol, VGPU_OUT(context, made), __VA_ARGS__);                                           \
            room = vgpu__footprint_came(device, result == CUDA_SUCCESS);                                               \
            if (result == CUDA_SUCCESS && room != CUDA_SUCCESS) {                                                      \
                unmake;                                                                                                \
                if (result == CUDA_SUCCESS)                                                                            \
                    vgpu__footprint_context_gone(device);                                                              \
                else                                                                                                   \
                    vgpu__footprint_settle(device); /* not undone: it is there, and charged */                         \
                result = result == CUDA_SUCCESS ? room : CUDA_SUCCESS;                                                 \
            }                                                                                                          \
        }                                                                                                              \
        vgpu__footprint_end(device);                                                                                   \
        if (result == CUDA_SUCCESS) {                                                                                  \
            known(made, device);                                                                                       \
            *(context) = made;                                                                                         \
        }                                                                                                              \
        return result;                                                                                                 \
    } while (0)

CUresult cuCtxCreate(CUcontext *ctx, unsigned int flags, CUdevice dev) {
    VGPU_ENTER(cuCtxCreate, ctx, flags, dev);
    CREATE(ctx, dev, remember_created, VGPU_CALL(result, cuCtxDestroy, made), cuCtxCreate, flags, dev);
}

CUresult cuCtxCreate_v2(CUcontext *ctx, unsigned int flags, CUdevice dev) {
    VGPU_ENTER(cuCtxCreate_v2, ctx, flags, dev);
    CREATE(ctx, dev, remember_created, VGPU_CALL(result, cuCtxDestroy_v2, made), cuCtxCreate_v2, flags, dev);
}

CUresult cuCtxCreate_v3(CUcontext *ctx, CUexecAffinityParam *affinity, int count, unsigned int flags, CUdevice dev) {
    VGPU_ENTER(cuCtxCreate_v3, ctx, affinity, count, flags, dev);
    CREATE(ctx, dev, remember_created, VGPU_CALL(result, cuCtxDestroy_v2, made), cuCtxCreate_v3, affinity, count, flags,
           dev);
}

CUresult cuCtxCreate_v4(CUcontext *ctx, CUctxCreateParams *params, unsigned int flags, CUdevice dev) {
    VGPU_ENTER(cuCtxCreate_v4, ctx, params, flags, dev);
    CREATE(ctx, dev, remember_created, VGPU_CALL(result, cuCtxDestroy_v2, made), cuCtxCreate_v4, params, flags, dev);
}

/* A call that may end a context, with the lock held. `find` sets `context` to the one that is meant, NULL if there is
 * none; `over` says whether it has ended, once the driver has done what it was asked for, which `surely` says before.
 */
#define END(find, surely, over, symbol, what)                                                                          \
    do {                                                                                                               \
        CUcontext context = NULL;                                                                                      \
        if ((result = (find)) != CUDA_SUCCESS)                                                                         \
            break;                                                                                                     \
        ending(context, surely);                                                                                       \
        VGPU_CALL(result, symbol, what);                                                                               \
        ended(context, result == CUDA_SUCCESS && context != NULL && (over));                                           \
    } while (0)

#define ENDS(find, surely, over, symbol, what)                                                                         \
    do {                                                                                                               \
        CUresult result = CUDA_SUCCESS;                                                                                \
        VGPU_ENTER(symbol, what);                                                                                      \
        if (!vgpu__attached())                                                                                         \
            return VGPU_REAL(symbol)(what);                                                                            \
        vgpu__enter(&lives);                                                                                           \
        END(find, surely, over, symbol, what);                                                                         \
        vgpu__leave(&lives);                                                                                           \
        return result;                                                                                                 \
    } while (0)

/* A created context is destroyed without the lock: the driver waits for its work, which may wait for what other threads
 * do meanwhile. So all that is known of it is taken away before, and nothing is looked up by its handle later: that may
 * be another's. What somebody allocates in it while it ends stays charged. */
struct destroyed {
    CUcontext context;
    bool was_known;
    struct vgpu_charge known;
    void *keeper; /* of what it has owned: odd, and none is ever used again */
};

static void destroying(struct destroyed *d) {
    static uintptr_t last = 1;
    if (d->context == NULL)
        return;
    d->keeper = (void *)__atomic_add_fetch(&last, 2, __ATOMIC_RELAXED);
    d->was_known = vgpu_ptrmap_take((uintptr_t)d->context, VGPU_KIND_CONTEXT, &d->known);
    __atomic_fetch_add(&endings, 1, __ATOMIC_RELEASE);
    vgpu__launch_context_ending(d->context, true);
    vgpu__pools_context_ending(d->context);
    vgpu_ptrmap_set_aside(d->context, d->keeper);
}

/* A primary context, which the driver does not destroy so, may have been found again meanwhile. */
static void not_destroyed(const struct destroyed *d) {
    struct vgpu_charge replaced = {.kind = 0};
    vgpu_ptrmap_put_back(d->keeper, d->context);
    if (d->was_known && vgpu_ptrmap_put(&d->known, &replaced) && replaced.kind != 0)
        vgpu__footprint_context_gone(d->known.device);
}

static void destroyed(const struct destroyed *d, bool over) {
    if (d->context == NULL)
        return;
    __atomic_fetch_add(&endings, 1, __ATOMIC_RELEASE); /* for who has looked at it while it ended */
    vgpu__launch_context_ended(d->context, over);
    vgpu__pools_context_ended(d->context, over);
    if (!over) {
        not_destroyed(d);
        return;
    }
    vgpu__memory_gone(d->keeper);
    if (d->was_known)
        vgpu__footprint_context_gone(d->known.device);
}

#define DESTROY(symbol, ctx)                                                                                           \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        VGPU_ENTER(symbol, ctx);                                                                                       \
        if (!vgpu__attached())                                                                                         \
            return VGPU_REAL(symbol)(ctx);                                                                             \
        struct destroyed what = {.context = ctx};                                                                      \
        destroying(&what);                                                                                             \
        VGPU_CALL(result, symbol, ctx);                                                                                \
        destroyed(&what, result == CUDA_SUCCESS);                                                                      \
        return result;                                                                                                 \
    } while (0)

CUresult cuCtxDestroy(CUcontext ctx) {
    DESTROY(cuCtxDestroy, ctx);
}

CUresult cuCtxDestroy_v2(CUcontext ctx) {
    DESTROY(cuCtxDestroy_v2, ctx);
}

/* Is it alive, and the same as it was? Another thread may have been given its handle. (Drivers before CUDA 12 do not
 * tell them apart.) */
static bool is_alive(CUcontext context, unsigned long long *id) {
    CUresult result;
    unsigned int version;
    *id = 0;
    if (vgpu__cuda_exists(VGPU_FN_cuCtxGetId))
        VGPU_CALL(result, cuCtxGetId, context, id);
    else
        VGPU_CALL(result, cuCtxGetApiVersion, context, &version);
    return result == CUDA_SUCCESS;
}

/* Gives back one use; the last one ends the context. */
CUresult cuCtxDetach(CUcontext ctx) {
    unsigned long long before, after;
    ENDS((context = ctx, is_alive(ctx, &before), CUDA_SUCCESS), false, !is_alive(ctx, &after) || after != before,
         cuCtxDetach, ctx);
}

/* ---- The primary context of a device ---- */

enum { TRIES = 3 }; /* of questions whose answer decides what is charged */

static CUresult ask_active(CUdevice dev, bool *active) {
    unsigned int flags;
    int answer = 0;
    CUresult result = CUDA_ERROR_UNKNOWN;
    for (int try = 0; try < TRIES && result != CUDA_SUCCESS; try++)
        VGPU_CALL(result, cuDevicePrimaryCtxGetState, dev, &flags, &answer);
    *active = answer != 0;
    return result;
}

static bool primary_active(CUdevice dev) {
    bool active;
    return ask_active(dev, &active) == CUDA_SUCCESS && active;
}

/* Retaining it for a moment is the only way to learn its handle. NULL: it is not active. */
static CUresult find_primary(CUdevice dev, CUcontext *context) {
    bool active;
    *context = NULL;
    CUresult result = ask_active(dev, &active), released = CUDA_ERROR_UNKNOWN;
    if (result != CUDA_SUCCESS || !active)
        return result;
    VGPU_CALL(result, cuDevicePrimaryCtxRetain, context, dev);
    for (int try = 0; try < TRIES && result == CUDA_SUCCESS && released != CUDA_SUCCESS; try++)
        VGPU_CALL(released, cuDevicePrimaryCtxRelease_v2, dev);
    return result;
}

/* Has this primary context ended? Not, if nobody can tell: what it holds stays charged. */
static bool primary_ended(CUdevice dev, CUcontext context) {
    CUcontext now;
    for (int try = 0; try < TRIES; try++)
        if (find_primary(dev, &now) == CUDA_SUCCESS)
            return now != context;
    return false;
}

static CUresult retain_or_create(CUcontext *ctx, CUdevice dev) {
    CUresult result;
    if (primary_active(dev)) {
        VGPU_CALL(result, cuDevicePrimaryCtxRetain, ctx, dev);
        return result;
    }
    CREATE(ctx, dev, remember, VGPU_CALL(result, cuDevicePrimaryCtxRelease_v2, dev), cuDevicePrimaryCtxRetain, dev);
}

static CUresult retain_primary(CUcontext *ctx, CUdevice dev) {
    CUresult result;
    if (vgpu__attached() && vgpu__cuda_device(dev, &result) == NULL)
        return result;
    vgpu__enter(&lives);
    result = retain_or_create(ctx, dev);
    vgpu__leave(&lives);
    return result;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *ctx, CUdevice dev) {
    VGPU_ENTER(cuDevicePrimaryCtxRetain, ctx, dev);
    return retain_primary(ctx, dev);
}

CUresult cuDevicePrimaryCtxRelease(CUdevice dev) {
    ENDS(find_primary(dev, &context), false, primary_ended(dev, context), cuDevicePrimaryCtxRelease, dev);
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice dev) {
    ENDS(find_primary(dev, &context), false, primary_ended(dev, context), cuDevicePrimaryCtxRelease_v2, dev);
}

/* A reset frees everything, though the context's handle may stay the same. */
CUresult cuDevicePrimaryCtxReset(CUdevice dev) {
    ENDS(find_primary(dev, &context), true, true, cuDevicePrimaryCtxReset, dev);
}

CUresult cuDevicePrimaryCtxReset_v2(CUdevice dev) {
    ENDS(find_primary(dev, &context), true, true, cuDevicePrimaryCtxReset_v2, dev);
}

/* ---- Primary contexts that nobody asked us for: the CUDA runtime has its own way to them, by the driver's tables ----
 */

void vgpu__contexts_see(CUcontext context, struct vgpu_device *device, CUdevice ordinal) {
    static __thread struct {
        CUcontext context;
        unsigned int endings;
    } seen __attribute__((tls_model("initial-exec")));
    unsigned int now = __atomic_load_n(&endings, __ATOMIC_ACQUIRE);
    struct vgpu_charge known;
    CUcontext primary;
    if (__builtin_expect(seen.context == context && seen.endings == now, 1) || vgpu__holding > 0 || vgpu__inside > 0)
        return;
    bool ends = __atomic_load_n(&ending_now, __ATOMIC_ACQUIRE) == context; /* in this order: see there */
    if (!ends && vgpu_ptrmap_look((uintptr_t)context, VGPU_KIND_CONTEXT, &known)) {
        seen.context = context;
        seen.endings = now;
        return;
    }
    vgpu__enter(&lives);
    bool looked = vgpu_ptrmap_look((uintptr_t)context, VGPU_KIND_CONTEXT, &known);
    if (!looked && find_primary(ordinal, &primary) == CUDA_SUCCESS) {
        looked = primary != NULL; /* one that is current may not be active yet */
        if (primary == context) {
            vgpu__footprint_found(device);
            remember(context, device);
        }
    }
    vgpu__leave(&lives);
    if (looked) {
        seen.context = context;
        seen.endings = now;
    }
}

/* ---- Green contexts: a part of a device's multiprocessors, on top of its primary context, which they keep alive ----
 */

static void release_primary(CUcontext primary, CUdevice dev) {
    CUresult result;
    vgpu__enter(&lives);
    ending(primary, false);
    VGPU_CALL(result, cuDevicePrimaryCtxRelease_v2, dev);
    ended(primary, result == CUDA_SUCCESS && primary_ended(dev, primary));
    vgpu__leave(&lives);
}

static void remember_green(CUgreenCtx green, struct vgpu_device *device, CUdevice dev) {
    struct vgpu_charge replaced,
        charge = {.key = (uintptr_t)green, .kind = VGPU_KIND_GREEN, .device = device, .bytes = (uint64_t)dev};
    vgpu__enter(&lives);
    vgpu_ptrmap_put(&charge, &replaced); /* forgotten: what ends with it stays charged */
    vgpu__leave(&lives);
}

CUresult cuGreenCtxCreate(CUgreenCtx *green, CUdevResourceDesc desc, CUdevice dev, unsigned int flags) {
    CUresult result, room;
    VGPU_ENTER(cuGreenCtxCreate, green, desc, dev, flags);
    struct vgpu_device *device = vgpu__cuda_device(dev, &result);
    if (device == NULL)
        return result;
    CUcontext primary = NULL;
    CUgreenCtx made = NULL;
    if (primary_active(dev) == false && (result = retain_primary(&primary, dev)) != CUDA_SUCCESS)
        return result;
    vgpu__footprint_begin(device);
    VGPU_CALL(result, cuGreenCtxCreate, VGPU_OUT(green, made), desc, dev, flags);
    if (result == CUDA_SUCCESS && (room = vgpu__footprint_grown(device)) != CUDA_SUCCESS) {
        VGPU_CALL(result, cuGreenCtxDestroy, made);
        vgpu__footprint_settle(device);
        result = room;
    }
    vgpu__footprint_end(device);
    if (result == CUDA_SUCCESS) {
        remember_green(made, device, dev);
        *green = made;
    }
    if (primary != NULL)
        release_primary(primary, dev); /* the green context keeps it, if there is one */
    return result;
}

/* What was allocated in a green context lives in the primary one. What its threads and heaps have does not. */
static void hand_over(CUcontext own, CUcontext primary) {
    static const CUlimit heaps[] = {CU_LIMIT_PRINTF_FIFO_SIZE, CU_LIMIT_MALLOC_HEAP_SIZE};
    struct vgpu_charge charge;
    if (vgpu_ptrmap_take((uintptr_t)own, VGPU_KIND_LOCAL, &charge))
        vgpu__given(&charge, CUDA_SUCCESS);
    for (size_t i = 0; i < sizeof heaps / sizeof *heaps; i++)
        if (vgpu_ptrmap_take((uintptr_t)own + (uint64_t)heaps[i], VGPU_KIND_LIMIT, &charge))
            vgpu__given(&charge, CUDA_SUCCESS);
    vgpu_ptrmap_hand_over(own, primary);
}

/* The primary context may end with it. */
static CUresult destroy_green(CUgreenCtx green, const struct vgpu_charge *known) {
    CUresult result;
    CUcontext own = NULL, primary = NULL;
    CUdevice dev = (CUdevice)known->bytes;
    VGPU_CALL(result, cuCtxFromGreenCtx, &own, green);
    if (result == CUDA_SUCCESS)
        result = find_primary(dev, &primary);
    if (result != CUDA_SUCCESS)
        return result;
    if (own != primary) {
        vgpu__launch_context_ending(own, false);
        vgpu__pools_context_ending(own);
    }
    ending(primary, false);
    VGPU_CALL(result, cuGreenCtxDestroy, green);
    if (own != primary) {
        vgpu__launch_context_ended(own, result == CUDA_SUCCESS);
        vgpu__pools_context_ended(own, result == CUDA_SUCCESS);
        if (result == CUDA_SUCCESS && primary != NULL)
            hand_over(own, primary);
    }
    ended(primary, result == CUDA_SUCCESS && primary_ended(dev, primary));
    return result;
}

CUresult cuGreenCtxDestroy(CUgreenCtx green) {
    CUresult result;
    struct vgpu_charge known, replaced;
    VGPU_ENTER(cuGreenCtxDestroy, green);
    if (!vgpu__attached())
        return VGPU_REAL(cuGreenCtxDestroy)(green);
    vgpu__enter(&lives);
    if (vgpu_ptrmap_take((uintptr_t)green, VGPU_KIND_GREEN, &known)) {
        result = destroy_green(green, &known);
        if (result == CUDA_SUCCESS)
            vgpu__footprint_settle(known.device);
        else
            vgpu_ptrmap_put(&known, &replaced);
    } else {
        VGPU_CALL(result, cuGreenCtxDestroy, green);
    }
    vgpu__leave(&lives);
    return result;
}
