/* SPDX-License-Identifier: Apache-2.0
 *
 * Waiting for work. What was measured is done then, and paid at once: whoever waits, and launches nothing after, has
 * paid.
 */
#include "cuda/launch.h"
#include "cuda/place.h"
#include "cuda/sampling.h"

#include <stddef.h>

#define SYNCHRONIZE(symbol, ...)                                                                                       \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        VGPU_CALL(result, symbol, __VA_ARGS__);                                                                        \
        if (result == CUDA_SUCCESS && !VGPU_BY_DRIVER())                                                               \
            vgpu__launch_synchronized();                                                                               \
        return result;                                                                                                 \
    } while (0)

CUresult cuCtxSynchronize(void) {
    SYNCHRONIZE(cuCtxSynchronize);
}

/* Of any context: since CUDA 13. */
CUresult cuCtxSynchronize_v2(CUcontext ctx) {
    CUresult result;
    struct vgpu__place place;
    VGPU_CALL(result, cuCtxSynchronize_v2, ctx);
    if (result != CUDA_SUCCESS || VGPU_BY_DRIVER() || vgpu__sample_pending() <= 0)
        return result;
    vgpu__place_enter_context(&place, ctx, false);
    if (place.context != NULL)
        vgpu__launch_synchronized();
    vgpu__place_leave(&place);
    return result;
}

CUresult cuStreamSynchronize(CUstream hStream) {
    SYNCHRONIZE(cuStreamSynchronize, hStream);
}

CUresult cuStreamSynchronize_ptsz(CUstream hStream) {
    SYNCHRONIZE(cuStreamSynchronize_ptsz, hStream);
}

CUresult cuEventSynchronize(CUevent event) {
    SYNCHRONIZE(cuEventSynchronize, event);
}
