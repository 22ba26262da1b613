/* SPDX-License-Identifier: Apache-2.0 */
#include "core/limiter.h"

#include "core/clock.h"
#include "core/limits.h"

enum {
    REFILL_STEP_NS = 50 * 1000,          /* refill in steps, so that rounding stays below 2 parts in 10^5 */
    LONGEST_SLEEP_NS = 50 * 1000 * 1000, /* then look again: the limits may have changed */
    SUSPENDED_SLEEP_NS = 10 * 1000 * 1000,
    IDLE_NS = 20 * 1000 * 1000,       /* without a launch */
    OWN_KEEP_NS = 1000 * 1000 * 1000, /* times rate: five times what the books may hold */
    MOST_SETTLED_NS = 1000 * 1000 * 1000,
    WINDOW_NS = 500 * 1000 * 1000,
    UNLIMITED = 100,
};

static int64_t filled_bucket(int64_t level, int64_t gain, int64_t most) {
    if (level >= most)
        return level;
    return level > most - gain ? most : level + gain;
}

/* What lies above VGPU_KEEP_NS stays only while work is waiting for the GPU: an idle share has no claim to it. */
void vgpu_bucket_refill(struct vgpu_books *books, uint64_t now_ns, uint32_t rate_percent, bool busy) {
    uint64_t then = __atomic_load_n(&books->refilled_at_ns, __ATOMIC_RELAXED);
    if (now_ns >= then && now_ns - then < REFILL_STEP_NS)
        return;
    if (!__atomic_compare_exchange_n(&books->refilled_at_ns, &then, now_ns, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        return; /* another thread has this step */
    if (then == 0)
        return;          /* the first time: nothing has passed */
    if (now_ns < then) { /* the machine was started anew */
        __atomic_store_n(&books->bucket_ns, 0, __ATOMIC_RELAXED);
        return;
    }
    uint64_t passed = now_ns - then;
    int64_t gain = passed > UINT64_MAX / 128 ? INT64_MAX / 2 : (int64_t)(passed * rate_percent / 100);
    int64_t kept = (int64_t)VGPU_KEEP_NS * rate_percent / 100, owed = (int64_t)VGPU_OWED_NS * rate_percent / 100,
            most = busy ? owed : kept;
    int64_t level = __atomic_load_n(&books->bucket_ns, __ATOMIC_RELAXED), filled;
    do {
        filled = filled_bucket(level < owed ? level : owed, gain, most); /* the rate may have been higher */
        if (!busy && passed > IDLE_NS && filled > kept)
            filled = kept;
    } while (!__atomic_compare_exchange_n(&books->bucket_ns, &level, filled, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}

int64_t vgpu_bucket_draw(struct vgpu_books *books, int64_t gpu_ns) {
    return __atomic_sub_fetch(&books->bucket_ns, gpu_ns, __ATOMIC_RELAXED);
}

uint64_t vgpu_bucket_wait_ns(int64_t level_ns, uint32_t rate_percent) {
    if (level_ns >= 0)
        return 0;
    uint64_t debt = (uint64_t)-(level_ns + 1) + 1;
    return debt > UINT64_MAX / 128 ? UINT64_MAX / 128 : debt * 100 / rate_percent;
}

uint32_t vgpu_limiter_rate_percent(const struct vgpu_device *device) {
    uint32_t rate = 0;
    for (uint32_t i = 0; i < device->count; i++)
        rate += vgpu_limits_rate_percent(device->shares[i]->limits);
    return rate > UNLIMITED ? UNLIMITED : rate;
}

static uint32_t charge_permille(const struct vgpu_share *share) {
    uint32_t permille = __atomic_load_n(&share->charge_permille, __ATOMIC_RELAXED);
    return permille != 0 ? permille : 1000;
}

bool vgpu_limiter_corrected(const struct vgpu_device *device) {
    return device->count > 0 && __atomic_load_n(&device->shares[0]->charge_permille, __ATOMIC_RELAXED) != 0;
}

void vgpu_limiter_charge(struct vgpu_device *device, int64_t gpu_ns) {
    uint32_t total = 0;
    for (uint32_t i = 0; i < device->count; i++)
        total += vgpu_limits_rate_percent(device->shares[i]->limits);
    for (uint32_t i = 0; i < device->count; i++) {
        struct vgpu_share *share = device->shares[i];
        int64_t part = device->count == 1 ? gpu_ns : gpu_ns / total * vgpu_limits_rate_percent(share->limits);
        part = part * (int64_t)charge_permille(share) / 1000;
        vgpu_bucket_draw(share->books, part);
        __atomic_fetch_sub(&share->own_bucket_ns, part, __ATOMIC_RELAXED);
        __atomic_fetch_add(&share->slot->drawn_ns, (uint64_t)part, __ATOMIC_RELAXED);
    }
}

bool vgpu_limiter_holds(const struct vgpu_device *device) {
    bool burst = false;
    for (uint32_t i = 0; i < device->count; i++)
        burst = burst || device->shares[i]->limits->policy == VGPU_POLICY_BURST;
    return burst || vgpu_limiter_rate_percent(device) < UNLIMITED;
}

/* The bucket in the books is the tenant's to write, so each process keeps one of its own: it holds what this process
 * alone may have, and so much more than the one in the books that it decides nothing while those are sound. */
static uint64_t own_wait_ns(struct vgpu_share *share, uint64_t now, uint32_t rate_percent) {
    int64_t most = (int64_t)OWN_KEEP_NS * rate_percent / 100;
    uint64_t then = __atomic_load_n(&share->own_refilled_at_ns, __ATOMIC_RELAXED);
    if (now > then && now - then >= REFILL_STEP_NS &&
        __atomic_compare_exchange_n(&share->own_refilled_at_ns, &then, now, false, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED)) {
        int64_t gain = then == 0 ? most : (int64_t)((now - then) * rate_percent / 100), filled;
        int64_t level = __atomic_load_n(&share->own_bucket_ns, __ATOMIC_RELAXED);
        do {
            filled = filled_bucket(level, gain, most);
        } while (!__atomic_compare_exchange_n(&share->own_bucket_ns, &level, filled, true, __ATOMIC_RELAXED,
                                              __ATOMIC_RELAXED));
    }
    return vgpu_bucket_wait_ns(__atomic_load_n(&share->own_bucket_ns, __ATOMIC_RELAXED), rate_percent);
}

static int64_t within(int64_t value, int64_t most) {
    return value > most ? most : value < -most ? -most : value;
}

/* What the agent has found out meanwhile, once for all processes: who changes `settled_ns` in the books changes the
 * bucket. A process that is new takes part from now on. Limits that were written anew say something else altogether:
 * no more than a second is believed at once. */
static void settle_agent(struct vgpu_share *share) {
    int64_t said = vgpu_limits_settled_ns(share->limits);
    int64_t seen = __atomic_load_n(&share->books->settled_ns, __ATOMIC_RELAXED);
    if (said != seen &&
        __atomic_compare_exchange_n(&share->books->settled_ns, &seen, said, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        vgpu_bucket_draw(share->books, -within(said - seen, MOST_SETTLED_NS));
    int64_t own = __atomic_exchange_n(&share->own_settled_ns, said, __ATOMIC_RELAXED);
    if (own != said && __atomic_load_n(&share->own_refilled_at_ns, __ATOMIC_RELAXED) != 0)
        __atomic_fetch_add(&share->own_bucket_ns, within(said - own, MOST_SETTLED_NS), __ATOMIC_RELAXED);
}

static uint64_t longest_wait_ns(struct vgpu_device *device, uint64_t now, bool busy) {
    uint64_t longest = 0;
    for (uint32_t i = 0; i < device->count; i++) {
        struct vgpu_share *share = device->shares[i];
        uint32_t rate = vgpu_limits_rate_percent(share->limits);
        settle_agent(share);
        vgpu_bucket_refill(share->books, now, rate, busy);
        uint64_t wait = vgpu_bucket_wait_ns(__atomic_load_n(&share->books->bucket_ns, __ATOMIC_RELAXED), rate);
        uint64_t own = own_wait_ns(share, now, rate);
        wait = own > wait ? own : wait;
        longest = wait > longest ? wait : longest;
    }
    return longest;
}

/* Who may have all of the GPU is owed nothing: it would be ahead of its next, lower rate for long. */
void vgpu_limiter_keep(struct vgpu_device *device) {
    if (vgpu_limiter_rate_percent(device) < UNLIMITED)
        longest_wait_ns(device, vgpu_now_ns(), true);
}

/* Wait first, then draw: the work that is paid here starts at once if nothing older is owed, however long it takes. */
uint64_t vgpu_limiter_wait(struct vgpu_device *device, uint64_t patience_ns) {
    uint64_t start = vgpu_now_ns(), now = start;
    for (;;) {
        uint64_t wait = 0, rate = vgpu_limiter_rate_percent(device), least = patience_ns - (now - start);
        if (vgpu_limiter_suspended(device))
            wait = least = SUSPENDED_SLEEP_NS;
        else if (rate < UNLIMITED)
            wait = longest_wait_ns(device, now, now != start); /* time slept here was asked for */
        if (wait == 0)
            break;
        if (wait > least && wait <= VGPU_DOUBT_NS * UINT64_C(100) / rate) {
            if (least == 0)
                break;
            wait = least;
        }
        vgpu_sleep_until(now + (wait < LONGEST_SLEEP_NS ? wait : LONGEST_SLEEP_NS));
        now = vgpu_now_ns();
        if (now - start > patience_ns)
            patience_ns = now - start;
    }
    return now - start;
}

void vgpu_limiter_draw(struct vgpu_device *device, int64_t gpu_ns) {
    if (vgpu_limiter_rate_percent(device) < UNLIMITED)
        vgpu_limiter_charge(device, gpu_ns);
}

static void roll_window(struct vgpu_books *books, uint64_t now) {
    uint64_t started = __atomic_load_n(&books->window_started_ns, __ATOMIC_RELAXED);
    if (now >= started && now - started < WINDOW_NS)
        return;
    if (!__atomic_compare_exchange_n(&books->window_started_ns, &started, now, false, __ATOMIC_RELAXED,
                                     __ATOMIC_RELAXED))
        return;
    uint64_t charged = __atomic_load_n(&books->charged_ns, __ATOMIC_RELAXED);
    uint64_t base = __atomic_exchange_n(&books->window_base_ns, charged, __ATOMIC_RELAXED);
    uint64_t permille = started == 0 || now <= started ? 0 : (charged - base) * 1000 / (now - started);
    __atomic_store_n(&books->window_permille, permille < 1000 ? (uint32_t)permille : 1000, __ATOMIC_RELAXED);
}

void vgpu_limiter_account(struct vgpu_device *device, uint64_t launches, uint64_t gpu_ns, uint64_t throttled_ns) {
    if (device->count == 0)
        return;
    struct vgpu_share *share = device->shares[0];
    gpu_ns = gpu_ns * charge_permille(share) / 1000;
    __atomic_fetch_add(&share->slot->launches, launches, __ATOMIC_RELAXED);
    __atomic_fetch_add(&share->slot->gpu_time_ns, gpu_ns, __ATOMIC_RELAXED);
    if (throttled_ns > 0)
        __atomic_fetch_add(&share->slot->throttled_ns, throttled_ns, __ATOMIC_RELAXED);
    __atomic_fetch_add(&share->books->charged_ns, gpu_ns, __ATOMIC_RELAXED);
    uint64_t now = vgpu_now_ns();
    for (uint32_t i = 0; i < device->count; i++)
        __atomic_store_n(&device->shares[i]->charge_permille,
                         vgpu_limits_charge_permille(device->shares[i]->limits, now), __ATOMIC_RELAXED);
    roll_window(share->books, now);
}

/* ---- What is under way ---- */

void vgpu_limiter_settle(struct vgpu_device *device, int64_t gpu_ns) {
    if (gpu_ns == 0 || device->count == 0)
        return;
    __atomic_fetch_add(&device->shares[0]->slot->predicted_ns, (uint64_t)gpu_ns, __ATOMIC_RELAXED);
    if (vgpu_limiter_rate_percent(device) < UNLIMITED)
        vgpu_limiter_charge(device, gpu_ns);
}

uint64_t vgpu_limiter_launched(struct vgpu_device *device, uint64_t gpu_ns) {
    if (gpu_ns > 0 && device->count > 0)
        __atomic_fetch_add(&device->shares[0]->slot->predicted_ns, gpu_ns, __ATOMIC_RELAXED);
    return __atomic_add_fetch(&device->launched_ns, gpu_ns, __ATOMIC_RELAXED);
}

void vgpu_limiter_finished(struct vgpu_device *device, uint64_t mark_ns) {
    uint64_t finished = __atomic_load_n(&device->finished_ns, __ATOMIC_RELAXED);
    while (finished < mark_ns && !__atomic_compare_exchange_n(&device->finished_ns, &finished, mark_ns, true,
                                                              __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        continue;
}

uint64_t vgpu_limiter_inflight_ns(const struct vgpu_device *device) {
    uint64_t finished = __atomic_load_n(&device->finished_ns, __ATOMIC_RELAXED);
    uint64_t launched = __atomic_load_n(&device->launched_ns, __ATOMIC_RELAXED);
    return launched > finished ? launched - finished : 0;
}

void vgpu_limiter_tell(struct vgpu_device *device, bool began) {
    if (device->count == 0)
        return;
    struct vgpu_slot *slot = device->shares[0]->slot;
    uint64_t inflight = vgpu_limiter_inflight_ns(device);
    if (began)
        __atomic_store_n(&slot->busy_since_ns, vgpu_now_ns(), __ATOMIC_RELAXED);
    __atomic_store_n(&slot->inflight_ns, inflight, __ATOMIC_RELAXED);
}

uint32_t vgpu_limiter_utilisation_percent(const struct vgpu_device *device) {
    if (device->count == 0)
        return 0;
    const struct vgpu_books *books = device->shares[0]->books;
    uint64_t now = vgpu_now_ns(), started = __atomic_load_n(&books->window_started_ns, __ATOMIC_RELAXED);
    if (started == 0 || now - started > 4ull * WINDOW_NS)
        return 0; /* nothing was launched for a while */
    uint64_t permille = __atomic_load_n(&books->window_permille, __ATOMIC_RELAXED);
    uint64_t percent = permille * 10 / vgpu_limiter_rate_percent(device);
    return percent < 100 ? (uint32_t)percent : 100;
}
