/* SPDX-License-Identifier: Apache-2.0
 *
 * How much GPU time a piece of work takes: one estimate per kind of work (for CUDA: function and log2 of the grid, or a
 * graph), fed by a few measured launches.
 *
 * A measurement is the time between two events around the work. While other processes have the GPU in turns it contains
 * their slices too, so the estimate is the least of the last 8 to 16 measurements: among so many, one is free of
 * neighbours. Work whose time varies is so taken for its quickest run of late; the node agent's feedback corrects that
 * from outside.
 *
 * Lock-free; entries are never freed. All functions may be called from any thread.
 */
#ifndef VGPU_ESTIMATOR_H
#define VGPU_ESTIMATOR_H

#include <stdbool.h>
#include <stdint.h>

struct vgpu_estimate {
    uint64_t key;
    uint64_t gpu_ns;          /* the estimate; 0 until the first measurement */
    uint64_t least_ns[2];     /* of this window and of the one before; 0: none */
    uint32_t measured;        /* in this window */
    uint32_t total_measured;  /* since the start */
    uint32_t since_sample;    /* launches since the last sampled one */
    uint32_t unpaid;          /* launches before the first measurement */
    uint64_t since_sample_ns; /* their GPU time */
    uint32_t under_way;       /* measurements that were begun and have no result yet */
};

/* The estimate of a key (not 0). Never NULL: when the table is full, work shares estimates. */
struct vgpu_estimate *vgpu_estimate_of(uint64_t key);

/* Count a launch. Returns what to charge now; *sample says whether to measure this one. */
uint64_t vgpu_estimate_launch(struct vgpu_estimate *estimate, bool *sample);

/* Feed one measurement. Returns what is to be charged on top, for launches made before anything was known. */
uint64_t vgpu_estimate_measured(struct vgpu_estimate *estimate, uint64_t gpu_ns);

/* The key means other work now: know nothing of it. */
void vgpu_estimate_renew(struct vgpu_estimate *estimate);

/* In a fork's child: start over. */
void vgpu_estimator_forget(void);

#endif
