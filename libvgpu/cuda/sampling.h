/* SPDX-License-Identifier: Apache-2.0
 *
 * Measuring launches with pairs of events, without ever waiting for one.
 */
#ifndef VGPU_CUDA_SAMPLING_H
#define VGPU_CUDA_SAMPLING_H

#include "core/estimator.h"
#include "cuda/device.h"

struct vgpu__sample;

/* Record the start of a measurement on a stream of the current context. NULL: not now (no free pair). */
struct vgpu__sample *vgpu__sample_begin(CUcontext context, CUstream stream, struct vgpu_estimate *estimate);

/* True if vgpu__sample_begin would find a pair. */
bool vgpu__sample_possible(void);

/* Record its end; `launched` false: the launch failed, forget it. */
void vgpu__sample_end(struct vgpu__sample *sample, CUstream stream, bool launched);

/* Feed the estimates with what is done in this context. Returns GPU time that is to be charged for launches of work
 * that was not known when it was launched. */
uint64_t vgpu__sample_harvest(CUcontext context);

/* What was measured for an estimate is not what it stands for now: let nothing of it come in. */
void vgpu__sample_disown(struct vgpu_estimate *estimate);

/* A context ends: its events are gone. NULL: all contexts (in a fork's child). */
void vgpu__sample_drop(CUcontext context);

#endif
