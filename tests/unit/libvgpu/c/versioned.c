/* SPDX-License-Identifier: Apache-2.0
 *
 * A driver whose symbols have a version (DRIVER_1): what dlvsym can find. Reaching this function is reaching past the
 * hook.
 */
#include "abi/cuda.h"

CUresult cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytes) {
    (void)dptr;
    (void)bytes;
    return CUDA_ERROR_UNKNOWN;
}
