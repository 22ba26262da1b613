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

/* ---- Created contexts ---- */

static void remember(CUcontext context, struct vgpu_device *device) {
    struct vgpu_charge replaced, charge = {.key = (uintptr_t)context, .kind = VGPU_KIND_CONTEXT, .device = device};
    vgpu_ptrmap_put(&charge, &replaced); /* without memory to remember it, it stays charged */
}

/* What was allocated in it is freed, and what it took itself. */
static void context_gone(CUcontext context) {
    struct vgpu_charge known;
    __atomic_fetch_add(&endings, 1, __ATOMIC_RELEASE);
    vgpu__memory_context_gone(context);
    if (vgpu_ptrmap_take((uintptr_t)context, VGPU_KIND_CONTEXT, &known))
        vgpu__footprint_context_gone(known.device);
}

/* A context on a device without a share is refused; so no other call can reach that device. `unmake` undoes the call,
 * which has put the context into `made`. */
#define CREATE(context, ordinal, unmake, symbol, ...)                                                                  \
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
            remember(made, device);                                                                                    \
            *(context) = made;                                                                                         \
        }                                                                                                              \
        return result;                                                                                                 \
    } while (0)

CUresult cuCtxCreate(CUcontext *ctx, unsigned int flags, CUdevice dev) {
    VGPU_ENTER(cuCtxCreate, ctx, flags, dev);
    CREATE(ctx, dev, VGPU_CALL(result, cuCtxDestroy, made), cuCtxCreate, flags, dev);
}

CUresult cuCtxCreate_v2(CUcontext *ctx, unsigned int flags, CUdevice dev) {
    VGPU_ENTER(cuCtxCreate_v2, ctx, flags, dev);
    CREATE(ctx, dev, VGPU_CALL(result, cuCtxDestroy_v2, made), cuCtxCreate_v2, flags, dev);
}

CUresult cuCtxCreate_v3(CUcontext *ctx, CUexecAffinityParam *affinity, int count, unsigned int flags, CUdevice dev) {
    VGPU_ENTER(cuCtxCreate_v3, ctx, affinity, count, flags, dev);
    CREATE(ctx, dev, VGPU_CALL(result, cuCtxDestroy_v2, made), cuCtxCreate_v3, affinity, count, flags, dev);
}

CUresult cuCtxCreate_v4(CUcontext *ctx, CUctxCreateParams *params, unsigned int flags, CUdevice dev) {
    VGPU_ENTER(cuCtxCreate_v4, ctx, params, flags, dev);
    CREATE(ctx, dev, VGPU_CALL(result, cuCtxDestroy_v2, made), cuCtxCreate_v4, params, flags, dev);
}

/* A call that may end a context. `find` sets `context` to the one that is meant, NULL if there is none; `ended` says
 * whether it has ended, once the driver has done what it was asked for. */
#define END(find, ended, symbol, what)                                                                                 \
    do {                                                                                                               \
        CUcontext context = NULL;                                                                                      \
        if (vgpu__attached() && (result = (find)) != CUDA_SUCCESS)                                                     \
            break;                                                                                                     \
        vgpu__launch_context_ending(context);                                                                          \
        VGPU_CALL(result, symbol, what);                                                                               \
        bool over = result == CUDA_SUCCESS && context != NULL && (ended);                                              \
        vgpu__launch_context_ended(context, over);                                                                     \
        if (over)                                                                                                      \
            context_gone(context);                                                                                     \
    } while (0)

#define ENDS(find, ended, symbol, what)                                                                                \
    do {                                                                                                               \
        CUresult result = CUDA_SUCCESS;                                                                                \
        VGPU_ENTER(symbol, what);                                                                                      \
        END(find, ended, symbol, what);                                                                                \
        return result;                                                                                                 \
    } while (0)

CUresult cuCtxDestroy(CUcontext ctx) {
    ENDS((context = ctx, CUDA_SUCCESS), true, cuCtxDestroy, ctx);
}

CUresult cuCtxDestroy_v2(CUcontext ctx) {
    ENDS((context = ctx, CUDA_SUCCESS), true, cuCtxDestroy_v2, ctx);
}

static bool is_alive(CUcontext context) {
    CUresult result;
    unsigned int version;
    VGPU_CALL(result, cuCtxGetApiVersion, context, &version);
    return result == CUDA_SUCCESS;
}

/* Gives back one use; the last one ends the context. */
CUresult cuCtxDetach(CUcontext ctx) {
    ENDS((context = ctx, CUDA_SUCCESS), !is_alive(ctx), cuCtxDetach, ctx);
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

/* Whether a call makes or ends a primary context must not change before it is made. */
static struct vgpu_lock primaries = VGPU_UNLOCKED;

void vgpu__contexts_forget(void) {
    endings++;
    vgpu_lock_renew(&primaries);
}

static CUresult retain_or_create(CUcontext *ctx, CUdevice dev) {
    CUresult result;
    if (primary_active(dev)) {
        VGPU_CALL(result, cuDevicePrimaryCtxRetain, ctx, dev);
        return result;
    }
    CREATE(ctx, dev, VGPU_CALL(result, cuDevicePrimaryCtxRelease_v2, dev), cuDevicePrimaryCtxRetain, dev);
}

static CUresult retain_primary(CUcontext *ctx, CUdevice dev) {
    CUresult result;
    if (vgpu__attached() && vgpu__cuda_device(dev, &result) == NULL)
        return result;
    vgpu__enter(&primaries);
    result = retain_or_create(ctx, dev);
    vgpu__leave(&primaries);
    return result;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *ctx, CUdevice dev) {
    VGPU_ENTER(cuDevicePrimaryCtxRetain, ctx, dev);
    return retain_primary(ctx, dev);
}

#define PRIMARY_ENDS(ended, symbol, dev)                                                                               \
    do {                                                                                                               \
        CUresult result = CUDA_SUCCESS;                                                                                \
        VGPU_ENTER(symbol, dev);                                                                                       \
        if (!vgpu__attached())                                                                                         \
            return VGPU_REAL(symbol)(dev);                                                                             \
        vgpu__enter(&primaries);                                                                                       \
        END(find_primary(dev, &context), ended, symbol, dev);                                                          \
        vgpu__leave(&primaries);                                                                                       \
        return result;                                                                                                 \
    } while (0)

CUresult cuDevicePrimaryCtxRelease(CUdevice dev) {
    PRIMARY_ENDS(primary_ended(dev, context), cuDevicePrimaryCtxRelease, dev);
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice dev) {
    PRIMARY_ENDS(primary_ended(dev, context), cuDevicePrimaryCtxRelease_v2, dev);
}

/* A reset frees everything, though the context's handle may stay the same. */
CUresult cuDevicePrimaryCtxReset(CUdevice dev) {
    PRIMARY_ENDS(true, cuDevicePrimaryCtxReset, dev);
}

CUresult cuDevicePrimaryCtxReset_v2(CUdevice dev) {
    PRIMARY_ENDS(true, cuDevicePrimaryCtxReset_v2, dev);
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
    vgpu__enter(&primaries);
    bool looked = vgpu_ptrmap_look((uintptr_t)context, VGPU_KIND_CONTEXT, &known);
    if (!looked && find_primary(ordinal, &primary) == CUDA_SUCCESS) {
        looked = primary != NULL; /* one that is current may not be active yet */
        if (primary == context) {
            vgpu__footprint_found(device);
            remember(context, device);
        }
    }
    vgpu__leave(&primaries);
    if (looked) {
        seen.context = context;
        seen.endings = now;
    }
}

/* ---- Green contexts: a part of a device's multiprocessors, on top of its primary context, which they keep alive ----
 */

static void release_primary(CUcontext primary, CUdevice dev) {
    CUresult result;
    vgpu__enter(&primaries);
    vgpu__launch_context_ending(primary);
    VGPU_CALL(result, cuDevicePrimaryCtxRelease_v2, dev);
    bool ended = result == CUDA_SUCCESS && primary_ended(dev, primary);
    vgpu__launch_context_ended(primary, ended);
    if (ended)
        context_gone(primary);
    vgpu__leave(&primaries);
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
        struct vgpu_charge replaced,
            charge = {.key = (uintptr_t)made, .kind = VGPU_KIND_GREEN, .device = device, .bytes = (uint64_t)dev};
        vgpu_ptrmap_put(&charge, &replaced); /* forgotten: what ends with it stays charged */
        *green = made;
    }
    if (primary != NULL)
        release_primary(primary, dev); /* the green context keeps it, if there is one */
    return result;
}

/* What was allocated in it lives in the primary context, which may end with it. */
CUresult cuGreenCtxDestroy(CUgreenCtx green) {
    CUresult result;
    CUcontext own = NULL, primary = NULL;
    bool primary_over = false;
    struct vgpu_charge known = {0};
    struct vgpu_charge replaced;
    VGPU_ENTER(cuGreenCtxDestroy, green);
    if (!vgpu__attached() || !vgpu_ptrmap_take((uintptr_t)green, VGPU_KIND_GREEN, &known))
        return VGPU_REAL(cuGreenCtxDestroy)(green);
    VGPU_CALL(result, cuCtxFromGreenCtx, &own, green);
    if (result == CUDA_SUCCESS)
        result = find_primary((CUdevice)known.bytes, &primary);
    if (result == CUDA_SUCCESS) {
        vgpu__launch_context_ending(own);
        vgpu__launch_context_ending(primary);
        VGPU_CALL(result, cuGreenCtxDestroy, green);
        vgpu__launch_context_ended(own, result == CUDA_SUCCESS);
        primary_over = result == CUDA_SUCCESS && primary != NULL && primary_ended((CUdevice)known.bytes, primary);
        vgpu__launch_context_ended(primary, primary_over);
    }
    if (result != CUDA_SUCCESS) {
        vgpu_ptrmap_put(&known, &replaced);
        return result;
    }
    vgpu__pools_context_gone(own);
    if (own != primary && primary != NULL)
        vgpu_ptrmap_hand_over(own, primary);
    if (primary_over)
        context_gone(primary);
    vgpu__footprint_settle(known.device);
    return result;
}
