/* SPDX-License-Identifier: Apache-2.0
 *
 * GPU time of a device: a bucket per share that all processes draw on. The unit is a nanosecond of the whole GPU,
 * predicted when work is launched (estimator.h) and corrected when it was measured.
 *
 * The bucket fills with rate percent of the time that passes and goes below zero without bound: one long kernel is paid
 * for in full. Nobody is in the bucket's debt alone: whoever launches next waits until it is level again, asleep until
 * the predicted moment. Unused time is kept up to VGPU_KEEP_NS; but a share that asks all the time and waits because
 * neighbours have the GPU keeps what it is owed, up to VGPU_OWED_NS.
 */
#ifndef VGPU_LIMITER_H
#define VGPU_LIMITER_H

#include "core/limits.h"
#include "core/share.h"

enum {
    VGPU_KEEP_NS = 20 * 1000 * 1000,   /* times rate: evens out sleeps that end late */
    VGPU_OWED_NS = 200 * 1000 * 1000,  /* times rate */
    VGPU_CHUNK_NS = 1000 * 1000,       /* time that a thread draws at once, times rate */
    VGPU_DOUBT_NS = 256 * 1000 * 1000, /* GPU time that work whose estimate is doubtful may be ahead of its payment */
};

/* Pure arithmetic on one share's bucket; now_ns is CLOCK_MONOTONIC, busy: work waits for the GPU. Relaxed atomics
 * throughout. */
void vgpu_bucket_refill(struct vgpu_books *books, uint64_t now_ns, uint32_t rate_percent, bool busy);
int64_t vgpu_bucket_draw(struct vgpu_books *books, int64_t gpu_ns); /* returns the level after it */
uint64_t vgpu_bucket_wait_ns(int64_t level_ns, uint32_t rate_percent);

/* Wait while the device's shares are in debt or one is suspended. After `patience_ns` a debt that is no greater than
 * VGPU_DOUBT_NS is waited for no longer. Returns the nanoseconds waited. An unlimited device (rate 100) has no debts.
 */
uint64_t vgpu_limiter_wait(struct vgpu_device *device, uint64_t patience_ns);

/* Draw `gpu_ns` from the device's shares, in proportion to their rates; nothing from an unlimited device. */
void vgpu_limiter_draw(struct vgpu_device *device, int64_t gpu_ns);

/* Work waits for the GPU and not for the bucket: keep what the bucket gains meanwhile. */
void vgpu_limiter_keep(struct vgpu_device *device);

/* True if launches on the device are held back at times: its rate is below 100, or may come to be at any moment. */
bool vgpu_limiter_holds(const struct vgpu_device *device);

/* Charge without waiting, in proportion too; scaled by what the agent measured (charge_permille). */
void vgpu_limiter_charge(struct vgpu_device *device, int64_t gpu_ns);

/* True if the agent corrects what is charged (charge_permille), as seen when something was accounted last. */
bool vgpu_limiter_corrected(const struct vgpu_device *device);

/* Percent of the GPU that all shares of the device may use together, 1..100. */
uint32_t vgpu_limiter_rate_percent(const struct vgpu_device *device);

/* True if launches on the device must wait now: asked at every launch. */
static inline bool vgpu_limiter_suspended(const struct vgpu_device *device) {
    for (uint32_t i = 0; i < device->count; i++)
        if (vgpu_limits_flags(device->shares[i]->limits) & VGPU_SUSPENDED)
            return true;
    return false;
}

/* Book what a thread has launched since it last said so. */
void vgpu_limiter_account(struct vgpu_device *device, uint64_t launches, uint64_t gpu_ns, uint64_t throttled_ns);

/* Charge at once, or give back (negative), what measurements say about work that was launched before. */
void vgpu_limiter_settle(struct vgpu_device *device, int64_t gpu_ns);

/* Predicted GPU time that this process has under way on a device. Launched returns a mark; when the work at a mark is
 * seen to be done, all before it is. */
uint64_t vgpu_limiter_launched(struct vgpu_device *device, uint64_t gpu_ns);
void vgpu_limiter_finished(struct vgpu_device *device, uint64_t mark_ns);
uint64_t vgpu_limiter_inflight_ns(const struct vgpu_device *device);

/* Tell the agent what is under way; `began`: what runs now began now. */
void vgpu_limiter_tell(struct vgpu_device *device, bool began);

/* Share of its own allowance that the device's shares used lately, 0..100. */
uint32_t vgpu_limiter_utilisation_percent(const struct vgpu_device *device);

#endif
