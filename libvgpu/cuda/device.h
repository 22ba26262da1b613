/* SPDX-License-Identifier: Apache-2.0
 *
 * Which share a CUDA call is about: the device of an ordinal or of the calling thread's context. For the files of this
 * folder.
 */
#ifndef VGPU_CUDA_DEVICE_H
#define VGPU_CUDA_DEVICE_H

#include "core/share.h"
#include "cuda/callers.h"
#include "cuda/kinds.h"
#include "cuda/real.h"

/* True if this process may use a GPU. To be asked before anything that the process keeps is looked at: a fork's child
 * forgets here what its parent kept, and locked. */
static inline bool vgpu__attached(void) {
    return vgpu_process() != NULL;
}

/* Forward a call to the driver. */
#define VGPU_CALL(result, symbol, ...)                                                                                 \
    do {                                                                                                               \
        vgpu__inside++;                                                                                                \
        (result) = VGPU_REAL(symbol)(__VA_ARGS__);                                                                     \
        vgpu__inside--;                                                                                                \
    } while (0)

/* Where the driver puts what it hands out: in a variable of ours, which is given to the application once it is charged.
 * Another thread may write to the application's at any time. */
#define VGPU_OUT(pointer, own) ((pointer) != NULL ? &(own) : NULL)

/* The shares of an ordinal. Else NULL and *result says why: CUDA_ERROR_NOT_PERMITTED where no share binds to it or the
 * shares cannot be read, or what the driver said. */
struct vgpu_device *vgpu__cuda_device(CUdevice ordinal, CUresult *result);

/* The shares of the calling thread's current context, and that context. */
struct vgpu_device *vgpu__cuda_current(CUcontext *context, CUresult *result);

#endif
