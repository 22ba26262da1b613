/* SPDX-License-Identifier: Apache-2.0
 *
 * Entry points that would take memory or run work which no call of ours could follow. All are of rare use.
 */
#include "cuda/device.h"

/* Tiles of a sparse array keep memory of cuMemCreate after its handle is gone; and the driver never says which. */
CUresult cuMemMapArrayAsync(CUarrayMapInfo *list, unsigned int count, CUstream hStream) {
    return VGPU_BY_DRIVER() ? VGPU_REAL(cuMemMapArrayAsync)(list, count, hStream) : CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuMemMapArrayAsync_ptsz(CUarrayMapInfo *list, unsigned int count, CUstream hStream) {
    return VGPU_BY_DRIVER() ? VGPU_REAL(cuMemMapArrayAsync_ptsz)(list, count, hStream) : CUDA_ERROR_NOT_SUPPORTED;
}

/* What is captured into a graphics API's command list is run by that API, and never launched. */
CUresult cuStreamBeginCaptureToCig(CUstream hStream, CUstreamCigCaptureParams *params) {
    return VGPU_BY_DRIVER() ? VGPU_REAL(cuStreamBeginCaptureToCig)(hStream, params) : CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuStreamBeginCaptureToCig_ptsz(CUstream hStream, CUstreamCigCaptureParams *params) {
    return VGPU_BY_DRIVER() ? VGPU_REAL(cuStreamBeginCaptureToCig_ptsz)(hStream, params) : CUDA_ERROR_NOT_SUPPORTED;
}

/* Memory that is bound to a fabric's end point may be held by other machines. */
CUresult cuLogicalEndpointBindMem(CUlogicalEndpointId endpoint, CUdevice dev, uint64_t offset,
                                  CUmemGenericAllocationHandle memory, uint64_t memory_offset, uint64_t size,
                                  unsigned long long flags) {
    if (VGPU_BY_DRIVER())
        return VGPU_REAL(cuLogicalEndpointBindMem)(endpoint, dev, offset, memory, memory_offset, size, flags);
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuLogicalEndpointBindAddr(CUlogicalEndpointId endpoint, CUdevice dev, uint64_t offset, void *address,
                                   uint64_t size, unsigned long long flags) {
    if (VGPU_BY_DRIVER())
        return VGPU_REAL(cuLogicalEndpointBindAddr)(endpoint, dev, offset, address, size, flags);
    return CUDA_ERROR_NOT_SUPPORTED;
}
