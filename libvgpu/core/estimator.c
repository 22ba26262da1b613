/* SPDX-License-Identifier: Apache-2.0 */
#include "core/estimator.h"

#include <string.h>

enum {
    ENTRIES = 4096,
    PROBES = 16,
    WINDOW = 8,
    FIRST_SAMPLES = 8,                  /* measure the first launches of new work */
    SAMPLE_EVERY = 256,                 /* then one of so many launches */
    SAMPLE_EVERY_NS = 10 * 1000 * 1000, /* or one per so much GPU time: long work is measured each time */
};

static struct vgpu_estimate entries[ENTRIES];

struct vgpu_estimate *vgpu_estimate_of(uint64_t key) {
    uint64_t hashed = key * UINT64_C(0x9E3779B97F4A7C15);
    uint32_t first = (uint32_t)(hashed >> 32) % ENTRIES;
    for (uint32_t i = 0; i < PROBES; i++) {
        struct vgpu_estimate *entry = &entries[(first + i) % ENTRIES];
        uint64_t seen = __atomic_load_n(&entry->key, __ATOMIC_RELAXED);
        if (seen == 0)
            __atomic_compare_exchange_n(&entry->key, &seen, key, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
        if (seen == key || seen == 0)
            return entry;
    }
    return &entries[first];
}

/* The counters below may lose a count when threads meet: they only decide how often to measure. */
static uint32_t load32(const uint32_t *value) {
    return __atomic_load_n(value, __ATOMIC_RELAXED);
}
static uint64_t load64(const uint64_t *value) {
    return __atomic_load_n(value, __ATOMIC_RELAXED);
}
static void store32(uint32_t *to, uint32_t value) {
    __atomic_store_n(to, value, __ATOMIC_RELAXED);
}
static void store64(uint64_t *to, uint64_t value) {
    __atomic_store_n(to, value, __ATOMIC_RELAXED);
}

uint64_t vgpu_estimate_launch(struct vgpu_estimate *estimate, bool *sample) {
    uint64_t gpu_ns = load64(&estimate->gpu_ns);
    if (gpu_ns == 0)
        __atomic_fetch_add(&estimate->unpaid, 1, __ATOMIC_RELAXED);
    uint32_t launches = load32(&estimate->since_sample) + 1;
    uint64_t time = load64(&estimate->since_sample_ns) + gpu_ns;
    *sample = load32(&estimate->total_measured) < FIRST_SAMPLES || launches >= SAMPLE_EVERY || time >= SAMPLE_EVERY_NS;
    store32(&estimate->since_sample, *sample ? 0 : launches);
    store64(&estimate->since_sample_ns, *sample ? 0 : time);
    return gpu_ns;
}

static uint64_t least_known(uint64_t a, uint64_t b) {
    return a == 0 || (b != 0 && b < a) ? b : a;
}

uint64_t vgpu_estimate_measured(struct vgpu_estimate *estimate, uint64_t gpu_ns) {
    gpu_ns = gpu_ns > 0 ? gpu_ns : 1;
    uint32_t measured = load32(&estimate->measured);
    uint64_t least = least_known(load64(&estimate->least_ns[0]), gpu_ns);
    store64(&estimate->least_ns[0], least);
    store64(&estimate->gpu_ns, least_known(least, load64(&estimate->least_ns[1])));
    if (measured + 1 >= WINDOW) {
        store64(&estimate->least_ns[1], least);
        store64(&estimate->least_ns[0], 0);
        store32(&estimate->measured, 0);
    } else {
        store32(&estimate->measured, measured + 1);
    }
    store32(&estimate->total_measured, load32(&estimate->total_measured) + 1);
    return gpu_ns * __atomic_exchange_n(&estimate->unpaid, 0, __ATOMIC_RELAXED);
}

void vgpu_estimate_renew(struct vgpu_estimate *estimate) {
    store64(&estimate->gpu_ns, 0);
    store64(&estimate->least_ns[0], 0);
    store64(&estimate->least_ns[1], 0);
    store32(&estimate->measured, 0);
    store32(&estimate->total_measured, 0);
}

void vgpu_estimator_forget(void) {
    memset(entries, 0, sizeof entries);
}
