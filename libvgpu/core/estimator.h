/* SPDX-License-Identifier: Apache-2.0
 *
 * How much GPU time a piece of work takes: one estimate per kind of work (for CUDA: function and log2 of the grid, or a
 * graph), fed by measured launches: all of long work, some of short work, at random distances so that no rhythm of the
 * program hides from them.
 *
 * A measurement is the time between two events around the work. While other processes have the GPU in turns it contains
 * their slices too, and nothing in it says how much. So the estimate is the least mean of two launches in a row among
 * the last 32 to 64: among so many, one pair is free of neighbours, and work that takes turns between long and short is
 * taken for its mean. It is at least half of the mean of all of them: work that varies wildly cannot hide behind its
 * shortest runs. What bias is left, the node agent measures and corrects from outside (charge_permille). While it does,
 * long work is taken for its mean: that contains the neighbours, as the correction knows, and it is what varies least.
 *
 * The first measurements of new work may be slices of neighbours for the most part: whoever starts beside 63 others
 * sees 64 times what it took. So they are trimmed by what is learnt after them, and while there are few of them the
 * estimate is doubtful: the limiter lets doubtful work run ahead of its payment now and then, so that it is measured
 * again.
 *
 * A measurement far above the estimate is a neighbour's doing, and counts for little; but several in a row are the
 * work's own, which has become another, and then they alone count.
 *
 * A measured launch stands for its group: the launches of its kind since the one measured before. When an estimate
 * changes, what was charged for the groups of the window is settled: charged too little is owed, too much comes back.
 *
 * Counting a launch is lock-free; entries are never freed. All functions may be called from any thread.
 */
#ifndef VGPU_ESTIMATOR_H
#define VGPU_ESTIMATOR_H

#include <stdbool.h>
#include <stdint.h>

/* Launches that one measurement stands for. */
struct vgpu_group {
    uint32_t number; /* of the last of them, counted per kind of work */
    uint32_t launches;
    uint64_t charged_ns;
};

enum { VGPU_FIRST_SAMPLES = 8 }; /* measure the first launches of new work */

struct vgpu_estimate_window {
    uint32_t samples;
    uint32_t padding;
    uint64_t launches, charged_ns; /* of the groups of its samples */
    uint64_t sum_ns, trimmed_ns;   /* of the samples; without what is far out of the ordinary */
    uint64_t least_ns;             /* mean of a pair; 0: no pair yet */
    uint64_t shortest_ns;          /* of the samples */
};

struct vgpu_estimate {
    uint64_t key;
    uint64_t gpu_ns; /* the estimate; 0 before the first measurement */
    /* The group that is open: launches since the last measured one, and when to measure the next. */
    uint64_t charged_ns, measure_at_ns;
    uint32_t launches, measure_at;
    uint32_t number;    /* launches ever */
    uint32_t under_way; /* measurements that were begun and have no result yet */
    uint32_t measured;  /* measurements since the work was new */
    uint32_t lock;      /* the rest is written under it */
    uint32_t last_number;
    uint32_t random;
    uint32_t far; /* measurements in a row that were far above the estimate */
    uint64_t last_ns;
    uint64_t first_ns[VGPU_FIRST_SAMPLES]; /* measurements of new work */
    struct vgpu_estimate_window window[2]; /* this one and the one before */
};

/* The estimate of a key (not 0). Never NULL: when the table is full, work shares estimates. */
struct vgpu_estimate *vgpu_estimate_of(uint64_t key);

/* The estimate that a key has for itself; NULL: none (yet). */
struct vgpu_estimate *vgpu_estimate_find(uint64_t key);

/* Count a launch. Returns what to charge now; *sample says whether to measure this one. */
uint64_t vgpu_estimate_launch(struct vgpu_estimate *estimate, bool *sample);

/* How many launches in a row may be counted later, all at once and at the present estimate: none of them is to be
 * measured. */
uint32_t vgpu_estimate_room(const struct vgpu_estimate *estimate);
void vgpu_estimate_count(struct vgpu_estimate *estimate, uint32_t launches, uint64_t gpu_ns);

/* A launch was counted for 0, and by now something is known: returns what to charge for it. */
uint64_t vgpu_estimate_reprice(struct vgpu_estimate *estimate);

/* A launch was counted, for so much, and failed: it goes out of the open group. */
void vgpu_estimate_uncount(struct vgpu_estimate *estimate, uint64_t gpu_ns);

/* True if the work was never measured. */
bool vgpu_estimate_new(const struct vgpu_estimate *estimate);

/* True if the work was never launched. */
bool vgpu_estimate_unlaunched(const struct vgpu_estimate *estimate);

/* True if the work was launched more than once and never measured. */
bool vgpu_estimate_unknown(const struct vgpu_estimate *estimate);

/* True while so little was measured that most of the estimate may be the neighbours'; not if it is very long each time.
 */
bool vgpu_estimate_doubtful(const struct vgpu_estimate *estimate);

/* This launch is measured: take the open group. It goes back to the open one if there will be no result. */
struct vgpu_group vgpu_estimate_group(struct vgpu_estimate *estimate);
void vgpu_estimate_ungroup(struct vgpu_estimate *estimate, const struct vgpu_group *group);

/* Feed one measurement; corrected: the agent corrects what is charged. Returns what is to be charged on top, or given
 * back (negative). */
int64_t vgpu_estimate_measured(struct vgpu_estimate *estimate, const struct vgpu_group *group, uint64_t gpu_ns,
                               bool corrected);

/* The key means other work now: measure anew. Until then what is known is a guess. */
void vgpu_estimate_renew(struct vgpu_estimate *estimate);
void vgpu_estimator_renew(void); /* all keys */

/* In a fork's child: start over. */
void vgpu_estimator_forget(void);

#endif
