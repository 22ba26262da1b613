/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda/footprint.h"

#include "core/clock.h"
#include "core/limits.h"
#include "core/quota.h"
#include "cuda/memory.h"
#include "cuda/rounding.h"
#include "nvml/real.h"

#include <stddef.h>
#include <string.h>
#include <unistd.h>

enum {
    MOST_PROCESSES = 4096,
    ALLOCATIONS_PER_LOOK = 64, /* more live ones than at the last look */
    ALLOCATIONS_PER_CLOCK = 1024,
    LOOK_EVERY_NS = 250 * 1000 * 1000,
};
#define LOOK_AT_ONCE (INT64_MIN / 2)

struct footprint {
    struct vgpu_device *device;
    nvmlDevice_t handle;
    enum { UNASKED = 0, SILENT, WATCHED, TRUSTED } driver; /* what NVML is good for */
    uint32_t contexts;
    uint64_t charged_bytes;
    uint64_t looked_at_ns;
    struct vgpu_lock growing; /* from vgpu__footprint_begin to vgpu__footprint_end; what follows is about that */
    bool overdrawn;           /* somebody has charged more than there was room for */
    struct {
        bool known;
        uint64_t held_bytes, other_bytes, charged_bytes; /* other: by calls */
    } before;
    /* Changed without the lock: */
    int64_t managed_bytes;
    int64_t live, looked_at_live; /* allocations: now, and at the last look, or fewer since then */
};

static struct vgpu_lock lock = VGPU_UNLOCKED; /* pools may be trimmed under it, by calls of the driver */
static struct footprint footprints[VGPU_MAX_SHARES];
static int imported;
/* Above 0 between begin and end. More: a signal handler has interrupted what this thread makes, and makes something
 * too; it is answered for both. */
static __thread int growing_here __attribute__((tls_model("initial-exec")));
static __thread unsigned int allocations __attribute__((tls_model("initial-exec")));

void vgpu__footprint_forget(void) {
    vgpu_lock_renew(&lock);
    memset(footprints, 0, sizeof footprints);
    imported = 0;
    growing_here = 0;
}

/* Devices are never forgotten before a fork, so their index is theirs. */
static struct footprint *footprint_of(struct vgpu_device *device) {
    return &footprints[device - vgpu__process->devices];
}

/* The lock is held. */
static struct footprint *own_footprint_of(struct vgpu_device *device) {
    struct footprint *footprint = footprint_of(device);
    footprint->device = device;
    return footprint;
}

void vgpu__footprint_managed(struct vgpu_device *device, int64_t bytes) {
    __atomic_fetch_add(&footprint_of(device)->managed_bytes, bytes, __ATOMIC_RELAXED);
}

/* ---- What the driver says; the lock is held ---- */

enum listing { UNKNOWN, ABSENT, LISTED };

/* What NVML's list says of this process. UNKNOWN: NVML cannot say now. */
static enum listing listed_bytes(const struct footprint *footprint, uint64_t *bytes) {
    static nvmlProcessInfo_t infos[MOST_PROCESSES];
    unsigned int count = MOST_PROCESSES, pid = (unsigned int)getpid();
    if (VGPU_NVML(nvmlDeviceGetComputeRunningProcesses_v3)(footprint->handle, &count, infos) != NVML_SUCCESS &&
        (count = MOST_PROCESSES,
         VGPU_NVML(nvmlDeviceGetComputeRunningProcesses_v2)(footprint->handle, &count, infos) != NVML_SUCCESS))
        return UNKNOWN;
    for (unsigned int i = 0; i < count && i < MOST_PROCESSES; i++) {
        if (infos[i].pid == pid && infos[i].usedGpuMemory != NVML_VALUE_NOT_AVAILABLE_ULL) {
            *bytes = infos[i].usedGpuMemory;
            return LISTED;
        }
    }
    return ABSENT;
}

/* A process id of NVML's may be one of another pid namespace. It means this process if it is listed from its first
 * context on, and not before. */
static void watch(struct footprint *footprint) {
    uint64_t ignored;
    if (footprint->driver != UNASKED)
        return;
    footprint->driver = SILENT;
    if (vgpu__nvml_start() == NVML_SUCCESS &&
        VGPU_NVML(nvmlDeviceGetHandleByUUID)(footprint->device->uuid, &footprint->handle) == NVML_SUCCESS &&
        listed_bytes(footprint, &ignored) == ABSENT)
        footprint->driver = WATCHED;
}

static uint64_t own_bytes(const struct vgpu_device *device) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < device->count; i++)
        sum += __atomic_load_n(&device->shares[i]->slot->reserved_bytes, __ATOMIC_SEQ_CST);
    return sum;
}

static uint64_t others_of(const struct footprint *footprint, uint64_t own) {
    return own > footprint->charged_bytes ? own - footprint->charged_bytes : 0;
}

/* What the footprint is if nothing but what is being made came on top of it: the only way to tell that from managed
 * memory, which is charged and may lie on the host. */
static uint64_t with_growth(const struct footprint *footprint, uint64_t held, uint64_t others) {
    uint64_t was = footprint->before.held_bytes + others, is = held + footprint->before.other_bytes;
    return footprint->before.known && is > was ? footprint->before.charged_bytes + (is - was) : 0;
}

/* What the footprint is by all that can be known; false: what it was when that was known last. Other threads may
 * allocate or free meanwhile: what is reserved before and after counts by the larger, so that nothing is charged twice.
 */
static bool measure(struct footprint *footprint, uint64_t *bytes) {
    uint64_t before = own_bytes(footprint->device), held;
    *bytes = 0;
    if (footprint->contexts == 0)
        return true;
    enum listing listing = footprint->driver < WATCHED ? ABSENT : listed_bytes(footprint, &held);
    if (listing == UNKNOWN) {
        *bytes = footprint->charged_bytes;
        return false;
    }
    if (listing == ABSENT) {
        if (footprint->driver == WATCHED)
            footprint->driver = SILENT;
        const struct vgpu_limits *limits = footprint->device->shares[0]->limits;
        *bytes = footprint->driver == TRUSTED ? 0 : footprint->contexts * vgpu_limits_context_bytes(limits);
        return true;
    }
    footprint->driver = TRUSTED;
    uint64_t after = own_bytes(footprint->device), charged = before > after ? before : after;
    uint64_t others = others_of(footprint, charged), now = footprint->charged_bytes;
    uint64_t least = held > others ? held - others : 0, grown = with_growth(footprint, held, others);
    int64_t managed = __atomic_load_n(&footprint->managed_bytes, __ATOMIC_RELAXED);
    held += managed > 0 ? (uint64_t)managed : 0; /* as if none of it were on the device */
    uint64_t most = held > others ? held - others : 0;
    now = now > grown ? now : grown;
    *bytes = now < least ? least : now > most ? most : now;
    return true;
}

/* False: it is more than the share has, and nothing was charged; or nobody knows what was to be charged. */
static bool settle(struct footprint *footprint, bool forced) {
    uint64_t bytes;
    bool known = measure(footprint, &bytes);
    if (bytes > footprint->charged_bytes) {
        uint64_t growth = bytes - footprint->charged_bytes;
        if (vgpu__reserve(footprint->device, growth) != VGPU_OK) {
            if (!forced)
                return false;
            vgpu_charge(footprint->device, growth);
            footprint->overdrawn = true;
        }
    } else {
        vgpu_credit(footprint->device, footprint->charged_bytes - bytes);
    }
    footprint->charged_bytes = bytes;
    return known;
}

/* ---- Contexts and modules ---- */

static uint64_t expected_bytes(const struct vgpu_device *device) {
    uint64_t said = vgpu_limits_context_bytes(device->shares[0]->limits);
    uint64_t seen = __atomic_load_n(&device->shares[0]->books->context_bytes, __ATOMIC_RELAXED);
    return seen > 0 ? seen : said;
}

void vgpu__footprint_begin(struct vgpu_device *device) {
    if (device == NULL || growing_here++ > 0)
        return;
    struct footprint *footprint = footprint_of(device);
    vgpu_lock(&footprint->growing);
    vgpu__enter(&lock);
    footprint->overdrawn = false;
    footprint->before.known = __atomic_load_n(&footprint->managed_bytes, __ATOMIC_RELAXED) > 0 &&
                              footprint->driver >= WATCHED &&
                              listed_bytes(footprint, &footprint->before.held_bytes) == LISTED;
    footprint->before.other_bytes = others_of(footprint, own_bytes(device));
    footprint->before.charged_bytes = footprint->charged_bytes;
    vgpu__leave(&lock);
}

void vgpu__footprint_end(struct vgpu_device *device) {
    if (device == NULL)
        return;
    if (growing_here > 1) {
        growing_here--;
        return;
    }
    struct footprint *footprint = footprint_of(device);
    vgpu__enter(&lock);
    footprint->before.known = false;
    vgpu__leave(&lock);
    vgpu_unlock(&footprint->growing);
    growing_here--;
}

void vgpu__footprint_first_look(void) {
    vgpu__enter(&lock);
    for (uint32_t i = 0; i < vgpu__process->device_count; i++)
        watch(own_footprint_of(&vgpu__process->devices[i]));
    vgpu__leave(&lock);
}

CUresult vgpu__footprint_coming(struct vgpu_device *device) {
    vgpu__enter(&lock);
    struct footprint *footprint = own_footprint_of(device);
    watch(footprint);
    uint64_t bytes = expected_bytes(device);
    bool good = vgpu__reserve(device, bytes) == VGPU_OK;
    if (good) {
        footprint->charged_bytes += bytes;
        footprint->contexts++;
    }
    vgpu__leave(&lock);
    return good ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult vgpu__footprint_came(struct vgpu_device *device, bool made) {
    vgpu__enter(&lock);
    struct footprint *footprint = own_footprint_of(device);
    bool first = footprint->contexts == 1;
    if (!made)
        footprint->contexts--;
    bool good = settle(footprint, !made) && !footprint->overdrawn;
    if (made && good && first && footprint->driver == TRUSTED)
        __atomic_store_n(&device->shares[0]->books->context_bytes, footprint->charged_bytes, __ATOMIC_RELAXED);
    vgpu__leave(&lock);
    return good ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

void vgpu__footprint_found(struct vgpu_device *device) {
    vgpu__enter(&lock);
    struct footprint *footprint = own_footprint_of(device);
    footprint->contexts++;
    settle(footprint, true);
    vgpu__leave(&lock);
}

void vgpu__footprint_context_gone(struct vgpu_device *device) {
    vgpu__enter(&lock);
    struct footprint *footprint = own_footprint_of(device);
    if (footprint->contexts > 0)
        footprint->contexts--;
    settle(footprint, true);
    vgpu__leave(&lock);
}

CUresult vgpu__footprint_grown(struct vgpu_device *device) {
    vgpu__enter(&lock);
    struct footprint *footprint = own_footprint_of(device);
    bool good = settle(footprint, false) && !footprint->overdrawn;
    vgpu__leave(&lock);
    return good ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

void vgpu__footprint_settle(struct vgpu_device *device) {
    vgpu__enter(&lock);
    settle(own_footprint_of(device), true);
    vgpu__leave(&lock);
}

/* ---- Memory of other processes ---- */

static bool settle_all(bool forced) {
    bool good = true;
    vgpu__enter(&lock);
    for (uint32_t i = 0; i < vgpu__process->device_count; i++)
        if (footprints[i].driver == TRUSTED)
            good &= settle(&footprints[i], forced);
    vgpu__leave(&lock);
    return good;
}

CUresult vgpu__footprint_imported(void) {
    __atomic_store_n(&imported, 1, __ATOMIC_RELAXED);
    return settle_all(false) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

void vgpu__footprint_settle_all(void) {
    if (__atomic_load_n(&imported, __ATOMIC_RELAXED))
        settle_all(true);
}

/* ---- Looking again ---- */

bool vgpu__footprint_held(struct vgpu_device *device, uint64_t *held_bytes, uint64_t *own) {
    struct footprint *footprint = footprint_of(device);
    vgpu__enter(&lock);
    bool said = footprint->driver == TRUSTED && listed_bytes(footprint, held_bytes) == LISTED;
    *own = own_bytes(device);
    vgpu__leave(&lock);
    return said;
}

bool vgpu__footprint_look(struct vgpu_device *device) {
    vgpu__enter(&lock);
    struct footprint *footprint = own_footprint_of(device);
    uint64_t before = footprint->charged_bytes;
    __atomic_store_n(&footprint->looked_at_live, __atomic_load_n(&footprint->live, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
    if (footprint->driver == TRUSTED)
        settle(footprint, true);
    footprint->looked_at_ns = vgpu_now_ns();
    bool grown = footprint->charged_bytes >= before + VGPU_BLOCK_BYTES;
    vgpu__leave(&lock);
    return grown;
}

static bool is_old(const struct footprint *footprint) {
    vgpu__enter(&lock);
    bool old = vgpu_now_ns() - footprint->looked_at_ns >= LOOK_EVERY_NS;
    vgpu__leave(&lock);
    return old;
}

void vgpu__footprint_allocated(struct vgpu_device *device) {
    struct footprint *footprint = footprint_of(device);
    int64_t live = __atomic_add_fetch(&footprint->live, 1, __ATOMIC_RELAXED);
    bool grown = live - __atomic_load_n(&footprint->looked_at_live, __ATOMIC_RELAXED) >= ALLOCATIONS_PER_LOOK;
    if (__builtin_expect(!grown && ++allocations % ALLOCATIONS_PER_CLOCK != 0, 1) || vgpu__holding > 0)
        return;
    if (grown || is_old(footprint))
        vgpu__footprint_look(device);
}

/* What is allocated in the place of it may be rounded up in another way. */
void vgpu__footprint_freed(struct vgpu_device *device) {
    struct footprint *footprint = footprint_of(device);
    int64_t live = __atomic_sub_fetch(&footprint->live, 1, __ATOMIC_RELAXED);
    if (live < __atomic_load_n(&footprint->looked_at_live, __ATOMIC_RELAXED))
        __atomic_store_n(&footprint->looked_at_live, live, __ATOMIC_RELAXED);
}

void vgpu__footprint_suspect(struct vgpu_device *device) {
    __atomic_store_n(&footprint_of(device)->looked_at_live, LOOK_AT_ONCE, __ATOMIC_RELAXED);
}

/* ---- Code that is brought to the device when it is first run ---- */

/* Room for code of which nobody can say how much it is: where there is more, it is looked at only now and then. */
#define CODE_ROOM (64ull << 20)

void vgpu__footprint_look_if_suspect(struct vgpu_device *device) {
    int64_t live = __atomic_load_n(&footprint_of(device)->looked_at_live, __ATOMIC_RELAXED);
    if (live == LOOK_AT_ONCE && vgpu__holding == 0)
        vgpu__footprint_look(device);
}

void vgpu__footprint_before(uint64_t bytes) {
    if (__builtin_expect(__atomic_load_n(&imported, __ATOMIC_RELAXED), 0) && bytes > VGPU_BLOCK_BYTES / 2 &&
        vgpu__holding == 0)
        settle_all(true);
    for (uint32_t i = 0; i < vgpu__process->device_count; i++)
        vgpu__footprint_look_if_suspect(&vgpu__process->devices[i]);
}

CUresult vgpu__footprint_code_coming(struct vgpu_device *device) {
    uint64_t total, used;
    vgpu_usage(device, &total, &used);
    if (used + CODE_ROOM > total) {
        vgpu__footprint_look_if_suspect(device);
        vgpu_usage(device, &total, &used);
    }
    return used > total ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

bool vgpu__footprint_hides(const struct vgpu_device *device) {
    const struct footprint *footprint = &footprints[device - vgpu__process->devices];
    return __atomic_load_n(&footprint->managed_bytes, __ATOMIC_RELAXED) > 0;
}

void vgpu__footprint_code_came(struct vgpu_device *device, bool look_at_once) {
    vgpu__footprint_suspect(device);
    if (vgpu__holding == 0 && (look_at_once || is_old(footprint_of(device))))
        vgpu__footprint_look(device);
}
