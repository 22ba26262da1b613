/* SPDX-License-Identifier: Apache-2.0
 *
 * Stream-ordered memory: what the pools of this process hold of the card, for the files of this folder.
 */
#ifndef VGPU_CUDA_POOLS_H
#define VGPU_CUDA_POOLS_H

#include "core/ptrmap.h"
#include "core/share.h"
#include "cuda/real.h"

/* Give back what pools of the device have let go of since we last looked (they do when a stream is synchronised). */
void vgpu__pools_settle(struct vgpu_device *device);

/* The same, and let pools let go of what they keep for later. True if anything came back. */
bool vgpu__pools_shrink(struct vgpu_device *device);

/* True if memory lies in a pool of managed memory: its charge, without an owner. */
bool vgpu__pool_moves(CUdeviceptr dptr, struct vgpu_charge *charge);

/* An allocation of a pool was freed (charge->owner is ours): the driver has taken it back, or will in stream order. */
void vgpu__pooled_freed(const struct vgpu_charge *charge);

/* What an executable graph that is launched takes of one device: of its allocation nodes that lie there. */
struct vgpu__graph_need {
    CUgraphExec exec;
    CUstream stream;
    CUdevice ordinal; /* negative: the current device */
    uint64_t bytes;
    bool first; /* it was not launched before: it cannot use what other graphs have in use */
};

enum { VGPU_GRAPH_NEEDS = VGPU_MAX_ORDINALS + 1 }; /* at most: one for each device, and one for the current one */

/* Launch it: reserved before, charged after as the driver holds it. */
CUresult vgpu__pools_graph_launch(const struct vgpu__graph_need *needs, uint32_t count, CUresult (*launch)(void *),
                                  void *argument);

/* Around a call that may end a context, and with it the events in it: nobody asks for them meanwhile. */
void vgpu__pools_context_ending(CUcontext context);
void vgpu__pools_context_ended(CUcontext context, bool ended);

/* An executable graph, or a stream, is about to be destroyed, and its handle may come again. */
void vgpu__pools_graph_gone(CUgraphExec exec);
void vgpu__pools_stream_gone(CUstream stream);

/* In a fork's child. */
void vgpu__pools_forget(void);
void vgpu__graph_memory_forget(void);

#endif
