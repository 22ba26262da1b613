/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda/place.h"

#include <stddef.h>

static CUcontext current(void) {
    CUcontext context = NULL;
    CUresult result;
    VGPU_CALL(result, cuCtxGetCurrent, &context);
    return result == CUDA_SUCCESS ? context : NULL;
}

void vgpu__place_enter_context(struct vgpu__place *place, CUcontext context, bool relaxed) {
    CUresult result = CUDA_SUCCESS;
    *place = (struct vgpu__place){.context = context, .mode = CU_STREAM_CAPTURE_MODE_RELAXED};
    if (context != NULL && context != current()) {
        VGPU_CALL(result, cuCtxPushCurrent_v2, context);
        place->entered = result == CUDA_SUCCESS;
        if (!place->entered)
            place->context = NULL;
    }
    if (relaxed) {
        VGPU_CALL(result, cuThreadExchangeStreamCaptureMode, &place->mode);
        place->relaxed = result == CUDA_SUCCESS;
    }
}

void vgpu__place_enter(struct vgpu__place *place, CUstream stream, bool relaxed) {
    CUcontext context = NULL;
    CUresult result = CUDA_ERROR_INVALID_HANDLE;
    /* The streams that have no handle of their own belong to the current context. */
    if (stream != NULL && stream != CU_STREAM_LEGACY && stream != CU_STREAM_PER_THREAD)
        VGPU_CALL(result, cuStreamGetCtx, stream, &context);
    vgpu__place_enter_context(place, result == CUDA_SUCCESS ? context : current(), relaxed);
}

void vgpu__place_leave(struct vgpu__place *place) {
    CUcontext context;
    CUresult ignored;
    if (place->relaxed)
        VGPU_CALL(ignored, cuThreadExchangeStreamCaptureMode, &place->mode);
    if (place->entered)
        VGPU_CALL(ignored, cuCtxPopCurrent_v2, &context);
    (void)ignored;
}

CUresult vgpu__place_ordinal(CUstream stream, CUdevice *ordinal) {
    const struct vgpu_process *process = vgpu_process();
    bool one_device = process != NULL && __atomic_load_n(&process->only_device, __ATOMIC_RELAXED) != NULL;
    struct vgpu__place place;
    CUresult result;
    vgpu__place_enter(&place, one_device ? NULL : stream, false); /* any context is of the only one */
    VGPU_CALL(result, cuCtxGetDevice, ordinal);
    bool entered = place.context != NULL;
    vgpu__place_leave(&place);
    return result == CUDA_SUCCESS && !entered ? CUDA_ERROR_INVALID_CONTEXT : result;
}
