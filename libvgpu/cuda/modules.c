/* SPDX-License-Identifier: Apache-2.0
 *
 * Modules and libraries, and heaps of a context: what they take of the device is charged, or they are not to be had.
 * Where the driver loads code lazily, what that takes is seen at the next look (footprint.h).
 */
#include "core/quota.h"
#include "cuda/footprint.h"
#include "cuda/launch.h"
#include "cuda/localmemory.h"
#include "cuda/memory.h"

#include <stddef.h>

/* The share that is to pay. False: *result says why nobody can be told. A library may be loaded without a context: then
 * it takes nothing yet, and *device is NULL. */
static bool payer(struct vgpu_device **device, CUresult *result) {
    CUcontext context;
    *device = vgpu__cuda_current(&context, result);
    return *device != NULL || *result == CUDA_ERROR_INVALID_CONTEXT;
}

/* `unmake` undoes the call, which has put the module into `made`. */
#define LOAD(type, module, unmake, symbol, ...)                                                                        \
    do {                                                                                                               \
        CUresult result, room;                                                                                         \
        struct vgpu_device *device;                                                                                    \
        type made = NULL;                                                                                              \
        VGPU_ENTER(symbol, module, __VA_ARGS__);                                                                       \
        if (!payer(&device, &result))                                                                                  \
            return result;                                                                                             \
        vgpu__footprint_begin(device);                                                                                 \
        VGPU_CALL(result, symbol, VGPU_OUT(module, made), __VA_ARGS__);                                                \
        room = result == CUDA_SUCCESS && device != NULL ? vgpu__footprint_grown(device) : result;                      \
        if (result == CUDA_SUCCESS && room != CUDA_SUCCESS) {                                                          \
            unmake;                                                                                                    \
            vgpu__footprint_settle(device);                                                                            \
            if (result != CUDA_SUCCESS)                                                                                \
                room = CUDA_SUCCESS; /* not undone: it is there, and charged */                                        \
        }                                                                                                              \
        vgpu__footprint_end(device);                                                                                   \
        if (room == CUDA_SUCCESS)                                                                                      \
            *(module) = made;                                                                                          \
        return room;                                                                                                   \
    } while (0)

CUresult cuModuleLoad(CUmodule *module, const char *path) {
    LOAD(CUmodule, module, VGPU_CALL(result, cuModuleUnload, made), cuModuleLoad, path);
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    LOAD(CUmodule, module, VGPU_CALL(result, cuModuleUnload, made), cuModuleLoadData, image);
}

CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int count, CUjit_option *options,
                            void **values) {
    LOAD(CUmodule, module, VGPU_CALL(result, cuModuleUnload, made), cuModuleLoadDataEx, image, count, options, values);
}

CUresult cuModuleLoadFatBinary(CUmodule *module, const void *image) {
    LOAD(CUmodule, module, VGPU_CALL(result, cuModuleUnload, made), cuModuleLoadFatBinary, image);
}

CUresult cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *jit_options, void **jit_values,
                           unsigned int jit_count, CUlibraryOption *options, void **values, unsigned int count) {
    LOAD(CUlibrary, library, VGPU_CALL(result, cuLibraryUnload, made), cuLibraryLoadData, code, jit_options, jit_values,
         jit_count, options, values, count);
}

CUresult cuLibraryLoadFromFile(CUlibrary *library, const char *path, CUjit_option *jit_options, void **jit_values,
                               unsigned int jit_count, CUlibraryOption *options, void **values, unsigned int count) {
    LOAD(CUlibrary, library, VGPU_CALL(result, cuLibraryUnload, made), cuLibraryLoadFromFile, path, jit_options,
         jit_values, jit_count, options, values, count);
}

/* Functions of the next module may get the handles of its functions as soon as it is unloaded, in whatever thread. */
#define UNLOAD(symbol, what, library)                                                                                  \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        struct vgpu_device *device;                                                                                    \
        VGPU_ENTER(symbol, what);                                                                                      \
        if (!payer(&device, &result))                                                                                  \
            return result;                                                                                             \
        vgpu__launch_renew_all();                                                                                      \
        vgpu__local_library_ending(library, &device);                                                                  \
        VGPU_CALL(result, symbol, what);                                                                               \
        vgpu__local_library_ended(library, &device, result == CUDA_SUCCESS);                                           \
        vgpu__launch_renew_all(); /* another thread may just have told what it had launched before */                  \
        if (result == CUDA_SUCCESS && device != NULL)                                                                  \
            vgpu__footprint_settle(device);                                                                            \
        return result;                                                                                                 \
    } while (0)

CUresult cuModuleUnload(CUmodule module) {
    UNLOAD(cuModuleUnload, module, NULL);
}

CUresult cuLibraryUnload(CUlibrary library) {
    UNLOAD(cuLibraryUnload, library, library);
}

/* ---- Functions ---- */

CUresult cuFuncLoad(CUfunction function) {
    CUresult result;
    struct vgpu_device *device;
    VGPU_ENTER(cuFuncLoad, function);
    if (!payer(&device, &result))
        return result;
    if (device != NULL && (result = vgpu__footprint_code_coming(device)) != CUDA_SUCCESS)
        return result;
    return vgpu__local_load(device, function);
}

CUresult cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name) {
    CUresult result;
    CUkernel made = NULL;
    VGPU_ENTER(cuLibraryGetKernel, kernel, library, name);
    VGPU_CALL(result, cuLibraryGetKernel, VGPU_OUT(kernel, made), library, name);
    if (result == CUDA_SUCCESS) {
        vgpu__local_kernel(made, library);
        *kernel = made;
    }
    return result;
}

CUresult cuLibraryEnumerateKernels(CUkernel *kernels, unsigned int count, CUlibrary library) {
    CUresult result, counted = CUDA_SUCCESS;
    unsigned int there = 0;
    VGPU_ENTER(cuLibraryEnumerateKernels, kernels, count, library);
    VGPU_CALL(result, cuLibraryEnumerateKernels, kernels, count, library);
    if (result == CUDA_SUCCESS)
        VGPU_CALL(counted, cuLibraryGetKernelCount, &there, library);
    for (unsigned int i = 0; result == CUDA_SUCCESS && counted == CUDA_SUCCESS && i < count && i < there; i++)
        vgpu__local_kernel(kernels[i], library);
    return result;
}

/* ---- Heaps of a context ---- */

/* The heap of device code's malloc and the buffer of its printf lie on the device, and are taken when they are first
 * used. What a context has of them without asking is part of its footprint; more is charged when it is asked for. */
static uint64_t limit_key(CUcontext context, CUlimit limit) {
    return (uint64_t)(uintptr_t)context + (uint64_t)limit; /* contexts are far apart */
}

/* The charge as it is, and the size that is free of charge. */
static CUresult look_up(struct vgpu_device *device, CUcontext context, CUlimit limit, struct vgpu_charge *charge,
                        uint64_t *free_bytes) {
    CUresult result = CUDA_SUCCESS;
    size_t now = 0;
    VGPU_CALL(result, cuCtxGetLimit, &now, limit);
    if (!vgpu_ptrmap_look(limit_key(context, limit), VGPU_KIND_LIMIT, charge) || charge->device != device)
        *charge = (struct vgpu_charge){
            .key = limit_key(context, limit), .kind = VGPU_KIND_LIMIT, .owner = context, .bytes = 0};
    *free_bytes = now > charge->bytes ? now - charge->bytes : 0;
    return result;
}

/* Stacks are a part of the memory of threads, which grows at once. */
static CUresult set_other_limit(CUlimit limit, size_t value) {
    CUresult result, room = CUDA_SUCCESS;
    CUcontext context;
    uint64_t grown = 0;
    struct vgpu_device *device = vgpu__cuda_current(&context, &result);
    if (device != NULL && limit == CU_LIMIT_STACK_SIZE)
        room = vgpu__local_coming(device, value, &grown);
    if (room == CUDA_ERROR_OUT_OF_MEMORY)
        return room;
    VGPU_CALL(result, cuCtxSetLimit, limit, value);
    if (result != CUDA_SUCCESS && grown > 0)
        vgpu__local_not(device, grown);
    if (device != NULL)
        vgpu__footprint_code_came(device, grown > 0);
    return result;
}

CUresult cuCtxSetLimit(CUlimit limit, size_t value) {
    CUresult result;
    CUcontext context;
    struct vgpu_device *device;
    struct vgpu_charge charge, replaced;
    uint64_t free_bytes;
    bool heap = limit == CU_LIMIT_MALLOC_HEAP_SIZE || limit == CU_LIMIT_PRINTF_FIFO_SIZE;
    VGPU_ENTER(cuCtxSetLimit, limit, value);
    if (!heap)
        return set_other_limit(limit, value);
    if ((device = vgpu__cuda_current(&context, &result)) == NULL ||
        (result = look_up(device, context, limit, &charge, &free_bytes)) != CUDA_SUCCESS)
        return result;
    uint64_t before = charge.bytes, after = value > free_bytes ? value - free_bytes : 0;
    if (after > before && vgpu__reserve(device, after - before) != VGPU_OK)
        return CUDA_ERROR_OUT_OF_MEMORY;
    VGPU_CALL(result, cuCtxSetLimit, limit, value);
    uint64_t charged = after > before ? after : before, kept = result == CUDA_SUCCESS ? after : before;
    charge.device = device;
    charge.bytes = kept;
    if (vgpu_ptrmap_put(&charge, &replaced))
        vgpu_credit(device, charged - kept);
    return result;
}
