/* SPDX-License-Identifier: Apache-2.0
 *
 * Waiting for work. What was measured is done then, and paid at once: whoever waits, and launches nothing after, has
 * paid.
 */
#include "cuda/launch.h"

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

CUresult cuStreamSynchronize(CUstream hStream) {
    SYNCHRONIZE(cuStreamSynchronize, hStream);
}

CUresult cuStreamSynchronize_ptsz(CUstream hStream) {
    SYNCHRONIZE(cuStreamSynchronize_ptsz, hStream);
}

CUresult cuEventSynchronize(CUevent event) {
    SYNCHRONIZE(cuEventSynchronize, event);
}
