/* SPDX-License-Identifier: Apache-2.0
 *
 * What the file of a simulated card (<driver root>/dev/nvidiaN) holds. Every process that uses the card maps it shared;
 * the Python side (libvgpu/stub/cardfiles.py) reads this very header through cffi, up to the marker line below.
 *
 * The file is the card: what is charged here is what the card really holds, who holds it, and for how long each process
 * really had the engine. It is kept apart from libvgpu's own books on purpose, so that it can prove them wrong.
 *
 * Who writes what: the facts and the settings are written by whoever creates the card; a process writes its own slot;
 * the rest is written under the card's lock (cards.c). All times are CLOCK_MONOTONIC nanoseconds.
 */
#ifndef VGPU_STUB_CARD_H
#define VGPU_STUB_CARD_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
#define STUB_CARD_MAGIC   0x64726143
#define STUB_CARD_VERSION 2
#define STUB_SLOTS        1024
#define STUB_EVENTS       32
#define STUB_FAULTS       8
#define STUB_CARD_USAGE   32
#define STUB_SLOT_USAGE   16
#define STUB_LIVE_WORDS   16
#define STUB_SHARED       256

#define STUB_SLOT_FREE  0
#define STUB_SLOT_LIVE  1
#define STUB_SLOT_ENDED 2

/* GPU time within one tenth of a second, number tenth since boot. */
struct stub_usage {
    uint64_t tenth;
    uint64_t busy_ns;
};

/*
 * One process on this card. Its owner holds a lock (F_OFD_SETLK) on the slot's bytes of the card file for as long as it
 * lives, which the kernel gives back however the process ends: a live slot whose bytes are not locked is a dead
 * process.
 */
struct stub_slot {
    uint32_t state;
    uint32_t pid;           /* in its own pid namespace */
    uint64_t pid_namespace; /* inode of /proc/self/ns/pid */
    uint64_t start_time;    /* field 22 of /proc/self/stat */
    char hostname[64];
    char comm[16];
    uint64_t memory_bytes; /* device memory that it holds, pools with what they keep included */
    uint64_t peak_bytes;
    uint64_t pool_idle_bytes; /* part of memory_bytes: kept by memory pools, in use by nobody */
    uint64_t host_bytes;      /* managed memory that lives on the host */
    uint64_t gpu_time_ns;     /* how long it really held the engine */
    uint64_t launches;
    uint64_t out_of_memory; /* times that the card had no room for it */
    uint64_t began_ns;
    uint64_t ended_ns;
    uint64_t waiting_since_ns; /* 0: not waiting for the engine */
    uint64_t turn_ns;          /* handed the engine at this time of the engine */
    uint32_t turn;             /* futex: 1 when the engine was handed over */
    uint32_t contexts;
    uint64_t reserved[7];
    struct stub_usage usage[STUB_SLOT_USAGE];
};

struct stub_event {
    uint64_t type; /* NVML event type */
    uint64_t data; /* the Xid */
    uint64_t time_ns;
};

/* Let the nth call (from 1) of function fail with this result; "*" counts all driver calls together. */
struct stub_fault {
    char function[64];
    uint64_t nth;
    uint64_t seen;
    int32_t result;
    uint32_t armed;
};

/* Memory that several processes may hold: it stays until the last of them lets go. Charged to one of them. */
struct stub_shared {
    uint64_t inode; /* of the memory file behind it */
    uint64_t bytes;
    uint32_t owner; /* slot number + 1 of who is charged; 0: free */
    uint32_t reserved;
    uint64_t holders[STUB_LIVE_WORDS]; /* a bit for each slot, the owner's too */
};

struct stub_card {
    uint32_t magic;
    uint32_t version;
    uint32_t size; /* of this structure */
    uint32_t index;

    /* Facts */
    char name[96];
    char uuid[48]; /* "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx", of a part "MIG-..." */
    char serial[32];
    char driver_version[32];
    uint32_t cuda_version; /* 1000 * major + 10 * minor */
    uint32_t compute_major;
    uint32_t compute_minor;
    uint32_t multiprocessors;
    uint32_t pci_domain;
    uint32_t pci_bus;
    uint32_t pci_device;
    uint32_t pci_device_id;
    int32_t numa_node;
    uint32_t mig_mode;
    uint64_t memory_bytes;
    char parent_uuid[48]; /* of the card that this is a part of (MIG); empty: it is a card */

    /* Settings */
    uint64_t reserved_bytes;    /* kept by the driver itself, never handed out */
    uint64_t context_bytes;     /* charged for each context */
    uint64_t module_bytes;      /* charged for each loaded module */
    uint64_t lazy_bytes;        /* charged for each function when it is first launched */
    uint64_t granularity_bytes; /* plain allocations are rounded up to this; those of up to half of it share blocks */
    uint64_t vmm_bytes;         /* granularity of cuMemCreate */
    uint64_t pool_chunk_bytes;  /* memory pools grow by this */
    uint64_t slice_ns;          /* how long a process keeps the engine while others wait */
    uint64_t kernel_ns;         /* what a plain kernel takes... */
    uint64_t kernel_block_ns;   /* ...and for each of its blocks, divided over the multiprocessors */
    uint64_t array_tile_bytes;  /* arrays are rounded up to this */
    uint64_t opened_counts;     /* NVML counts memory to those who have opened it too */
    uint64_t pageable_access;   /* all memory of a process can be moved to the card */
    uint64_t bytes_per_us;      /* that its memory reads and writes, for fills and copies on the card; 0: no time */
    uint64_t link_bytes_per_us; /* between it and the host, or another card; 0: no time */
    uint64_t spare[6];          /* slots start on a cache line */
    /* What NVML tells of its health */
    uint64_t lost;            /* it fell off the bus: no call about it succeeds */
    uint64_t remap_failed;    /* a row could not be remapped */
    uint64_t remap_pending;   /* rows are remapped at the next reset */
    uint64_t too_hot;         /* clocks are held down by the temperature */
    uint64_t recovery_action; /* what the driver asks for, as NVML numbers it */
    uint64_t links;           /* NVLinks that it has */
    uint64_t links_down;      /* a bit for each of them that is down */
    uint64_t ecc_uncorrected;
    uint64_t pages_pending; /* pages are retired at the next reset */

    /* The state, under the lock */
    uint32_t lock;         /* futex: slot number + 1 of the holder, 0 is free, top bit: somebody waits */
    uint32_t engine_owner; /* slot number + 1, 0 is idle */
    uint64_t used_bytes;
    uint64_t peak_bytes;
    uint64_t engine_since_ns; /* start of the owner's time that is not yet added to its slot */
    uint64_t engine_free_ns;  /* time of the engine at which it fell idle or changed hands */
    uint64_t engine_changes;
    uint32_t engine_kick; /* futex: wakes the owner when somebody starts to wait */
    uint32_t engine_waiters;
    uint64_t ended_gpu_time_ns;     /* of processes whose slots were given to others */
    uint64_t live[STUB_LIVE_WORDS]; /* one bit for each live slot */
    uint64_t engine_until_ns;       /* end of the kernel that runs, if it is not interrupted */
    struct stub_usage usage[STUB_CARD_USAGE];

    uint32_t event_count; /* events ever put into the ring, futex */
    uint32_t fault_count; /* armed faults */
    struct stub_event events[STUB_EVENTS];
    struct stub_fault faults[STUB_FAULTS];
    struct stub_shared shared[STUB_SHARED];
    uint64_t unused[8]; /* slots start on a cache line */

    struct stub_slot slots[STUB_SLOTS];
};
/* cffi: end */

#if defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
_Static_assert(sizeof(struct stub_slot) % 64 == 0, "slots keep off each other's cache lines");
_Static_assert(offsetof(struct stub_card, slots) % 64 == 0, "slots start on a cache line");
_Static_assert(STUB_LIVE_WORDS * 64 == STUB_SLOTS, "a bit for each slot");
#endif

#endif
