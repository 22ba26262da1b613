/* SPDX-License-Identifier: Apache-2.0
 *
 * Contexts: only on devices with a share, and their end frees what was allocated in them.
 */
#include "cuda/launch.h"
#include "cuda/memory.h"

#include <stddef.h>

/* A context on a device without a share is refused; so no other call can reach that device. */
#define CREATE(symbol, ordinal, ...)                                                                                   \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        if (vgpu__inside == 0 && vgpu__cuda_device(ordinal, &result) == NULL)                                          \
            return result;                                                                                             \
        VGPU_CALL(result, symbol, __VA_ARGS__);                                                                        \
        return result;                                                                                                 \
    } while (0)

CUresult cuCtxCreate(CUcontext *ctx, unsigned int flags, CUdevice dev) {
    CREATE(cuCtxCreate, dev, ctx, flags, dev);
}

CUresult cuCtxCreate_v2(CUcontext *ctx, unsigned int flags, CUdevice dev) {
    CREATE(cuCtxCreate_v2, dev, ctx, flags, dev);
}

CUresult cuCtxCreate_v3(CUcontext *ctx, CUexecAffinityParam *affinity, int count, unsigned int flags, CUdevice dev) {
    CREATE(cuCtxCreate_v3, dev, ctx, affinity, count, flags, dev);
}

CUresult cuCtxCreate_v4(CUcontext *ctx, CUctxCreateParams *params, unsigned int flags, CUdevice dev) {
    CREATE(cuCtxCreate_v4, dev, ctx, params, flags, dev);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *ctx, CUdevice dev) {
    CREATE(cuDevicePrimaryCtxRetain, dev, ctx, dev);
}

/* The end of a context frees what was allocated in it, and the events in it. */
#define DESTROY(symbol, ctx)                                                                                           \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        vgpu__launch_leave_context(ctx);                                                                               \
        VGPU_CALL(result, symbol, ctx);                                                                                \
        if (result == CUDA_SUCCESS)                                                                                    \
            vgpu__memory_context_gone(ctx);                                                                            \
        return result;                                                                                                 \
    } while (0)

CUresult cuCtxDestroy(CUcontext ctx) {
    DESTROY(cuCtxDestroy, ctx);
}

CUresult cuCtxDestroy_v2(CUcontext ctx) {
    DESTROY(cuCtxDestroy_v2, ctx);
}

/* Gives back one use; the last one ends the context. */
CUresult cuCtxDetach(CUcontext ctx) {
    CUresult result, alive;
    unsigned int version;
    vgpu__launch_leave_context(ctx);
    VGPU_CALL(result, cuCtxDetach, ctx);
    if (result != CUDA_SUCCESS || vgpu__inside > 0)
        return result;
    VGPU_CALL(alive, cuCtxGetApiVersion, ctx, &version);
    if (alive != CUDA_SUCCESS)
        vgpu__memory_context_gone(ctx);
    return result;
}

/* The primary context of a device, if it is active: retaining it for a moment is the only way to learn its handle. */
static CUcontext primary_context(CUdevice dev) {
    unsigned int flags;
    int active = 0;
    CUresult result;
    CUcontext context = NULL;
    VGPU_CALL(result, cuDevicePrimaryCtxGetState, dev, &flags, &active);
    if (result != CUDA_SUCCESS || !active)
        return NULL;
    VGPU_CALL(result, cuDevicePrimaryCtxRetain, &context, dev);
    if (result != CUDA_SUCCESS)
        return NULL;
    VGPU_CALL(result, cuDevicePrimaryCtxRelease_v2, dev);
    return context;
}

#define PRIMARY_ENDS(symbol, dev)                                                                                      \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        CUcontext context = primary_context(dev);                                                                      \
        vgpu__launch_leave_context(context);                                                                           \
        VGPU_CALL(result, symbol, dev);                                                                                \
        if (result == CUDA_SUCCESS && context != NULL && primary_context(dev) != context)                              \
            vgpu__memory_context_gone(context);                                                                        \
        return result;                                                                                                 \
    } while (0)

CUresult cuDevicePrimaryCtxRelease(CUdevice dev) {
    PRIMARY_ENDS(cuDevicePrimaryCtxRelease, dev);
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice dev) {
    PRIMARY_ENDS(cuDevicePrimaryCtxRelease_v2, dev);
}

/* A reset frees everything, though the context's handle may stay the same. */
#define PRIMARY_RESETS(symbol, dev)                                                                                    \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        CUcontext context = primary_context(dev);                                                                      \
        vgpu__launch_leave_context(context);                                                                           \
        VGPU_CALL(result, symbol, dev);                                                                                \
        if (result == CUDA_SUCCESS && context != NULL)                                                                 \
            vgpu__memory_context_gone(context);                                                                        \
        return result;                                                                                                 \
    } while (0)

CUresult cuDevicePrimaryCtxReset(CUdevice dev) {
    PRIMARY_RESETS(cuDevicePrimaryCtxReset, dev);
}

CUresult cuDevicePrimaryCtxReset_v2(CUdevice dev) {
    PRIMARY_RESETS(cuDevicePrimaryCtxReset_v2, dev);
}

/* ---- Green contexts: a part of a device's multiprocessors, on top of its primary context, which they keep alive ----
 */

CUresult cuGreenCtxCreate(CUgreenCtx *green, CUdevResourceDesc desc, CUdevice dev, unsigned int flags) {
    CUresult result;
    if (vgpu__inside == 0 && vgpu__cuda_device(dev, &result) == NULL)
        return result;
    VGPU_CALL(result, cuGreenCtxCreate, green, desc, dev, flags);
    if (result == CUDA_SUCCESS && vgpu__inside == 0) {
        struct vgpu_charge replaced,
            charge = {.key = (uintptr_t)*green, .kind = VGPU_KIND_GREEN, .bytes = (uint64_t)dev};
        vgpu_ptrmap_put(&charge, &replaced); /* forgotten: what ends with it stays charged */
    }
    return result;
}

/* What was allocated in it lives in the primary context, which may end with it. */
CUresult cuGreenCtxDestroy(CUgreenCtx green) {
    CUresult result;
    CUcontext own = NULL, primary = NULL;
    struct vgpu_charge known = {0};
    bool ours = vgpu__inside == 0 && vgpu_ptrmap_take((uintptr_t)green, VGPU_KIND_GREEN, &known);
    if (ours) {
        VGPU_CALL(result, cuCtxFromGreenCtx, &own, green);
        primary = result == CUDA_SUCCESS ? primary_context((CUdevice)known.bytes) : NULL;
        vgpu__launch_leave_context(own);
    }
    VGPU_CALL(result, cuGreenCtxDestroy, green);
    struct vgpu_charge replaced;
    if (ours && result != CUDA_SUCCESS)
        vgpu_ptrmap_put(&known, &replaced);
    if (!ours || result != CUDA_SUCCESS || primary == NULL)
        return result;
    if (own != primary)
        vgpu_ptrmap_hand_over(own, primary);
    if (primary_context((CUdevice)known.bytes) != primary)
        vgpu__memory_context_gone(primary);
    return result;
}
