/* SPDX-License-Identifier: Apache-2.0
 *
 * Who calls a hook. For the files of this folder.
 *
 * What the driver itself calls through our hooks is part of a call that was charged already. But a thread that is
 * inside of a call of the driver (vgpu__inside) may also be in a signal handler or in a callback of the application's:
 * what that asks for is charged like anything else. Where the call returns to tells them apart.
 */
#ifndef VGPU_CUDA_CALLERS_H
#define VGPU_CUDA_CALLERS_H

#include "core/lock.h"
#include "cuda/real.h"

#include <stdbool.h>

/* Above 0 while this thread is inside of a call of the driver that we forwarded. */
extern __thread int vgpu__inside __attribute__((tls_model("initial-exec")));

/* Above 0 while this thread holds a lock of this folder over a call of the driver. Whoever interrupts that would wait
 * for himself. */
extern __thread int vgpu__holding __attribute__((tls_model("initial-exec")));

/* Take and leave such a lock. Counted from before it is taken until after it is left: there is no instruction between
 * at which a signal handler would wait for the thread that it interrupts. */
static inline void vgpu__enter(struct vgpu_lock *lock) {
    vgpu__holding++;
    vgpu_lock(lock);
}

static inline void vgpu__leave(struct vgpu_lock *lock) {
    vgpu_unlock(lock);
    vgpu__holding--;
}

/* Find out where the driver lies. Called before it is started. */
void vgpu__callers_find(void);

/* True if an address lies in the driver, or in this library (from where the driver is entered: it jumped on). */
bool vgpu__is_drivers(const void *address);

/* True if the hook that asks was called by the driver. In an exported function alone: where that returns to, counts. */
#define VGPU_BY_DRIVER()                                                                                               \
    (__builtin_expect(vgpu__inside > 0, 0) &&                                                                          \
     vgpu__is_drivers(__builtin_extract_return_addr(__builtin_return_address(0))))

/* What a hook begins with: calls of the driver's go on to it, and whoever interrupts us amid of what he asks for is
 * refused, as CUDA refuses its callbacks. */
#define VGPU_ENTER(symbol, ...)                                                                                        \
    do {                                                                                                               \
        if (VGPU_BY_DRIVER())                                                                                          \
            return VGPU_REAL(symbol)(__VA_ARGS__);                                                                     \
        if (__builtin_expect(vgpu__holding > 0, 0))                                                                    \
            return CUDA_ERROR_NOT_PERMITTED;                                                                           \
    } while (0)

#endif
