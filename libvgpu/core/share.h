/* SPDX-License-Identifier: Apache-2.0
 *
 * What this process holds: its shares, found in their folders, and the devices that they bind to by UUID.
 *
 * Nothing is opened or mapped before the first vgpu_process(). All of the state lies in pages that a fork's child finds
 * zeroed (MADV_WIPEONFORK), so a child attaches anew, with slots of its own, at its first call; what the parent
 * allocated stays the parent's.
 */
#ifndef VGPU_SHARE_H
#define VGPU_SHARE_H

#include "vgpu/layout.h"

#include <stdbool.h>

/* Container paths and the environment variable: api/names.py has the same, a test compares. */
#define VGPU_CONTAINER_SHARES_DIR "/run/vgpu/shares"
#define VGPU_ENV_SHARES_DIR       "VGPU_SHARES_DIR"
#define VGPU_LIMITS_FILE          "limits"
#define VGPU_BOOKS_FILE           "books"

enum {
    VGPU_MAX_SHARES = 64,
    VGPU_MAX_SHARES_PER_DEVICE = 8,
    VGPU_MAX_ORDINALS = 64,
    VGPU_MAX_PATH = 512,
};

struct vgpu_share {
    const struct vgpu_limits *limits; /* mapped read-only */
    struct vgpu_books *books;         /* mapped, shared with all processes of the share */
    struct vgpu_slot *slot;           /* this process's own */
    uint64_t held_bytes;              /* reserved by this process, in memory that no other can write */
    uint64_t held_host_bytes;         /* the same for memory on the host: host.c */
    int64_t own_bucket_ns;            /* the same for GPU time: limiter.c */
    uint64_t own_refilled_at_ns;
    int64_t own_settled_ns;
    uint64_t reaped_at_ns;    /* when this process last looked for dead ones */
    uint32_t refusals;        /* of memory, since the last time that it got some */
    uint32_t charge_permille; /* as the limits had it lately; 0: as predicted */
    char books_path[VGPU_MAX_PATH];
};

/* A device, and the shares of it that this process has: they add up. */
struct vgpu_device {
    char uuid[48];
    uint32_t count;
    uint64_t launched_ns,
        finished_ns; /* predicted GPU time: all that was launched, and up to where it is known to be done */
    struct vgpu_share *shares[VGPU_MAX_SHARES_PER_DEVICE];
};

struct vgpu_process {
    int state; /* vgpu_process_state, set with release */
    uint32_t share_count;
    uint32_t device_count;
    /* For a front-end: the device behind each of its ordinals. NULL: not asked yet. vgpu_refused: there is no share of
     * it. */
    struct vgpu_device *by_ordinal[VGPU_MAX_ORDINALS];
    bool started;                    /* for a front-end: its driver has been started */
    struct vgpu_device *only_device; /* set when the front-end has one device and it is bound */
    struct vgpu_share shares[VGPU_MAX_SHARES];
    struct vgpu_device devices[VGPU_MAX_SHARES];
};

enum vgpu_process_state { VGPU_UNATTACHED = 0, VGPU_ATTACHING, VGPU_ATTACHED, VGPU_FAILED };

extern struct vgpu_device vgpu_refused;
extern struct vgpu_process *vgpu__process;

/* Attach if that has not been tried, once per process; NULL if it failed (said on stderr): refuse the driver. */
struct vgpu_process *vgpu__attach(void);

/* This process's shares; NULL: refuse the driver. */
static inline struct vgpu_process *vgpu_process(void) {
    struct vgpu_process *process = vgpu__process;
    if (__builtin_expect(process != NULL && __atomic_load_n(&process->state, __ATOMIC_ACQUIRE) == VGPU_ATTACHED, 1))
        return process;
    return vgpu__attach();
}

/* Called in a fork's child before it attaches: forget the handles and locks that were the parent's. */
void vgpu_at_fork_child(void (*forget)(void));

/* The device with this UUID; NULL if no share binds to it. Compares without case and without the kind ("GPU-", "MIG-").
 */
struct vgpu_device *vgpu_device_by_uuid(struct vgpu_process *process, const char *uuid);

/* Take `bytes` of the device's shares, from one alone where it fits. VGPU_OK, or VGPU_OVER after an attempt to reap the
 * dead. */
int vgpu_reserve(struct vgpu_device *device, uint64_t bytes);

/* Book `bytes` that the driver has taken already and cannot be made to give back, beyond the limit if need be: nobody
 * gets anything until the use is below the limit again. */
void vgpu_charge(struct vgpu_device *device, uint64_t bytes);

/* Give back `bytes` that this process reserved before. Waits out a recount; never fails. */
void vgpu_credit(struct vgpu_device *device, uint64_t bytes);

/* The same for memory on the host, where a share allows it: what vgpu_reserve has refused may go there. VGPU_OVER where
 * none allows it, or none has that much left. Exact with any number of processes, and slow: it looks at all of them. */
int vgpu_reserve_host(struct vgpu_device *device, uint64_t bytes);
void vgpu_credit_host(struct vgpu_device *device, uint64_t bytes);

/* What vgpu_reserve counted as refused was granted after all, on the host. */
void vgpu_not_refused(struct vgpu_device *device);

/* Size of the device's shares and bytes of them in use, by all processes. */
void vgpu_usage(struct vgpu_device *device, uint64_t *total_bytes, uint64_t *used_bytes);

#endif
