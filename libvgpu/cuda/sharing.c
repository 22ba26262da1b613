/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory of another process or another API, opened in this one. It is charged to whoever made it for as long as he has
 * it. Once he has let go it is this process's, and the driver counts it here: the footprint has it then. (Drivers that
 * count it here at once would have it charged at once.)
 */
#include "cuda/device.h"
#include "cuda/footprint.h"

/* Where what the driver counts here does not fit, it is closed again. */
#define OPEN(unopen, symbol, ...)                                                                                      \
    do {                                                                                                               \
        CUresult result, room, ignored = CUDA_SUCCESS;                                                                 \
        VGPU_ENTER(symbol, __VA_ARGS__);                                                                               \
        VGPU_CALL(result, symbol, __VA_ARGS__);                                                                        \
        if (result != CUDA_SUCCESS || !vgpu__attached())                                                               \
            return result;                                                                                             \
        if ((room = vgpu__footprint_imported()) == CUDA_SUCCESS)                                                       \
            return CUDA_SUCCESS;                                                                                       \
        unopen;                                                                                                        \
        vgpu__footprint_settle_all();                                                                                  \
        return ignored == CUDA_SUCCESS ? room : CUDA_SUCCESS; /* not undone: it is there, and charged */               \
    } while (0)

CUresult cuIpcOpenMemHandle(CUdeviceptr *dptr, CUipcMemHandle handle, unsigned int flags) {
    OPEN(VGPU_CALL(ignored, cuIpcCloseMemHandle, *dptr), cuIpcOpenMemHandle, dptr, handle, flags);
}

CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *dptr, CUipcMemHandle handle, unsigned int flags) {
    OPEN(VGPU_CALL(ignored, cuIpcCloseMemHandle, *dptr), cuIpcOpenMemHandle_v2, dptr, handle, flags);
}

CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *shared,
                                        CUmemAllocationHandleType type) {
    OPEN(VGPU_CALL(ignored, cuMemRelease, *handle), cuMemImportFromShareableHandle, handle, shared, type);
}

CUresult cuMemPoolImportFromShareableHandle(CUmemoryPool *pool, void *handle, CUmemAllocationHandleType type,
                                            unsigned long long flags) {
    OPEN(VGPU_CALL(ignored, cuMemPoolDestroy, *pool), cuMemPoolImportFromShareableHandle, pool, handle, type, flags);
}

/* Not closed again: with it would go the application's descriptor, which is still its own after a failure. */
CUresult cuImportExternalMemory(CUexternalMemory *memory, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *desc) {
    OPEN(ignored = CUDA_ERROR_NOT_PERMITTED, cuImportExternalMemory, memory, desc);
}

#define CLOSE(symbol, what)                                                                                            \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        VGPU_ENTER(symbol, what);                                                                                      \
        VGPU_CALL(result, symbol, what);                                                                               \
        if (result == CUDA_SUCCESS && vgpu__attached())                                                                \
            vgpu__footprint_settle_all();                                                                              \
        return result;                                                                                                 \
    } while (0)

CUresult cuIpcCloseMemHandle(CUdeviceptr dptr) {
    CLOSE(cuIpcCloseMemHandle, dptr);
}

CUresult cuDestroyExternalMemory(CUexternalMemory memory) {
    CLOSE(cuDestroyExternalMemory, memory);
}
