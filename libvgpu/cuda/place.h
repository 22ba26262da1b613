/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a piece of work runs. The driver puts it into the context of its stream, which need not be the current one; and
 * events around it can only be those of the same context. For the files of this folder.
 */
#ifndef VGPU_CUDA_PLACE_H
#define VGPU_CUDA_PLACE_H

#include "cuda/device.h"

struct vgpu__place {
    CUcontext context; /* NULL: none, or not to be entered */
    CUstreamCaptureMode mode;
    bool entered, relaxed;
};

/* Make the context of a stream current. `relaxed`: and let this thread do what captures of other streams forbid
 * (cuThreadExchangeStreamCaptureMode): a question about an event spoils a capture else, also one that another thread
 * begins just now. */
void vgpu__place_enter(struct vgpu__place *place, CUstream stream, bool relaxed);
/* The same for a context. */
void vgpu__place_enter_context(struct vgpu__place *place, CUcontext context, bool relaxed);
void vgpu__place_leave(struct vgpu__place *place);

/* The device that a stream's work runs on, whatever context is current. */
CUresult vgpu__place_ordinal(CUstream stream, CUdevice *ordinal);

#endif
