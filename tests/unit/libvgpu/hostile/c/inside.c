/* SPDX-License-Identifier: Apache-2.0
 *
 * A library that is linked with the driver and takes MiB after MiB: grab.c loads it into a namespace of its own.
 */
#include "abi/cuda.h"

#include <stddef.h>

int grab_inside(void);
int grab_inside(void) {
    CUcontext context;
    CUdeviceptr pointer;
    int count = 0;
    if (cuInit(0) != CUDA_SUCCESS || cuDevicePrimaryCtxRetain(&context, 0) != CUDA_SUCCESS ||
        cuCtxSetCurrent(context) != CUDA_SUCCESS)
        return -3;
    while (count < 256 && cuMemAlloc_v2(&pointer, 1 << 20) == CUDA_SUCCESS)
        count++;
    return count;
}
