/* SPDX-License-Identifier: Apache-2.0
 *
 * Measuring launches with pairs of events, without ever waiting for one.
 */
#ifndef VGPU_CUDA_SAMPLING_H
#define VGPU_CUDA_SAMPLING_H

#include "core/estimator.h"
#include "core/limiter.h"
#include "cuda/device.h"

struct vgpu__sample;

/* Record the start of a measurement on a stream of the current context; its end is the end of all work up to a mark
 * (limiter.h). NULL: not now. */
struct vgpu__sample *vgpu__sample_begin(CUcontext context, CUstream stream, struct vgpu_estimate *estimate,
                                        struct vgpu_device *device, uint64_t mark_ns);

/* Record its end; `launched` false: the launch failed, forget it. */
void vgpu__sample_end(struct vgpu__sample *sample, CUstream stream, bool launched);

/* Feed the estimates with what is done in this context. Returns what is to be charged on top of what was charged when
 * the work was launched, or given back (negative). */
int64_t vgpu__sample_harvest(CUcontext context);

/* About how many measurements have no result yet. */
int vgpu__sample_pending(void);

/* What was measured for an estimate (NULL: for any) is not what it stands for now: let nothing of it come in. */
void vgpu__sample_disown(struct vgpu_estimate *estimate);

/* How many measurements of work that was never measured have no result yet. */
int vgpu__sample_unknown(void);

/* Around a call that may end a context, and with it the events in it: nobody uses them meanwhile. If it has ended, work
 * without a result is charged for the time since it began. */
void vgpu__sample_hold(CUcontext context);
void vgpu__sample_let_go(CUcontext context, bool ended);

/* The process ends: the same for all that has no result even now. */
void vgpu__sample_finish(bool driver_may_be_asked);

/* In a fork's child. */
void vgpu__sample_forget(void);

#endif
