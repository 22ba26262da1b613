/* SPDX-License-Identifier: Apache-2.0
 *
 * Green contexts, as far as they take memory: each is charged like a context, and what is made current for it is its
 * device's primary context, which it keeps alive and which owns what is allocated. Their part of the multiprocessors is
 * not simulated. (CUDA driver API, green contexts.)
 */
#include "driver.h"

struct CUgreenCtx_st {
    struct device *device;
    CUcontext primary;
    uint64_t charged;
};

CUresult stub_cuGreenCtxCreate(CUgreenCtx *out, CUdevResourceDesc desc, CUdevice ordinal, unsigned flags) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    REQUIRE(out && desc && flags == 1, CUDA_ERROR_INVALID_VALUE); /* CU_GREEN_CTX_DEFAULT_STREAM */
    CUgreenCtx green = handle_take(HANDLE_GREEN, sizeof *green);
    REQUIRE(green, CUDA_ERROR_OUT_OF_MEMORY);
    CUresult result = stub_cuDevicePrimaryCtxRetain(&green->primary, ordinal);
    if (result == CUDA_SUCCESS && !device_charge(device, device->card.shared->context_bytes)) {
        stub_cuDevicePrimaryCtxRelease_v2(ordinal);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result != CUDA_SUCCESS) {
        handle_give(green);
        return result;
    }
    green->device = device;
    green->charged = device->card.shared->context_bytes;
    *out = green;
    return CUDA_SUCCESS;
}

CUresult stub_cuGreenCtxDestroy(CUgreenCtx green) {
    REQUIRE(handle_lives(green), CUDA_ERROR_INVALID_VALUE);
    device_credit(green->device, green->charged);
    CUresult result = stub_cuDevicePrimaryCtxRelease_v2(green->device->ordinal);
    handle_give(green);
    return result;
}

CUresult stub_cuCtxFromGreenCtx(CUcontext *out, CUgreenCtx green) {
    REQUIRE(out && handle_lives(green), CUDA_ERROR_INVALID_VALUE);
    *out = green->primary;
    return CUDA_SUCCESS;
}
