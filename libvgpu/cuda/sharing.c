/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory of another process or another API, opened in this one: charged to whoever allocated it, and not here.
 */
#include "cuda/device.h"
#include "cuda/footprint.h"

#define OPEN(symbol, ...)                                                                                              \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        if (!VGPU_BY_DRIVER())                                                                                         \
            vgpu__footprint_imported();                                                                                \
        VGPU_CALL(result, symbol, __VA_ARGS__);                                                                        \
        return result;                                                                                                 \
    } while (0)

CUresult cuIpcOpenMemHandle(CUdeviceptr *dptr, CUipcMemHandle handle, unsigned int flags) {
    OPEN(cuIpcOpenMemHandle, dptr, handle, flags);
}

CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *dptr, CUipcMemHandle handle, unsigned int flags) {
    OPEN(cuIpcOpenMemHandle_v2, dptr, handle, flags);
}

CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *shared,
                                        CUmemAllocationHandleType type) {
    OPEN(cuMemImportFromShareableHandle, handle, shared, type);
}

CUresult cuMemPoolImportFromShareableHandle(CUmemoryPool *pool, void *handle, CUmemAllocationHandleType type,
                                            unsigned long long flags) {
    OPEN(cuMemPoolImportFromShareableHandle, pool, handle, type, flags);
}

CUresult cuImportExternalMemory(CUexternalMemory *memory, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *desc) {
    OPEN(cuImportExternalMemory, memory, desc);
}
