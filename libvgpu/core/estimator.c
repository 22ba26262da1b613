/* SPDX-License-Identifier: Apache-2.0 */
#include "core/estimator.h"

#include <sched.h>
#include <string.h>

enum {
    ENTRIES = 4096,
    PROBES = 16,
    WINDOW = 32,
    SAMPLE_EVERY = 1024,               /* then two of so many launches, to twice as many */
    SAMPLE_EVERY_NS = 250 * 1000,      /* or one per so much GPU time: long work is measured each time */
    LONG_NS = 2 * 1000 * 1000,         /* longer than the turns that processes take: neighbours are in most samples */
    NEW_LONG_NS = 20 * 1000 * 1000,    /* of more than one measurement: too long for turns alone */
    FIRST_LONG_NS = 128 * 1000 * 1000, /* of a single one: the turns of 64 processes */
    FAR_ENOUGH = 4,                    /* of them in a row are the work's own */
    OUTLIER = 8,                       /* a sample of more than so many estimates is a neighbour's doing */
};

static struct vgpu_estimate entries[ENTRIES];

/* Where the probes for a key begin: the bits that all of it has a part in. */
static uint32_t first_of(uint64_t key) {
    return (uint32_t)((key * UINT64_C(0x9E3779B97F4A7C15)) >> 52) % ENTRIES;
}

struct vgpu_estimate *vgpu_estimate_of(uint64_t key) {
    uint32_t first = first_of(key);
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

struct vgpu_estimate *vgpu_estimate_find(uint64_t key) {
    for (uint32_t i = 0; i < PROBES; i++) {
        struct vgpu_estimate *entry = &entries[(first_of(key) + i) % ENTRIES];
        if (__atomic_load_n(&entry->key, __ATOMIC_RELAXED) == key)
            return entry;
    }
    return NULL;
}

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

/* ---- Launching ---- */

/* Known work may lose a count when threads meet: its group is a little smaller. Unknown work runs on credit, so none of
 * its launches may be lost. */
uint64_t vgpu_estimate_launch(struct vgpu_estimate *estimate, bool *sample) {
    uint64_t gpu_ns = load64(&estimate->gpu_ns);
    if (__builtin_expect(load32(&estimate->measured) < VGPU_FIRST_SAMPLES, 0)) {
        __atomic_fetch_add(&estimate->number, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&estimate->launches, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&estimate->charged_ns, gpu_ns, __ATOMIC_RELAXED);
        *sample = true;
        return gpu_ns;
    }
    uint32_t launches = load32(&estimate->launches) + 1;
    uint64_t charged = load64(&estimate->charged_ns) + gpu_ns;
    store32(&estimate->number, load32(&estimate->number) + 1);
    store32(&estimate->launches, launches);
    store64(&estimate->charged_ns, charged);
    *sample = launches >= load32(&estimate->measure_at) || charged >= load64(&estimate->measure_at_ns);
    return gpu_ns;
}

uint32_t vgpu_estimate_room(const struct vgpu_estimate *estimate) {
    uint32_t launches = load32(&estimate->launches), measure_at = load32(&estimate->measure_at);
    uint64_t gpu_ns = load64(&estimate->gpu_ns), charged = load64(&estimate->charged_ns);
    uint64_t measure_at_ns = load64(&estimate->measure_at_ns);
    if (load32(&estimate->measured) < VGPU_FIRST_SAMPLES || launches + 1 >= measure_at || charged >= measure_at_ns)
        return 0;
    uint64_t by_time = (measure_at_ns - charged - 1) / (gpu_ns > 0 ? gpu_ns : 1);
    uint32_t by_count = measure_at - launches - 1;
    return by_time < by_count ? (uint32_t)by_time : by_count;
}

void vgpu_estimate_count(struct vgpu_estimate *estimate, uint32_t launches, uint64_t gpu_ns) {
    __atomic_fetch_add(&estimate->number, launches, __ATOMIC_RELAXED);
    __atomic_fetch_add(&estimate->launches, launches, __ATOMIC_RELAXED);
    __atomic_fetch_add(&estimate->charged_ns, gpu_ns, __ATOMIC_RELAXED);
}

uint64_t vgpu_estimate_reprice(struct vgpu_estimate *estimate) {
    uint64_t gpu_ns = load64(&estimate->gpu_ns);
    __atomic_fetch_add(&estimate->charged_ns, gpu_ns, __ATOMIC_RELAXED);
    return gpu_ns;
}

void vgpu_estimate_uncount(struct vgpu_estimate *estimate, uint64_t gpu_ns) {
    uint32_t launches = load32(&estimate->launches);
    uint64_t charged = load64(&estimate->charged_ns);
    /* Another thread may have taken the group meanwhile: then there is nothing to take out. */
    while (launches > 0 && !__atomic_compare_exchange_n(&estimate->launches, &launches, launches - 1, true,
                                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        continue;
    while (charged >= gpu_ns && !__atomic_compare_exchange_n(&estimate->charged_ns, &charged, charged - gpu_ns, true,
                                                             __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        continue;
}

bool vgpu_estimate_new(const struct vgpu_estimate *estimate) {
    return load32(&estimate->measured) == 0;
}

bool vgpu_estimate_unlaunched(const struct vgpu_estimate *estimate) {
    return load32(&estimate->measured) == 0 && load32(&estimate->number) == 0;
}

bool vgpu_estimate_unknown(const struct vgpu_estimate *estimate) {
    return load32(&estimate->measured) == 0 && load32(&estimate->number) > 1;
}

bool vgpu_estimate_doubtful(const struct vgpu_estimate *estimate) {
    uint32_t measured = load32(&estimate->measured);
    uint64_t shortest = load64(&estimate->window[0].shortest_ns);
    return measured < VGPU_FIRST_SAMPLES && shortest < (measured < 2 ? FIRST_LONG_NS : NEW_LONG_NS);
}

/* Measured launches come in pairs, since pairs are what an estimate is made of; then none for a random while. */
static void plan_next(struct vgpu_estimate *estimate, uint32_t launches) {
    uint32_t random = load32(&estimate->random);
    bool first_of_pair = launches > 1 || (random & 1) == 0;
    random = random * 1664525u + 1013904223u;
    random = first_of_pair ? random | 1 : random & ~1u;
    store32(&estimate->random, random);
    store32(&estimate->measure_at, first_of_pair ? 1 : SAMPLE_EVERY + (random >> 8) % SAMPLE_EVERY);
    store64(&estimate->measure_at_ns, SAMPLE_EVERY_NS / 2 + (random >> 8) % SAMPLE_EVERY_NS);
}

struct vgpu_group vgpu_estimate_group(struct vgpu_estimate *estimate) {
    struct vgpu_group group = {
        .number = load32(&estimate->number),
        .launches = __atomic_exchange_n(&estimate->launches, 0, __ATOMIC_RELAXED),
        .charged_ns = __atomic_exchange_n(&estimate->charged_ns, 0, __ATOMIC_RELAXED),
    };
    plan_next(estimate, group.launches);
    return group;
}

void vgpu_estimate_ungroup(struct vgpu_estimate *estimate, const struct vgpu_group *group) {
    __atomic_fetch_add(&estimate->launches, group->launches, __ATOMIC_RELAXED);
    __atomic_fetch_add(&estimate->charged_ns, group->charged_ns, __ATOMIC_RELAXED);
}

/* ---- Measuring ---- */

static void lock(struct vgpu_estimate *estimate) {
    while (__atomic_exchange_n(&estimate->lock, 1, __ATOMIC_ACQUIRE) != 0)
        sched_yield();
}

static void unlock(struct vgpu_estimate *estimate) {
    __atomic_store_n(&estimate->lock, 0, __ATOMIC_RELEASE);
}

static uint64_t least_known(uint64_t a, uint64_t b) {
    return a == 0 || (b != 0 && b < a) ? b : a;
}

/* Work that is new: its first measurements may be neighbours' for the most part, as is known once there is a better
 * one. All of them are in the window. */
static void trim_first(struct vgpu_estimate *estimate, uint64_t gpu_ns) {
    struct vgpu_estimate_window *window = &estimate->window[0];
    estimate->first_ns[window->samples - 1] = gpu_ns;
    window->trimmed_ns = 0;
    for (uint32_t i = 0; i < window->samples; i++) {
        uint64_t first = estimate->first_ns[i], most = OUTLIER * window->least_ns;
        window->trimmed_ns += most > 0 && first > most ? most : first;
    }
    window->sum_ns = window->trimmed_ns;
}

static void add_sample(struct vgpu_estimate *estimate, const struct vgpu_group *group, uint64_t gpu_ns) {
    struct vgpu_estimate_window *window = &estimate->window[0];
    uint64_t known = load32(&estimate->measured) > 0 ? load64(&estimate->gpu_ns) : 0;
    bool settled = estimate->window[1].samples > 0 || window->samples >= VGPU_FIRST_SAMPLES;
    estimate->far = settled && gpu_ns > OUTLIER * known ? estimate->far + 1 : 0;
    if (estimate->far == 1)
        estimate->last_ns = 0; /* no pair with what was before */
    if (window->samples == WINDOW || estimate->far == 1) {
        estimate->window[1] = *window;
        *window = (struct vgpu_estimate_window){0};
    }
    bool adjacent = group->number - estimate->last_number == 1 || estimate->last_number - group->number == 1;
    if (adjacent && estimate->last_ns > 0)
        window->least_ns = least_known(window->least_ns, (gpu_ns + estimate->last_ns) / 2);
    estimate->last_number = group->number;
    estimate->last_ns = gpu_ns;
    window->samples++;
    store64(&window->shortest_ns, least_known(window->shortest_ns, gpu_ns));
    window->launches += group->launches;
    window->charged_ns += group->charged_ns;
    window->sum_ns += gpu_ns;
    if (estimate->window[1].samples == 0 && window->samples <= VGPU_FIRST_SAMPLES)
        trim_first(estimate, gpu_ns);
    else
        window->trimmed_ns += gpu_ns > OUTLIER * known ? OUTLIER * known : gpu_ns;
    if (estimate->far == FAR_ENOUGH) {
        estimate->window[1] = (struct vgpu_estimate_window){0};
        window->trimmed_ns = window->sum_ns;
        estimate->far = 0;
    } else if (estimate->far > 0) {
        store32(&estimate->measure_at, 1); /* the next launch too */
    }
}

/* Work that is always longer than the turns, each launch of it measured: what the agent's correction is made for. While
 * it is new it must be far longer: the first measurements may be anything. */
static bool is_long(const struct vgpu_estimate *estimate) {
    const struct vgpu_estimate_window *now = &estimate->window[0], *before = &estimate->window[1];
    uint32_t samples = now->samples + before->samples;
    uint64_t shortest = least_known(now->shortest_ns, before->shortest_ns);
    return shortest >= (samples < VGPU_FIRST_SAMPLES ? NEW_LONG_NS : LONG_NS) &&
           now->launches + before->launches == samples;
}

static uint64_t estimated(const struct vgpu_estimate *estimate, bool exact) {
    const struct vgpu_estimate_window *now = &estimate->window[0], *before = &estimate->window[1];
    uint32_t samples = now->samples + before->samples;
    if (exact)
        return (now->sum_ns + before->sum_ns) / samples;
    uint64_t mean = (now->trimmed_ns + before->trimmed_ns) / samples;
    uint64_t least = least_known(now->least_ns, before->least_ns);
    if (least == 0)
        return mean;
    return least > mean / 2 ? least : mean / 2;
}

int64_t vgpu_estimate_measured(struct vgpu_estimate *estimate, const struct vgpu_group *group, uint64_t gpu_ns,
                               bool corrected) {
    lock(estimate);
    add_sample(estimate, group, gpu_ns > 0 ? gpu_ns : 1);
    bool exact = corrected && is_long(estimate);
    uint64_t new_ns = estimated(estimate, exact);
    struct vgpu_estimate_window *window = &estimate->window[0];
    uint64_t cost_ns = exact ? window->sum_ns : window->launches * new_ns;
    int64_t owed = (int64_t)(cost_ns - window->charged_ns);
    window->charged_ns = cost_ns;
    store64(&estimate->gpu_ns, new_ns > 0 ? new_ns : 1);
    store32(&estimate->measured, load32(&estimate->measured) + 1);
    unlock(estimate);
    return owed;
}

/* ---- Starting over ---- */

/* Launches of the old work that were charged for an estimate are done with; those that nobody knew yet stay unpaid. */
void vgpu_estimate_renew(struct vgpu_estimate *estimate) {
    lock(estimate);
    if (load32(&estimate->measured) > 0) {
        __atomic_exchange_n(&estimate->launches, 0, __ATOMIC_RELAXED);
        __atomic_exchange_n(&estimate->charged_ns, 0, __ATOMIC_RELAXED);
    }
    memset(estimate->window, 0, sizeof estimate->window);
    estimate->last_ns = 0;
    store32(&estimate->measured, 0);
    store32(&estimate->number, 0);
    unlock(estimate);
}

void vgpu_estimator_renew(void) {
    for (uint32_t i = 0; i < ENTRIES; i++)
        if (load64(&entries[i].key) != 0)
            vgpu_estimate_renew(&entries[i]);
}

void vgpu_estimator_forget(void) {
    memset(entries, 0, sizeof entries);
}
