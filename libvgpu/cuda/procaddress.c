/* SPDX-License-Identifier: Apache-2.0
 *
 * cuGetProcAddress: the driver answers first, then the pointer that it gave is mapped to its hook. That keeps its
 * choice of version and of per-thread variant, and works for the pointer to cuGetProcAddress itself.
 */
#include "cuda/device.h"

#include <stddef.h>
#include <string.h>

/* The hook of a pointer that the driver exports by some name. */
static vgpu_function hook_of_pointer(vgpu_function pointer) {
    for (int i = 0; i < VGPU_FN_COUNT; i++)
        if (vgpu__cuda_hooks[i] != NULL &&
            (vgpu__cuda_hooks[i] == pointer || vgpu__cuda_function((enum vgpu_cuda_function)i) == pointer))
            return vgpu__cuda_hooks[i];
    return NULL;
}

/* A driver may give out functions that it does not export under any name. For a name that we hook, take the entry that
 * the driver must have meant (the newest of that name up to the version asked for) and let it call this very function.
 */
static vgpu_function hook_of_name(const char *symbol, int version, bool per_thread, vgpu_function pointer) {
    int best = -1;
    for (int i = 0; i < VGPU_FN_COUNT; i++) {
        const struct vgpu_cuda_entry *entry = &vgpu__cuda_entries[i];
        if (vgpu__cuda_hooks[i] == NULL || strcmp(entry->base, symbol) != 0 || entry->since > version)
            continue;
        if (entry->per_thread && !per_thread)
            continue;
        if (best < 0 || entry->since > vgpu__cuda_entries[best].since ||
            (entry->since == vgpu__cuda_entries[best].since && entry->per_thread))
            best = i;
    }
    if (best < 0)
        return NULL;
    if (!vgpu__cuda_exists((enum vgpu_cuda_function)best))
        __atomic_store_n(&vgpu__cuda_real[best], pointer, __ATOMIC_RELEASE);
    return vgpu__cuda_hooks[best];
}

static void redirect(const char *symbol, void **pfn, int version, unsigned long long flags) {
    if (symbol == NULL || pfn == NULL || *pfn == NULL || vgpu__inside > 0)
        return;
    vgpu_function hook = hook_of_pointer((vgpu_function)*pfn);
    if (hook == NULL)
        hook =
            hook_of_name(symbol, version, flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM, (vgpu_function)*pfn);
    if (hook != NULL)
        *pfn = (void *)hook;
}

CUresult cuGetProcAddress(const char *symbol, void **pfn, int version, unsigned long long flags) {
    CUresult result;
    VGPU_CALL(result, cuGetProcAddress, symbol, pfn, version, flags);
    if (result == CUDA_SUCCESS)
        redirect(symbol, pfn, version, flags);
    return result;
}

CUresult cuGetProcAddress_v2(const char *symbol, void **pfn, int version, unsigned long long flags,
                             CUdriverProcAddressQueryResult *status) {
    CUresult result;
    VGPU_CALL(result, cuGetProcAddress_v2, symbol, pfn, version, flags, status);
    if (result == CUDA_SUCCESS)
        redirect(symbol, pfn, version, flags);
    return result;
}
