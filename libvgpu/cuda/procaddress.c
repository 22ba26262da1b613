/* SPDX-License-Identifier: Apache-2.0
 *
 * cuGetProcAddress: the driver answers first, then the pointer that it gave is mapped to its hook. That keeps its
 * choice of version and of per-thread variant, and works for the pointer to cuGetProcAddress itself.
 */
#include "core/log.h"
#include "cuda/device.h"

#include <stddef.h>
#include <string.h>

/* The hook of a pointer that the driver exports by some name. */
static vgpu_function hook_of_pointer(vgpu_function pointer) {
    for (int i = 0; i < VGPU_HOOK_COUNT; i++)
        if (vgpu__cuda_hook(i) == pointer || vgpu__cuda_function(vgpu__cuda_hooked[i]) == pointer)
            return vgpu__cuda_hook(i);
    return NULL;
}

static bool per_thread_asked(unsigned long long flags) {
    return flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
}

/* The newest hook of that name up to a version, in the kind of default stream that was asked for; -1: none. */
static int hook_of_name(const char *symbol, int version, bool per_thread) {
    const struct vgpu_cuda_entry *newest = NULL;
    int best = -1;
    for (int i = 0; i < VGPU_HOOK_COUNT; i++) {
        const struct vgpu_cuda_entry *entry = &vgpu__cuda_entries[vgpu__cuda_hooked[i]];
        if (entry->since > version || (entry->per_thread && !per_thread) ||
            !vgpu__cuda_is_version_of(vgpu__cuda_symbol(vgpu__cuda_hooked[i]), symbol))
            continue;
        if (newest == NULL || entry->since > newest->since || (entry->since == newest->since && entry->per_thread)) {
            newest = entry;
            best = i;
        }
    }
    return best;
}

/* What the driver gives for a name at the version that brought the one that we know. */
static vgpu_function asked_again(const char *symbol, int version, unsigned long long flags) {
    CUresult result;
    void *pointer = NULL;
    CUdriverProcAddressQueryResult status;
    if (vgpu__cuda_exists(VGPU_FN_cuGetProcAddress_v2))
        VGPU_CALL(result, cuGetProcAddress_v2, symbol, &pointer, version, flags, &status);
    else
        VGPU_CALL(result, cuGetProcAddress, symbol, &pointer, version, flags);
    return result == CUDA_SUCCESS ? (vgpu_function)pointer : NULL;
}

/* Map what the driver gave. False: it is a function that we do not know, under a name that we hook or that says that it
 * takes memory or launches work. An older hook would call it with the wrong arguments, and handing it out would let it
 * past the share: the caller is told that there is no such function, and does what it does on an older driver. */
static bool redirect(const char *symbol, void **pfn, int version, unsigned long long flags) {
    if (symbol == NULL || pfn == NULL || *pfn == NULL)
        return true;
    vgpu_function pointer = (vgpu_function)*pfn, hook = hook_of_pointer(pointer);
    if (hook == NULL) {
        /* Drivers may give out functions that they export under no name. */
        int best = hook_of_name(symbol, version, per_thread_asked(flags));
        enum vgpu_cuda_function index = best >= 0 ? vgpu__cuda_hooked[best] : VGPU_FN_COUNT;
        if (best >= 0 && asked_again(symbol, vgpu__cuda_entries[index].since, flags) == pointer) {
            if (!vgpu__cuda_exists(index))
                __atomic_store_n(&vgpu__cuda_real[index], pointer, __ATOMIC_RELEASE);
            hook = vgpu__cuda_hook(best);
        } else if (vgpu__cuda_unknown(symbol) || best >= 0) {
            vgpu_complain("%s of CUDA %d.%d: found a function that is newer than this library; it is not handed out",
                          symbol, version / 1000, version % 1000 / 10);
            *pfn = NULL;
            return false;
        }
    }
    if (hook != NULL)
        *pfn = (void *)hook;
    return true;
}

CUresult cuGetProcAddress(const char *symbol, void **pfn, int version, unsigned long long flags) {
    CUresult result;
    if (VGPU_BY_DRIVER())
        return VGPU_REAL(cuGetProcAddress)(symbol, pfn, version, flags);
    VGPU_CALL(result, cuGetProcAddress, symbol, pfn, version, flags);
    if (result == CUDA_SUCCESS && !redirect(symbol, pfn, version, flags))
        return CUDA_ERROR_NOT_FOUND;
    return result;
}

CUresult cuGetProcAddress_v2(const char *symbol, void **pfn, int version, unsigned long long flags,
                             CUdriverProcAddressQueryResult *status) {
    CUresult result;
    if (VGPU_BY_DRIVER())
        return VGPU_REAL(cuGetProcAddress_v2)(symbol, pfn, version, flags, status);
    VGPU_CALL(result, cuGetProcAddress_v2, symbol, pfn, version, flags, status);
    if (result != CUDA_SUCCESS || redirect(symbol, pfn, version, flags))
        return result;
    if (status == NULL)
        return CUDA_ERROR_NOT_FOUND;
    *status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return CUDA_SUCCESS;
}
