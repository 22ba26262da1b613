/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda/localmemory.h"

#include "core/quota.h"
#include "cuda/callers.h"
#include "cuda/memory.h"
#include "cuda/thread.h"

#include <stddef.h>

enum { STEP = 256 /* that a thread's is rounded up to */ };

/* What a thread of a new context has: the default limit of stacks, which is the same for all of a driver's. */
static uint64_t default_bytes;
static struct vgpu_lock lock = VGPU_UNLOCKED;

void vgpu__local_forget(void) {
    vgpu_lock_renew(&lock);
    default_bytes = 0;
}

static uint64_t rounded(uint64_t bytes) {
    return (bytes + STEP - 1) / STEP * STEP;
}

/* Asked before anybody changes it: whoever does comes by here first. */
static CUresult ask_default(uint64_t *bytes) {
    size_t stack = 0;
    CUresult result = CUDA_SUCCESS;
    *bytes = __atomic_load_n(&default_bytes, __ATOMIC_RELAXED);
    if (*bytes > 0)
        return result;
    VGPU_CALL(result, cuCtxGetLimit, &stack, CU_LIMIT_STACK_SIZE);
    *bytes = stack;
    if (result == CUDA_SUCCESS)
        __atomic_store_n(&default_bytes, stack, __ATOMIC_RELAXED);
    return result;
}

/* Threads that a device runs at once. */
static CUresult ask_threads(uint64_t *threads) {
    CUresult result;
    CUdevice ordinal;
    int processors = 0, each = 0;
    VGPU_CALL(result, cuCtxGetDevice, &ordinal);
    if (result == CUDA_SUCCESS)
        VGPU_CALL(result, cuDeviceGetAttribute, &processors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, ordinal);
    if (result == CUDA_SUCCESS)
        VGPU_CALL(result, cuDeviceGetAttribute, &each, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, ordinal);
    *threads = (uint64_t)processors * (uint64_t)each;
    return result;
}

/* What the current context has for all of its threads, as far as it goes beyond the default. */
static CUresult ask_need(uint64_t thread_bytes, uint64_t *bytes) {
    uint64_t had, threads;
    CUresult result = ask_default(&had);
    if (result == CUDA_SUCCESS)
        result = ask_threads(&threads);
    *bytes = 0;
    if (result == CUDA_SUCCESS && rounded(thread_bytes) > rounded(had) &&
        __builtin_mul_overflow(rounded(thread_bytes) - rounded(had), threads, bytes))
        *bytes = UINT64_MAX;
    return result;
}

/* The difference between what the context is charged and what it is to be. The lock is held. */
static CUresult grow(struct vgpu_device *device, CUcontext context, uint64_t need, uint64_t *grown) {
    struct vgpu_charge replaced, charge = {.bytes = 0};
    if (vgpu_ptrmap_look((uintptr_t)context, VGPU_KIND_LOCAL, &charge) && charge.device != device)
        charge.bytes = 0; /* somebody took it in an earlier one of its handle, while that ended */
    if (need <= charge.bytes)
        return CUDA_SUCCESS;
    if (vgpu__reserve(device, need - charge.bytes) != VGPU_OK)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *grown = need - charge.bytes;
    charge = (struct vgpu_charge){
        .key = (uintptr_t)context, .kind = VGPU_KIND_LOCAL, .device = device, .owner = context, .bytes = need};
    if (vgpu_ptrmap_put(&charge, &replaced))
        return CUDA_SUCCESS;
    vgpu_credit(device, *grown);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult vgpu__local_coming(struct vgpu_device *device, uint64_t thread_bytes, uint64_t *grown) {
    CUcontext context;
    uint64_t need;
    *grown = 0;
    CUresult result = ask_need(thread_bytes, &need);
    if (result == CUDA_SUCCESS)
        VGPU_CALL(result, cuCtxGetCurrent, &context);
    if (result != CUDA_SUCCESS || need == 0)
        return result;
    vgpu__enter(&lock);
    result = grow(device, context, need, grown);
    vgpu__leave(&lock);
    return result;
}

void vgpu__local_not(struct vgpu_device *device, uint64_t grown) {
    CUcontext context;
    CUresult result;
    struct vgpu_charge charge;
    VGPU_CALL(result, cuCtxGetCurrent, &context);
    if (grown == 0 || result != CUDA_SUCCESS)
        return;
    vgpu__enter(&lock);
    if (vgpu_ptrmap_take((uintptr_t)context, VGPU_KIND_LOCAL, &charge)) {
        struct vgpu_charge replaced;
        uint64_t back = grown < charge.bytes ? grown : charge.bytes;
        charge.bytes -= back;
        if (charge.bytes == 0 || vgpu_ptrmap_put(&charge, &replaced))
            vgpu_credit(device, back);
    }
    vgpu__leave(&lock);
}

/* ---- Functions ---- */

/* The driver's functions for the one kind of handle are not for the other. */
void vgpu__local_kernel(CUkernel kernel, CUlibrary library) {
    struct vgpu_charge replaced,
        charge = {.key = (uintptr_t)kernel, .kind = VGPU_KIND_KERNEL, .owner = library, .bytes = 1};
    if (kernel != NULL)
        vgpu_ptrmap_put(&charge, &replaced);
}

void vgpu__local_library_ending(CUlibrary library, void *keeper) {
    if (library != NULL)
        vgpu_ptrmap_set_aside(library, keeper);
}

void vgpu__local_library_ended(CUlibrary library, void *keeper, bool ended) {
    struct vgpu_charge charge;
    if (!ended)
        vgpu_ptrmap_put_back(keeper, library);
    while (ended && vgpu_ptrmap_take_owned(keeper, &charge))
        continue;
}

static bool is_kernel(const void *handle) {
    struct vgpu_charge charge;
    return vgpu_ptrmap_look((uintptr_t)handle, VGPU_KIND_KERNEL, &charge);
}

static CUresult ask_local(void *handle, bool kernel, uint64_t *thread_bytes) {
    CUresult result;
    CUdevice ordinal;
    int bytes = 0;
    if (kernel) {
        VGPU_CALL(result, cuCtxGetDevice, &ordinal);
        if (result == CUDA_SUCCESS)
            VGPU_CALL(result, cuKernelGetAttribute, &bytes, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, handle, ordinal);
    } else {
        VGPU_CALL(result, cuFuncGetAttribute, &bytes, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, handle);
    }
    *thread_bytes = result == CUDA_SUCCESS && bytes > 0 ? (uint64_t)bytes : 0;
    return result;
}

CUresult vgpu__local_load(struct vgpu_device *device, CUfunction function) {
    CUresult result, room;
    vgpu__footprint_begin(device);
    VGPU_CALL(result, cuFuncLoad, function);
    room = result == CUDA_SUCCESS && device != NULL ? vgpu__footprint_grown(device) : result;
    if (result == CUDA_SUCCESS && room != CUDA_SUCCESS)
        vgpu__footprint_settle(device);
    vgpu__footprint_end(device);
    return room;
}

/* Where managed memory may lie on the device or not, code that comes with a launch could pass for that: it is measured
 * apart then. So it is where the driver knows more of a function when that is loaded. */
static CUresult load_before(struct vgpu_device *device, void *handle, bool kernel) {
    CUfunction function = handle;
    CUresult result = CUDA_SUCCESS;
    int loaded = 0;
    if (!vgpu__cuda_exists(VGPU_FN_cuFuncLoad) || __atomic_load_n(&vgpu__captures, __ATOMIC_RELAXED) > 0)
        return CUDA_SUCCESS;
    if (kernel)
        VGPU_CALL(result, cuKernelGetFunction, &function, handle);
    if (result == CUDA_SUCCESS)
        VGPU_CALL(result, cuFuncIsLoaded, &loaded, function);
    if (result != CUDA_SUCCESS || loaded)
        return CUDA_SUCCESS; /* the launch will say what is wrong */
    return vgpu__local_load(device, function);
}

static CUresult ask_first(struct vgpu_device *device, void *handle, uint64_t *thread_bytes) {
    bool kernel = is_kernel(handle);
    CUresult result = CUDA_SUCCESS;
    if (vgpu__footprint_hides(device) && (result = load_before(device, handle, kernel)) == CUDA_ERROR_OUT_OF_MEMORY)
        return result;
    if (ask_local(handle, kernel, thread_bytes) != CUDA_ERROR_FUNCTION_NOT_LOADED)
        return CUDA_SUCCESS;
    if ((result = load_before(device, handle, kernel)) == CUDA_ERROR_OUT_OF_MEMORY)
        return result;
    ask_local(handle, kernel, thread_bytes);
    return CUDA_SUCCESS;
}

CUresult vgpu__local_first(struct vgpu_device *device, void *handle, bool kernel, uint64_t *grown) {
    struct vgpu_charge graph;
    uint64_t thread_bytes = 0;
    CUresult result = CUDA_SUCCESS;
    *grown = 0;
    if (kernel)
        result = ask_first(device, handle, &thread_bytes);
    else if (vgpu_ptrmap_look((uintptr_t)handle, VGPU_KIND_THREAD, &graph))
        thread_bytes = graph.bytes;
    if (result == CUDA_SUCCESS && thread_bytes > 0)
        result = vgpu__local_coming(device, thread_bytes, grown);
    return result == CUDA_ERROR_OUT_OF_MEMORY ? result : CUDA_SUCCESS; /* the launch will say what is wrong */
}

/* ---- Kernels of graphs ---- */

uint64_t vgpu__local_of_node(CUgraphNode node) {
    CUresult result;
    uint64_t thread_bytes = 0;
    CUDA_KERNEL_NODE_PARAMS_v2 params = {.func = NULL};
    if (vgpu__cuda_exists(VGPU_FN_cuGraphKernelNodeGetParams_v2))
        VGPU_CALL(result, cuGraphKernelNodeGetParams_v2, node, &params);
    else
        VGPU_CALL(result, cuGraphKernelNodeGetParams, node, (CUDA_KERNEL_NODE_PARAMS_v1 *)(void *)&params);
    void *handle = params.kern != NULL ? (void *)params.kern : (void *)params.func;
    if (result == CUDA_SUCCESS && handle != NULL)
        ask_local(handle, params.kern != NULL || is_kernel(handle), &thread_bytes);
    return thread_bytes;
}

void vgpu__local_graph(CUgraphExec exec, uint64_t thread_bytes) {
    struct vgpu_charge replaced, charge = {.key = (uintptr_t)exec, .kind = VGPU_KIND_THREAD, .bytes = thread_bytes};
    if (thread_bytes > 0)
        vgpu_ptrmap_put(&charge, &replaced);
    else
        vgpu_ptrmap_take((uintptr_t)exec, VGPU_KIND_THREAD, &replaced);
}

bool vgpu__local_graph_more(CUgraphExec exec, void *function) {
    struct vgpu_charge graph = {.bytes = 0};
    uint64_t thread_bytes = 0;
    if (function == NULL)
        return false;
    ask_local(function, is_kernel(function), &thread_bytes);
    vgpu_ptrmap_look((uintptr_t)exec, VGPU_KIND_THREAD, &graph);
    if (thread_bytes <= graph.bytes)
        return false;
    vgpu__local_graph(exec, thread_bytes);
    return true;
}
