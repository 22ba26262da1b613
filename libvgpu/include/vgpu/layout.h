/* SPDX-License-Identifier: Apache-2.0
 *
 * The two files of a share, as they lie on disk and in memory: `limits` (written by the node agent alone, mapped
 * read-only) and `books` (written by every process of the share). C includes this header; Python reads the part above
 * the marker line through cffi (libvgpu/layout.py), so that part is plain declarations and integer constants only.
 *
 * Rules of change: little endian, natural alignment, no padding that is not named. New fields take the place of
 * reserved ones, and zero means "as before"; `size` says how much the writer knew. Files keep their length, so an old
 * library reads a new file and the other way round. Anything else is a new `version`.
 *
 * Memory order of `limits`: the writer makes `sequence` odd, writes, makes it even (a seqlock). A single aligned field
 * may be read alone with an atomic load; what must agree with each other is read between two equal, even sequences.
 *
 * Who is alive: a process owns slot i of `books` while it holds an exclusive open-file-description lock on byte
 * VGPU_SLOT_LOCKS + i of the file. It takes the lock on the description that it then maps, and closes the descriptor.
 * So the lock lives exactly as long as the mapping: kill -9 and exec end it, no close() can lose it, and it means the
 * same in every pid namespace. A fork's child inherits the mapping and holds the lock too, but takes a slot of its own:
 * the driver gives a process's memory back when its device files are closed, and the child has those as well (known
 * from data loaders that outlive their trainer, e.g. github.com/NVIDIA/Megatron-LM/pull/3684). Process ids could not do
 * this: two containers with one share have different pid namespaces, and ids are used again. pid, pid_namespace and
 * start_time in a slot are there for people to read, never to decide.
 *
 * Crash safety of `used`: a change of s bytes is
 *     slot.inflight_bytes += s;  used.bytes -+ s (compare-and-swap);  slot.reserved_bytes -+ s;  slot.inflight_bytes -=
 * s; A slot without owner and with inflight_bytes == 0 is exact: its reserved_bytes go back. With inflight_bytes != 0
 * it is not known whether `used` has the change: somebody counts anew, i.e. holds the lock on byte VGPU_RECOUNT_LOCK,
 * sets VGPU_RECOUNT in `used` (which holds off all changes), waits until no living slot has bytes in flight, and stores
 * the sum of reserved_bytes of the living. If it dies at that, the next one finds the flag without the lock and starts
 * over.
 */
#ifndef VGPU_LAYOUT_H
#define VGPU_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

/* vgpu:cffi-begin */
#define VGPU_LIMITS_MAGIC 0x314D494C55504756
#define VGPU_BOOKS_MAGIC  0x314B4F4F42504756
#define VGPU_VERSION      1

#define VGPU_LIMITS_FILE_BYTES 4096
#define VGPU_BOOKS_FILE_BYTES  266240
#define VGPU_SLOTS             1024

/* Smallest `size` that a reader of this version accepts: up to and including `share`. */
#define VGPU_LIMITS_MIN_BYTES 240

/* Byte offsets of the locks, far behind the end of the file. */
#define VGPU_RECOUNT_LOCK 1073741823
#define VGPU_SLOT_LOCKS   1073741824

/* vgpu_limits.flags */
#define VGPU_SUSPENDED     1
#define VGPU_OVERSUBSCRIBE 2
#define VGPU_KILL_OVERUSE  4 /* for the agent: ends processes that hold more, by the driver, than the share has */

/* vgpu_limits.policy */
#define VGPU_POLICY_FIXED 1
#define VGPU_POLICY_BURST 2

/* Top bit of vgpu_books.used: a recount is going on. The bytes are in the other 63. */
#define VGPU_RECOUNT 0x8000000000000000

struct vgpu_limits {
    uint64_t magic;
    uint32_t version;
    uint32_t size;     /* bytes of this structure that the writer knew */
    uint32_t sequence; /* odd while the agent writes */
    uint32_t flags;
    uint64_t memory_bytes;      /* device memory of the share */
    uint64_t host_memory_bytes; /* with VGPU_OVERSUBSCRIBE: what may lie on the host */
    uint32_t cores_percent;     /* guaranteed GPU time, 0..100 */
    uint32_t ceiling_percent;   /* most GPU time even on an idle device, 1..100 */
    uint32_t granted_percent;   /* what a Burst share may use now, 1..100; 0: nothing said, use the ceiling */
    uint32_t policy;
    int32_t priority;
    uint32_t charge_permille; /* real GPU time of 1000 parts predicted, as the agent measured it; 0: nothing said */
    char device_uuid[48];     /* "GPU-...", NUL-terminated */
    char share[128];          /* NUL-terminated */
    uint64_t context_bytes; /* what a context takes itself, charged where the driver does not say it; 0: nothing said */
    uint64_t steered_at_ns; /* CLOCK_MONOTONIC, when the agent last stood by charge_permille; 0: it never did */
    int64_t settled_ns; /* GPU time that was charged too much, all in all, as the agent found it; below 0: too little */
    uint64_t unseen_bytes; /* what the driver counts for the share's processes beyond their books; 0: nothing said */
    uint8_t reserved1[3824];
};

struct vgpu_slot {
    uint64_t reserved_bytes; /* what the owner holds of `used` */
    uint64_t inflight_bytes; /* changes that may or may not be in `used` yet */
    uint64_t peak_bytes;
    uint64_t launches;
    uint64_t gpu_time_ns;   /* GPU time charged */
    uint64_t throttled_ns;  /* time that launches waited, over all threads */
    uint64_t out_of_memory; /* requests refused for the limit */
    uint64_t pid_namespace; /* inode of /proc/self/ns/pid */
    uint64_t start_time;    /* clock ticks since boot, as in /proc/PID/stat */
    uint32_t pid;           /* in its own namespace; 0: the slot is free */
    uint32_t reserved0;
    char command[16];
    /* For the agent, which compares with what the driver counts. */
    uint64_t predicted_ns;  /* GPU time charged, before charge_permille */
    uint64_t inflight_ns;   /* the part of it whose end has not been seen yet */
    uint64_t busy_since_ns; /* with inflight_ns: when what runs now began */
    uint64_t host_bytes;    /* oversubscribed: of the owner's allocations, what lies on the host instead */
    uint64_t drawn_ns;      /* GPU time that this process took from the bucket, less what it gave back */
    uint8_t reserved1[120];
};

struct vgpu_books {
    uint64_t magic;
    uint32_t version;
    uint32_t size;
    uint32_t slot_count;
    uint32_t slot_size;
    uint32_t slots_high; /* no slot from here on was ever used */
    uint8_t reserved0[36];

    /* One cache line: memory. */
    uint64_t used; /* bytes, and VGPU_RECOUNT */
    uint64_t peak_bytes;
    uint8_t reserved1[48];

    /* One cache line: GPU time. Debt is a negative level. */
    int64_t bucket_ns;
    uint64_t refilled_at_ns;    /* CLOCK_MONOTONIC, as all times here */
    uint64_t charged_ns;        /* all GPU time ever charged */
    uint64_t window_started_ns; /* utilisation is told over windows of about half a second */
    uint64_t window_base_ns;    /* charged_ns when the window started */
    uint32_t window_permille;   /* GPU time of the device that the last whole window had */
    uint32_t padding;
    int64_t settled_ns; /* of the limits' settled_ns: what is in the bucket already */
    uint8_t reserved2[8];

    /* Totals of processes that have ended and whose slots were taken back. */
    uint64_t ended_launches;
    uint64_t ended_gpu_time_ns;
    uint64_t ended_throttled_ns;
    uint64_t ended_out_of_memory;
    uint64_t context_bytes; /* what a context took itself when one was last measured: reserved for the next one */
    uint8_t reserved3[3864];

    struct vgpu_slot slots[VGPU_SLOTS];
};
/* vgpu:cffi-end */

_Static_assert(sizeof(struct vgpu_limits) == VGPU_LIMITS_FILE_BYTES, "the limits file is one page");
_Static_assert(offsetof(struct vgpu_limits, memory_bytes) == 24, "layout");
_Static_assert(offsetof(struct vgpu_limits, context_bytes) == VGPU_LIMITS_MIN_BYTES, "layout");
_Static_assert(sizeof(struct vgpu_slot) == 256, "slots are whole cache lines");
_Static_assert(offsetof(struct vgpu_slot, pid) == 72, "layout");
_Static_assert(offsetof(struct vgpu_books, used) == 64, "memory has a cache line of its own");
_Static_assert(offsetof(struct vgpu_books, bucket_ns) == 128, "GPU time has a cache line of its own");
_Static_assert(offsetof(struct vgpu_books, slots) == 4096, "slots start on the second page");
_Static_assert(sizeof(struct vgpu_books) == VGPU_BOOKS_FILE_BYTES, "layout");

#endif
